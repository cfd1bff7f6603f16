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


# --------------------------------------------------------------------- metrics


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


def exact_match(
  predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> float:
  """Share of the sequences of `exact_matches`, in [0, 1].

  Args:
    predictions: int [..., t], the most likely token at each place.
    targets: int [..., t], as in `Example`.
    weights: [..., t], as in `Example`; at least one is not 0.
  """
  matches, sequences = exact_matches(predictions == targets, weights)
  return float(matches / sequences)


def class_accuracy(
  predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> float:
  """Mean of the accuracies of the classes (`mean_over_classes`), in [0, 1].

  Args:
    predictions: int [..., t], the most likely token at each place.
    targets: int [..., t], as in `Example`.
    weights: [..., t], as in `Example`; at least one is not 0.
  """
  counted = weights != 0
  answers, guesses = targets[counted], predictions[counted]
  classes = np.unique([answers, guesses])
  return mean_over_classes(
    np.array(
      [
        [
          np.sum((answers == x) & (guesses == x)),
          np.sum(answers == x),
          np.sum(guesses == x),
        ]
        for x in classes
      ]
    ).T
  )


def mean_over_classes(counts: np.ndarray) -> float:
  """Class-macro accuracy, as torchmetrics' `MulticlassAccuracy` has it.

  A class is a token; its accuracy is the share of its answers that are
  predicted. The mean is over the classes that are an answer or a prediction
  anywhere. A class that is only predicted thus counts 0: where there is none,
  this is scikit-learn's `balanced_accuracy_score`, which leaves it out.

  Args:
    counts: [3, classes], of the places that count: answers that are predicted,
      answers, and predictions; sums over any number of batches.
  """
  correct, answers, guesses = np.asarray(counts, np.float64)
  present = answers + guesses > 0
  shares = correct / np.maximum(answers, 1)
  return float(shares[present].mean())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
  'accuracy': accuracy,
  'exact_match': exact_match,
  'class_accuracy': class_accuracy,
}


# ------------------------------------------------------------------- the record

Generate = Callable[
  [np.random.Generator, int, ml_collections.ConfigDict], Example
]


def _accept(seq_len: int, options: ml_collections.ConfigDict):
  """`Task.check` of tasks that all sizes suffice for."""


@dataclasses.dataclass(frozen=True)
class Task:
  """A generated task; its options are `data.task` of the configuration.

  Attributes:
    generate: (rng, seq_len, options) -> Example, an example drawn from `rng`
      alone.
    least: options -> Least.
    solve: (inputs, options) -> int [t], the answer at each place, worked out
      from int [t] inputs up to that place by the task's definition; any token
      where no answer counts. None: answers are drawn, and nothing knows them.
    chance: options -> float, the expected score of one token given as every
      answer, of the tokens the one that is right most often.
    heldout: as `generate`, the examples of evaluations. None: the same.
    check: (seq_len, options) -> None; raises ValueError for options that fit
      the sizes, but from which no example can be drawn.
    metric: of METRICS, by which the task is scored.
    size: the option that decides how long an example is; None: `seq_len` alone
      does. Tasks of 'max_length' draw lengths from `min_length` to it.
    disjoint: whether what is held out is never trained on: a hash of an
      example's inputs decides to which of the streams it belongs.
  """

  generate: Generate
  least: Callable[[ml_collections.ConfigDict], Least]
  solve: Callable[[np.ndarray, ml_collections.ConfigDict], np.ndarray] | None
  chance: Callable[[ml_collections.ConfigDict], float]
  _: dataclasses.KW_ONLY
  heldout: Generate | None = None
  check: Callable[[int, ml_collections.ConfigDict], None] = _accept
  metric: str = 'accuracy'
  size: str | None = 'num_pairs'
  disjoint: bool = False

  def score(
    self, predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray
  ) -> float:
    """The task's metric, 1 for the right answers.

    Args:
      predictions: int [..., t], the most likely token at each place.
      targets: int [..., t], as in `Example`.
      weights: [..., t], as in `Example`; at least one is not 0.
    """
    return METRICS[self.metric](predictions, targets, weights)
