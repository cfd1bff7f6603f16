"""What is to be evaluated, as one writes it: 's2:size=4096,examples=100'.

A name of TASKS, TEXT_TASKS or DATA_TASKS, and options of it by their names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hope.fields import Field, declared, nearest, shown
from hope.tasks import TASKS, TEXT_TASKS
from hope.tasks.datasets import DATA_TASKS
from hope.tasks.options import TaskOptions

_EXAMPLES = Field(100, 'Examples that are evaluated.', minimum=1, maximum=2**24)
# Options of tasks of each kind; the default of a position task's is the run's.
TEXT_FIELDS: dict[str, Field] = {
  'size': Field(
    1024,
    'Most tokens of a prompt; the task says what that counts beside it.',
    minimum=1,
    maximum=2**31 - 1,
  ),
  'examples': _EXAMPLES,
  'text': Field(
    None, 'File, folder or glob of background text.', of=str, optional=True
  ),
}
DATA_FIELDS: dict[str, Field] = {
  'folder': Field('', "Folder of the task's files."),
  'examples': Field(
    None,
    'Examples that are evaluated, from the first on. None: all.',
    of=int,
    optional=True,
    minimum=1,
  ),
}
# Options of training examples, and of rows of text.
_OF_RUNS = ('examples', 'text', 'min_size', 'max_size', 'predict_prompt')
POSITION_FIELDS: dict[str, Field] = {
  **{k: v for k, v in declared(TaskOptions).items() if k not in _OF_RUNS},
  'seq_len': Field(
    None,
    "Length of a sequence. None: the run's, or the least that holds one.",
    of=int,
    optional=True,
    minimum=1,
    maximum=2**24,
  ),
  'examples': _EXAMPLES,
}


class Spec(NamedTuple):
  """A task and what was said of it.

  Attributes:
    text: as it was written.
    name: of the task.
    options: that were given.
  """

  text: str
  name: str
  options: dict[str, Any]


def fields_of(name: str) -> Mapping[str, Field]:
  """The options of a task.

  Raises:
    ValueError: if there is no such task.
  """
  for tasks, fields in (
    (TASKS, POSITION_FIELDS),
    (TEXT_TASKS, TEXT_FIELDS),
    (DATA_TASKS, DATA_FIELDS),
  ):
    if name in tasks:
      return fields
  names = [*TASKS, *TEXT_TASKS, *DATA_TASKS]
  raise ValueError(
    f'{shown(name)} is not a task; choose one of {", ".join(names)}.'
    f'{nearest(name, names)}'
  )


def parse(text: str) -> Spec:
  """Reads what is to be evaluated.

  Raises:
    ValueError: for a task or an option that is not known, or a value that it
      cannot have.
  """
  name, _, rest = text.partition(':')
  try:
    fields = fields_of(name)
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(',')):
      key, _, value = pair.partition('=')
      if key not in fields:
        raise ValueError(
          f'{shown(key)} is not an option of it; give {", ".join(fields)}.'
          f'{nearest(key, fields)}'
        )
      options[key] = fields[key].check(key, _typed(fields[key], value))
  except ValueError as error:
    raise ValueError(f'task {shown(text)}: {error}') from None
  return Spec(text, name, options)


def _typed(stated: Field, value: str) -> Any:
  """A value in the type of its field; as it is where it is not of that type."""
  if stated.kind in (int, float):
    try:
      return stated.kind(value)
    except ValueError:
      return value
  return value


def parse_all(texts: Sequence[str]) -> dict[str, Spec]:
  """Reads several, by the names of their results.

  That is the name of the task, and the whole text where a task comes more than
  once.

  Raises:
    ValueError: as `parse`; for a text that comes twice.
  """
  found = [parse(text) for text in texts]
  names = [spec.name for spec in found]
  labelled: dict[str, Spec] = {}
  for spec in found:
    label = spec.name if names.count(spec.name) == 1 else spec.text
    if label in labelled:
      raise ValueError(f'task {shown(spec.text)} is given twice.')
    labelled[label] = spec
  return labelled
