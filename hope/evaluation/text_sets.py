"""Examples of text that are to be evaluated, and how they are scored."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import hashlib
import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from hope.data.background import open_background
from hope.data.tokenization import Tokenizer
from hope.evaluation import generation, likelihood
from hope.evaluation.generation import Ending, Keeper
from hope.evaluation.intervals import Estimate, of_mean, of_share
from hope.evaluation.language_model import LanguageModel, check_reads_text
from hope.evaluation.specs import DATA_FIELDS, TEXT_FIELDS, Spec
from hope.fields import shown
from hope.tasks import (
  TEXT_TASKS,
  ChoiceExample,
  DataTask,
  TextExample,
  TextOptions,
  TextTask,
)
from hope.tasks.datasets import DATA_TASKS

Example = TextExample | ChoiceExample
# The stream that examples are drawn from: that of held-out examples, whatever
# the seed of a run.
_STREAM = (1, 0)
# What is kept of an example beside its scores.
_NO_SCORES = ('output', 'depths', 'chosen', 'answer')
# Batches whose examples are sorted by length together.
_WINDOW = 8


class TextSet(NamedTuple):
  """Examples of a task.

  Attributes:
    task: how they are answered and scored.
    example: index -> the example.
    number: of examples.
    identity: what the scores of an example depend on beside the model, as JSON
      values: the task, its options and its data.
  """

  task: TextTask | DataTask
  example: Callable[[int], Example]
  number: int
  identity: dict[str, Any]


# ------------------------------------------------------------------- examples


def open_text_set(spec: Spec, tokenizer: Tokenizer) -> TextSet:
  """Opens a task of TEXT_TASKS or DATA_TASKS; makes its first example.

  Raises:
    ValueError: for a model of numbers, data that are not there, or options from
      which no example can be made; said of the spec.
  """
  try:
    check_reads_text(tokenizer)
    if spec.name in TEXT_TASKS:
      return _drawn(spec, tokenizer)
    return _from_files(spec)
  except ValueError as error:
    raise ValueError(f'task {shown(spec.text)}: {error}') from None


def _drawn(spec: Spec, tokenizer: Tokenizer) -> TextSet:
  """Of a TextTask."""
  given = {k: stated.default for k, stated in TEXT_FIELDS.items()}
  given |= spec.options
  background = open_background(given['text'])
  options = TextOptions(
    given['size'], background.sentences, functools.partial(_count, tokenizer)
  )
  task = TEXT_TASKS[spec.name]

  def draw(index: int) -> Example:
    return task.generate(np.random.default_rng((*_STREAM, index)), options)

  try:
    first = draw(0)
  except ImportError as error:
    raise ValueError(str(error)) from None
  except ValueError as error:
    hint = (
      '' if background.sentences else ' Background is what text=FILE names.'
    )
    raise ValueError(f'{error}{hint}') from None
  identity = {
    'task': spec.name,
    'size': given['size'],
    'data': background.fingerprint,
    'tokenizer': tokenizer.fingerprint(),
    # Of another version, a task may draw other examples.
    'first example': _digest(_written(first)),
  }
  return TextSet(task, draw, given['examples'], identity)


def _count(tokenizer: Tokenizer, text: str) -> int:
  return len(tokenizer.encode(text))


def _from_files(spec: Spec) -> TextSet:
  """Of a DataTask."""
  given = {k: stated.default for k, stated in DATA_FIELDS.items()}
  given |= spec.options
  task = DATA_TASKS[spec.name]
  if not given['folder']:
    raise ValueError(f'give folder=FOLDER, with its files: {task.source}')
  examples = task.read(pathlib.Path(given['folder']).expanduser())
  if not examples:
    raise ValueError(f'folder={shown(given["folder"])} has no example.')
  identity = {
    'task': spec.name,
    'data': _digest(itertools.chain(*map(_written, examples))),
  }
  number = min(len(examples), given['examples'] or len(examples))
  return TextSet(task, examples.__getitem__, number, identity)


def _written(example: Example) -> Iterator[str]:
  """All of an example, as texts."""
  if isinstance(example, ChoiceExample):
    yield repr(example)
  else:
    yield from example.pieces()
    yield repr((example.question, example.answers))


def _digest(texts: Iterable[str]) -> str:
  """A hash of texts."""
  found = hashlib.sha256()
  for text in texts:
    found.update(f'{len(text)} {text}'.encode(errors='surrogateescape'))
  return found.hexdigest()


# --------------------------------------------------------------------- scores


def scores(
  model: LanguageModel,
  texts: TextSet,
  *,
  batch: int = 8,
  done: Callable[[int], bool] = lambda index: False,
  keeper: Callable[[Sequence[int]], Keeper] | None = None,
) -> Iterator[dict[int, dict[str, Any]]]:
  """Yields the scores of examples that are not done, by their indices.

  Those that are computed together come together.

  Which examples are computed beside each other does not depend on what is done,
  so that an evaluation that goes on ends with the same scores.

  Args:
    model: that answers.
    texts: the examples.
    batch: rows that are computed at once.
    done: whether an example is.
    keeper: of the reading of the prompts of some examples, by their indices.
      None: it is not kept.
  """
  window = _WINDOW * batch
  for start in range(0, texts.number, window):
    indices = range(start, min(start + window, texts.number))
    if all(map(done, indices)):
      continue
    examples = [texts.example(i) for i in indices]
    for group in _groups(model.tokenizer, examples, batch):
      chosen = [indices[i] for i in group]
      if all(map(done, chosen)):
        continue
      found = _answers(
        model,
        texts.task,
        [examples[i] for i in group],
        batch,
        keeper(chosen) if keeper else None,
      )
      pairs = zip(chosen, found, strict=True)
      yield {index: values for index, values in pairs if not done(index)}


def _groups(
  tokenizer: Tokenizer, examples: Sequence[Example], batch: int
) -> Iterator[list[int]]:
  """Indices of examples of similar lengths, at most `batch`."""
  prompts = [x for x in examples if isinstance(x, TextExample)]
  if prompts:
    yield from generation.side_by_side(tokenizer, prompts, batch)
    return
  letters = [
    max(len(context) + len(rest) for context, rest in example.requests)
    for example in examples
    if isinstance(example, ChoiceExample)
  ]
  order = np.argsort(letters, kind='stable').tolist()
  for start in range(0, len(order), batch):
    yield order[start : start + batch]


def _answers(
  model: LanguageModel,
  task: TextTask | DataTask,
  examples: Sequence[Example],
  batch: int,
  keeper: Keeper | None,
) -> list[dict[str, Any]]:
  """Scores of examples, by name; of prompts also 'output' and 'depths', of
  several requests 'chosen' and 'answer'.
  """
  prompts = [x for x in examples if isinstance(x, TextExample)]
  if task.score is None:
    choices = [x for x in examples if isinstance(x, ChoiceExample)]
    return likelihood.answers(model, choices, batch)
  ending = Ending(task.tokens, task.stop)
  outputs = generation.write(model, prompts, ending, batch, keeper)
  return [
    {
      'accuracy': float(task.score(output, example)),
      'output': output,
      'depths': example.depths,
    }
    for output, example in zip(outputs, prompts, strict=True)
  ]


def results(found: Sequence[dict[str, Any]]) -> dict[str, Estimate]:
  """The metrics of a task, by name, with their intervals.

  Args:
    found: scores of each example: those in [0, 1] give their mean, and
      log-likelihoods the perplexity (`hope.evaluation.likelihood.perplexity`).
  """
  values = {}
  for name in found[0]:
    if name in _NO_SCORES:
      continue
    of_examples = [float(scores[name]) for scores in found]
    if name == 'log_likelihood':
      mean = of_mean([-x for x in of_examples])
      ends = [
        None if x is None else likelihood.exponential(x) for x in mean[1:]
      ]
      value = likelihood.perplexity(of_examples)
      values['perplexity'] = Estimate(value, *ends)
    else:
      mean = float(np.mean(of_examples))
      values[name] = of_share(mean, len(of_examples))
  return values
