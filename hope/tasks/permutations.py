"""Products of permutations: the word problems `s3` and `s5`.

Each token is a permutation of 3 or 5 things; the answer at each place is the
product of all up to it, the first applied first. The word problem of S5 is
complete for NC1, so that, unless TC0 = NC1, no model of constant depth without
a recurrence solves it at every length (arXiv:2404.08819).

Options: `min_length` and `max_length` of a string, which starts a row; the rest
is padding, token 0. Permutations are tokens from 1 on in lexicographic order,
answers from 0 on.
"""

import functools
import itertools
import math

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task


@functools.cache
def products(things: int) -> np.ndarray:
  """The table of a group: [a, b] is a, then b, as int32 [n!, n!]."""
  every = list(itertools.permutations(range(things)))
  index = {p: i for i, p in enumerate(every)}
  return np.array(
    [[index[tuple(b[x] for x in a)] for b in every] for a in every], np.int32
  )


def sequence(things: int, word: np.ndarray, seq_len: int) -> Example:
  """Writes an example.

  Args:
    things: that are permuted.
    word: indices of permutations, [length].
    seq_len: tokens, at least as many.
  """
  table, state = products(things), 0
  inputs, targets = np.zeros((2, seq_len), np.int32)
  weights = np.zeros(seq_len, np.float32)
  for place, letter in enumerate(word.tolist()):
    state = table[state, letter]
    inputs[place], targets[place] = letter + 1, state
  weights[: len(word)] = 1
  return Example(inputs, targets, weights)


def _generate(
  things: int,
  rng: np.random.Generator,
  seq_len: int,
  options: ml_collections.ConfigDict,
) -> Example:
  length = rng.integers(options.min_length, options.max_length + 1)
  word = rng.integers(math.factorial(things), size=length)
  return sequence(things, word, seq_len)


def _solve(things: int, inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Moves the things, one permutation after the other."""
  del options
  every = sorted(itertools.permutations(range(things)))
  answers, state = np.zeros_like(inputs), tuple(range(things))
  for place, token in enumerate(inputs.tolist()):
    if token:
      state = tuple(every[token - 1][x] for x in state)
      answers[place] = every.index(state)
  return answers


def _chance(things: int, options: ml_collections.ConfigDict) -> float:
  """Products of uniform permutations are uniform."""
  del options
  return 1 / math.factorial(things)


def _least(things: int, options: ml_collections.ConfigDict) -> Least:
  return Least(math.factorial(things) + 1, options.max_length)


def _check(seq_len: int, options: ml_collections.ConfigDict):
  """Raises ValueError where no length can be drawn."""
  del seq_len
  if options.min_length > options.max_length:
    raise ValueError(
      f'data.task.min_length={options.min_length} must be at most '
      f'data.task.max_length={options.max_length}.'
    )


def _task(things: int) -> Task:
  return Task(
    generate=functools.partial(_generate, things),
    least=functools.partial(_least, things),
    solve=functools.partial(_solve, things),
    chance=functools.partial(_chance, things),
    check=_check,
    size='max_length',
  )


TASKS = {'s3': _task(3), 's5': _task(5)}
