"""What a program that solves a task scores, and one that knows nothing.

  python -m hope.tasks

A row for each task: the sizes of 1,000 held-out examples, its metric, and three
scores: of an oracle that works out the answers by the task's definition, of one
token given as every answer (the most frequent answer of 1,000 other examples),
and the expected score of that, as the task states it. `symbols` has no oracle:
its answers are drawn.
"""

import ml_collections
import numpy as np
import rich.console
import rich.table

from hope.fields import declared
from hope.tasks import TASKS, Task
from hope.tasks.options import TaskOptions

_EXAMPLES = 1000
# Sizes of the examples, or the least that hold one.
_VOCAB_SIZE, _SEQ_LEN = 32, 32


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


def main() -> None:
  """Prints the table."""
  table = rich.table.Table()
  for name in ('task', 'tokens', 'vocabulary', 'metric'):
    table.add_column(name, no_wrap=True)
  for name in ('oracle', 'one token', 'stated'):
    table.add_column(name, justify='right')
  for name, task in TASKS.items():
    options, seq_len = sizes(task)
    oracle, constant, chance = scores(task)
    table.add_row(
      name,
      str(seq_len),
      str(options.vocab_size),
      task.metric.replace('_', ' '),
      'none' if oracle is None else f'{oracle:.1%}',
      f'{constant:.1%}',
      f'{chance:.1%}',
    )
  console = rich.console.Console(highlight=False)
  if not console.is_terminal:
    console = rich.console.Console(highlight=False, width=100)
  console.print(table)


if __name__ == '__main__':
  main()
