"""What the rest of the system asks of a generated task."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import ml_collections
import numpy as np


class Example(NamedTuple):
  """A sequence of a task.

  Attributes:
    inputs: int32 [t], tokens that the model reads.
    targets: int32 [t], the answer at each place; any token where the weight
      is 0.
    weights: float32 [t], 1 where the answer counts, else 0.
  """

  inputs: np.ndarray
  targets: np.ndarray
  weights: np.ndarray


class Least(NamedTuple):
  """The smallest sizes that hold an example.

  Attributes:
    vocab_size: tokens.
    seq_len: tokens of a sequence.
  """

  vocab_size: int
  seq_len: int


def accuracy(
  predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> float:
  """Share of the answers that count that are predicted, in [0, 1].

  Args:
    predictions: int [..., t], the most likely token at each place.
    targets: int [..., t], as in `Example`.
    weights: [..., t], as in `Example`; at least one is not 0.
  """
  return float(np.sum(weights * (predictions == targets)) / np.sum(weights))


def exact_matches(correct: Any, weights: Any) -> tuple[Any, Any]:
  """Counts the sequences of which every answer that counts is predicted.

  Arrays are of NumPy or of jax.

  Args:
    correct: bool [..., t], where the prediction is the target.
    weights: [..., t], as in `Example`.

  Returns:
    (matches, sequences): how many there are, of how many in which an answer
    counts; both [].
  """
  counted = weights != 0
  some = counted.any(axis=-1)
  return (some & (correct | ~counted).all(axis=-1)).sum(), some.sum()


def _accept(seq_len: int, options: ml_collections.ConfigDict):
  """`Task.check` of tasks that all sizes suffice for."""


@dataclasses.dataclass(frozen=True)
class Task:
  """A generated task; its options are `data.task` of the configuration.

  Attributes:
    generate: (rng, seq_len, options) -> Example, an example drawn from `rng`
      alone.
    least: options -> Least.
    check: (seq_len, options) -> None; raises ValueError for options that fit
      the sizes, but from which no example can be drawn.
    score: (predictions, targets, weights) -> float, 1 for the right answers.
    size: the option that decides how long an example is. Tasks of 'max_length'
      draw lengths from `min_length` to it.
    disjoint: whether what is held out is never trained on: a hash of an
      example's inputs decides to which of the streams it belongs.
  """

  generate: Callable[
    [np.random.Generator, int, ml_collections.ConfigDict], Example
  ]
  least: Callable[[ml_collections.ConfigDict], Least]
  check: Callable[[int, ml_collections.ConfigDict], None] = _accept
  score: Callable[[np.ndarray, np.ndarray, np.ndarray], float] = accuracy
  size: str = 'num_pairs'
  disjoint: bool = False
