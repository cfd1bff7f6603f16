"""Selective copying (MAD, arXiv:2403.17844).

Options: `vocab_size` tokens, of which the two last are the blank and the copy
mark, and `num_pairs`, the number of tokens to copy.
"""

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task


def generate(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws `num_pairs` tokens that lie among blanks.

  After the copy mark they are the targets, in order, at the last `num_pairs`
  positions.

  Args:
    rng: What all is drawn from.
    seq_len: Tokens.
    options: `data.task` of the configuration.
  """
  blank, mark = options.vocab_size - 2, options.vocab_size - 1
  num = options.num_pairs
  tokens = rng.integers(0, blank, num)
  blanks = rng.integers(0, num, seq_len - 2 * num - 1)
  inputs = np.full(seq_len, blank, np.int32)
  inputs[: seq_len - num - 1] = np.insert(tokens, blanks, blank)
  inputs[seq_len - num - 1] = mark
  targets = np.zeros(seq_len, np.int32)
  targets[-num:] = tokens
  weights = np.zeros(seq_len, np.float32)
  weights[-num:] = 1
  return Example(inputs, targets, weights)


def _least(options: ml_collections.ConfigDict) -> Least:
  return Least(vocab_size=3, seq_len=2 * options.num_pairs + 1)


TASK = Task(generate=generate, least=_least)
