"""Memorization (MAD, arXiv:2403.17844): facts that are in no sequence.

Every key has a value that is the same in all sequences, so that it can only be
learned by heart. A sequence is `key mark key mark ...`; each mark asks for the
value of the key before it.

Options: `vocab_size` tokens: of all but the last, the mark, the lower half are
keys, and values are of the upper half. MAD trains on 256 sequences:
`examples`.
"""

import functools

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task

# Of the generator that shuffles keys and values, MAD's.
_SEED = 12345


@functools.cache
def mapping(vocab_size: int) -> np.ndarray:
  """Keys and their values, int32 [2, keys]: shuffled as MAD's."""
  names = vocab_size - 1
  rng = np.random.default_rng(_SEED)
  keys = list(range(names // 2))
  values = list(range(names // 2, names))
  rng.shuffle(keys)
  rng.shuffle(values)
  return np.array([keys, values[: len(keys)]], np.int32)


def generate(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws keys uniformly.

  Args:
    rng: what all is drawn from.
    seq_len: tokens; of an odd number the last is 0.
    options: `data.task` of the configuration.
  """
  keys, values = mapping(options.vocab_size)
  chosen = rng.integers(len(keys), size=seq_len // 2)
  inputs, targets = np.zeros((2, seq_len), np.int32)
  weights = np.zeros(seq_len, np.float32)
  marks = slice(1, None, 2)
  inputs[: 2 * len(chosen) : 2] = keys[chosen]
  inputs[marks] = options.vocab_size - 1
  targets[marks] = values[chosen]
  weights[marks] = 1
  return Example(inputs, targets, weights)


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Looks up the keys, which are known by heart."""
  known = dict(mapping(options.vocab_size).T.tolist())
  before = [0, *inputs[:-1].tolist()]
  return np.array([known.get(key, 0) for key in before], np.int32)


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / mapping(options.vocab_size).shape[1]


def _least(options: ml_collections.ConfigDict) -> Least:
  del options
  return Least(vocab_size=3, seq_len=2)


TASK = Task(
  generate=generate,
  least=_least,
  solve=_solve,
  chance=_chance,
  metric='class_accuracy',
  size=None,
)
