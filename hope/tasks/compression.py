"""Compression (MAD, arXiv:2403.17844): a sequence out of one vector.

Random tokens and a mark; every token is to be told at its own place. MAD's
model for this task is no language model, which would only have to repeat what
it has just read: the vector after the mark and a position's sines and cosines
are all that a decoder of two layers sees of the sequence (`model.decoder`).

Options: `vocab_size` tokens, of which the last is the mark.
"""

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task


def generate(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws uniform tokens before the mark.

  Args:
    rng: what all is drawn from.
    seq_len: tokens, with the mark.
    options: `data.task` of the configuration.
  """
  inputs = np.full(seq_len, options.vocab_size - 1, np.int32)
  inputs[:-1] = rng.integers(options.vocab_size - 1, size=seq_len - 1)
  return Example(inputs, inputs.copy(), np.ones(seq_len, np.float32))


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  del options
  return inputs


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / options.vocab_size


def _least(options: ml_collections.ConfigDict) -> Least:
  del options
  return Least(vocab_size=2, seq_len=2)


TASK = Task(
  generate=generate,
  least=_least,
  solve=_solve,
  chance=_chance,
  metric='class_accuracy',
  size=None,
)
