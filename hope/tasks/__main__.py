"""What a program that solves a task scores, and one that knows nothing.

  python -m hope.tasks

A row for each task: the sizes of 1,000 held-out examples, its metric, and three
scores: of an oracle that works out the answers by the task's definition, of one
answer that is always given (the most frequent token of 1,000 other examples),
and the expected score of that, as the task states it. `symbols` has no oracle:
its answers are drawn.

Of the tasks of text, 300 examples of 600 words count, whose background are
made-up sentences. There the one answer is the most frequent text of 300 other
examples, or of choices the most frequent place of the right one.
"""

import collections
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.table

from hope.fields import declared
from hope.tasks import (
  TASKS,
  TEXT_TASKS,
  ChoiceExample,
  Task,
  TextExample,
  TextOptions,
  TextTask,
)
from hope.tasks.options import TaskOptions

_EXAMPLES = 1000
# Sizes of the examples, or the least that hold one.
_VOCAB_SIZE, _SEQ_LEN = 32, 32
# Of the tasks of text.
_TEXT_EXAMPLES = 300
_TEXT = TextOptions(
  size=600,
  sentences=tuple(
    f'Sentence {i} of the background has ten words and nothing else.'
    for i in range(100)
  ),
)


def sizes(task: Task) -> tuple[ml_collections.ConfigDict, int]:
  """(options, seq_len) of the examples that are scored."""
  options = ml_collections.ConfigDict(
    {name: stated.default for name, stated in declared(TaskOptions).items()}
  )
  least = task.least(options)
  options.vocab_size = max(_VOCAB_SIZE, least.vocab_size)
  return options, max(_SEQ_LEN, least.seq_len)


def draw(task: Task, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(inputs, targets, weights) of held-out examples, [1000, seq_len]."""
  options, seq_len = sizes(task)
  generate = task.heldout or task.generate
  found = [
    generate(np.random.default_rng((seed, i)), seq_len, options)
    for i in range(_EXAMPLES)
  ]
  inputs, targets, weights = map(np.stack, zip(*found, strict=True))
  return inputs, targets, weights


def scores(task: Task) -> tuple[float | None, float, float]:
  """(of the oracle, of one token as every answer, as stated)."""
  options, _ = sizes(task)
  inputs, targets, weights = draw(task, seed=0)
  oracle = None
  if task.solve is not None:
    answers = np.stack([task.solve(row, options) for row in inputs])
    oracle = task.score(answers, targets, weights)
  _, others, counted = draw(task, seed=1)
  token = np.bincount(others[counted > 0]).argmax()
  constant = task.score(np.full_like(targets, token), targets, weights)
  return oracle, constant, task.chance(options)


def text_scores(task: TextTask) -> tuple[float, float, float]:
  """(of the oracle, of one answer always given, as stated)."""
  examples, others = (
    [
      task.generate(np.random.default_rng((seed, i)), _TEXT)
      for i in range(_TEXT_EXAMPLES)
    ]
    for seed in (0, 1)
  )
  frequent = collections.Counter(_solved(task, x) for x in others)
  ((guess, _),) = frequent.most_common(1)
  oracle = [_score(task, x, _solved(task, x)) for x in examples]
  constant = [_score(task, x, guess) for x in examples]
  return float(np.mean(oracle)), float(np.mean(constant)), task.chance


def _solved(task: TextTask, example: TextExample | ChoiceExample) -> str | int:
  """What the oracle writes, or which choice it takes."""
  if isinstance(example, TextExample):
    return task.solve(''.join(example.pieces()))
  right = task.solve(example.requests[0].context)
  return [x.continuation for x in example.requests].index(right)


def _score(
  task: TextTask, example: TextExample | ChoiceExample, answer: Any
) -> float:
  """Of a text that was written, or of a choice that was taken."""
  if isinstance(example, TextExample):
    assert task.score is not None
    return task.score(answer, example)
  return float(answer == example.answer)


def rows() -> Iterator[tuple[str, ...]]:
  """Yields what the table says of each task."""
  for name, task in TASKS.items():
    options, seq_len = sizes(task)
    sized = f'{seq_len} tokens of {options.vocab_size}'
    metric = task.metric.replace('_', ' ')
    yield name, sized, metric, *map(_percent, scores(task))
  for name, task in TEXT_TASKS.items():
    metric = 'accuracy' if task.score is None else 'score'
    yield name, f'{_TEXT.size} words', metric, *map(_percent, text_scores(task))


def _percent(share: float | None) -> str:
  return 'none' if share is None else f'{share:.1%}'


def main() -> None:
  """Prints the table."""
  table = rich.table.Table()
  for name in ('task', 'size', 'metric'):
    table.add_column(name, no_wrap=True)
  for name in ('oracle', 'one answer', 'stated'):
    table.add_column(name, justify='right')
  for row in rows():
    table.add_row(*row)
  console = rich.console.Console(highlight=False)
  if not console.is_terminal:
    console = rich.console.Console(highlight=False, width=100)
  console.print(table)


if __name__ == '__main__':
  main()
