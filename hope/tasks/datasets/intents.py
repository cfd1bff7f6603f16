"""Queries and their intents: CLINC150 and Banking77, for classification.

CLINC150 (Larson et al., 2019, arXiv:1909.02027): 150 intents of 10 domains.
Banking77 (Casanueva et al., 2020, arXiv:2003.04807): 77 intents of one domain.

`Choice:` classes are in the order of domains.json, and of categories.json;
Banking77, which has no groups of its own, has seven of eleven in that order.
Queries out of scope are left out.
"""

import dataclasses
import pathlib

from hope.tasks.datasets import files
from hope.tasks.text import ChoiceExample, DataTask, Request

Query = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Intents:
  """A data set of queries.

  Attributes:
    train: (query, class) of each.
    validation: the same; empty where none is published.
    test: the same.
    classes: names.
    groups: the classes of each task of a continual learner, in order.
  """

  train: tuple[Query, ...]
  validation: tuple[Query, ...]
  test: tuple[Query, ...]
  classes: tuple[str, ...]
  groups: tuple[tuple[int, ...], ...]


def _label(place: str, name: str, index: dict[str, int]) -> int:
  if name not in index:
    raise ValueError(f'{place}: {name!r} is no intent of the data set.')
  return index[name]


def read_clinc150(folder: pathlib.Path) -> Intents:
  """Reads data_full.json and domains.json.

  Raises:
    ValueError: naming the file and what is wrong.
  """
  path = files.find(folder, 'clinc150', 'data_full.json')
  domains_path = files.find(folder, 'clinc150', 'domains.json')
  domains, data = files.json_object(domains_path), files.json_object(path)
  names = [files.strings(str(domains_path), domains, x) for x in domains]
  classes = [name for group in names for name in group]
  index = {name: i for i, name in enumerate(classes)}
  if len(index) != len(classes):
    raise ValueError(f'{domains_path} names an intent twice.')

  def split(name: str) -> tuple[Query, ...]:
    found = []
    for i, row in enumerate(files.value(str(path), data, name, list)):
      place = f'{path}, {name} {i}'
      if not (
        isinstance(row, list)
        and len(row) == 2
        and all(isinstance(x, str) for x in row)
      ):
        raise ValueError(f'{place} is {row!r:.60}, not [query, intent].')
      found.append((row[0], _label(place, row[1], index)))
    return tuple(files.some(found, path))

  return Intents(
    train=split('train'),
    validation=split('val'),
    test=split('test'),
    classes=tuple(classes),
    groups=tuple(tuple(index[name] for name in group) for group in names),
  )


def read_banking77(folder: pathlib.Path) -> Intents:
  """Reads train.csv, test.csv and categories.json.

  Raises:
    ValueError: naming the file and what is wrong.
  """
  path = files.find(folder, 'banking77', 'categories.json')
  classes = files.json_file(path)
  if not (
    isinstance(classes, list)
    and all(isinstance(x, str) for x in classes)
    and len(classes) == len(set(classes)) == 77
  ):
    raise ValueError(f'{path} is not a list of 77 different names.')
  index = {name: i for i, name in enumerate(classes)}

  def split(name: str) -> tuple[Query, ...]:
    rows = files.csv_rows(files.find(folder, 'banking77', f'{name}.csv'))
    return tuple(
      (
        files.value(place, row, 'text'),
        _label(place, files.value(place, row, 'category'), index),
      )
      for place, row in rows
    )

  return Intents(
    train=split('train'),
    validation=(),
    test=split('test'),
    classes=tuple(classes),
    groups=tuple(tuple(range(i, i + 11)) for i in range(0, 77, 11)),
  )


def prompt(query: str) -> str:
  """What stands before the name of the intent."""
  return f'{query}\nIntent:'


def continuation(name: str) -> str:
  """The name of an intent as it follows the prompt: ' card arrival'."""
  return ' ' + name.replace('_', ' ')


def _examples(intents: Intents) -> list[ChoiceExample]:
  names = [continuation(name) for name in intents.classes]
  return [
    ChoiceExample(tuple(Request(prompt(query), name) for name in names), label)
    for query, label in intents.test
  ]


TASKS = {
  'clinc150': DataTask(
    lambda folder: _examples(read_clinc150(folder)),
    None,
    'clinc/oos-eval: data_full.json, domains.json; CC BY 3.0',
  ),
  'banking77': DataTask(
    lambda folder: _examples(read_banking77(folder)),
    None,
    'PolyAI-LDN/task-specific-datasets: train.csv, test.csv, categories.json; '
    'CC BY 4.0',
  ),
}
