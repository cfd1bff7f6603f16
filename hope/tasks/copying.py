"""Selective copying (MAD, arXiv:2403.17844).

Held-out examples are scored by class-macro accuracy, as MAD's.

Options: `vocab_size` tokens, of which the two last are the blank and the copy
mark, and `num_pairs`, the number of tokens to copy.
"""

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task


def sequence(
  tokens: np.ndarray, places: np.ndarray, seq_len: int, vocab_size: int
) -> Example:
  """Writes an example.

  Args:
    tokens: to copy, [n].
    places: index of the token before which each blank is put, below n,
      [seq_len - 2n - 1].
    seq_len: Tokens.
    vocab_size: Tokens, with the blank and the mark.
  """
  blank, num = vocab_size - 2, len(tokens)
  inputs = np.full(seq_len, blank, np.int32)
  inputs[: seq_len - num - 1] = np.insert(tokens, places, blank)
  inputs[seq_len - num - 1] = vocab_size - 1
  targets = np.zeros(seq_len, np.int32)
  targets[-num:] = tokens
  weights = np.zeros(seq_len, np.float32)
  weights[-num:] = 1
  return Example(inputs, targets, weights)


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
  num = options.num_pairs
  tokens = rng.integers(0, options.vocab_size - 2, num)
  places = rng.integers(0, num, seq_len - 2 * num - 1)
  return sequence(tokens, places, seq_len, options.vocab_size)


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Repeats, behind the mark, what is no blank before it."""
  blank, mark = options.vocab_size - 2, options.vocab_size - 1
  tokens = inputs.tolist()
  answers = np.zeros_like(inputs)
  if mark in tokens:
    end = tokens.index(mark)
    known = [x for x in tokens[:end] if x != blank]
    answers[end + 1 :] = known[: len(tokens) - end - 1]
  return answers


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / (options.vocab_size - 2)


def _least(options: ml_collections.ConfigDict) -> Least:
  return Least(vocab_size=3, seq_len=2 * options.num_pairs + 1)


TASK = Task(
  generate=generate,
  least=_least,
  solve=_solve,
  chance=_chance,
  metric='class_accuracy',
)
