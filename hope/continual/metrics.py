"""What a learner of tasks in turn keeps, loses and gains.

All are of a matrix of accuracies R [tasks, tasks]: R[i, j] is the accuracy on
the test examples of task j after the learner has learned tasks 0 to i. So a row
is a moment, a column a task; the diagonal is what was just learned, and what is
left of it is of tasks that are still to come. NaN stands where nothing was
measured, as of tasks to come where the learner predicts among classes seen.

Every task counts the same, whatever its number of examples.
"""

from typing import Any

import numpy as np


def average_accuracy(accuracy: np.ndarray) -> float:
  """Mean over tasks after the last: sum_j R[n - 1, j] / n.

  ACC of Lopez-Paz and Ranzato (2017, arXiv:1706.08840).

  Args:
    accuracy: R, [n, n].
  """
  return float(_checked(accuracy)[-1].mean())


def anytime_average(accuracy: np.ndarray) -> float:
  """Mean over moments i of the mean over tasks seen: R[i, 0..i].

  Average incremental accuracy of iCaRL (Rebuffi et al., 2017,
  arXiv:1611.07725).

  Args:
    accuracy: R, [n, n].
  """
  accuracy = _checked(accuracy)
  seen = [row[: i + 1].mean() for i, row in enumerate(accuracy)]
  return float(np.mean(seen))


def forgetting(accuracy: np.ndarray) -> float:
  """Mean over tasks j < n - 1 of what was lost since the task's best moment.

  f_j = max_{j <= i < n - 1} R[i, j] - R[n - 1, j]: at least R[j, j] less the
  last, negative where a task is best at the end. Average forgetting of Chaudhry
  et al. (2018, arXiv:1801.10112).

  Choice: the best moment is one since the task was learned. The paper's runs
  over all moments before the last, also those before the task was learned.

  Args:
    accuracy: R, [n, n].

  Returns:
    NaN for a single task.
  """
  accuracy = _checked(accuracy)
  last = len(accuracy) - 1
  lost = [accuracy[j:last, j].max() - accuracy[last, j] for j in range(last)]
  return _mean(lost)


def backward_transfer(accuracy: np.ndarray) -> float:
  """Mean over tasks j < n - 1 of R[n - 1, j] - R[j, j].

  What later tasks changed in earlier ones: negative where they are forgotten.
  BWT of Lopez-Paz and Ranzato (2017).

  Args:
    accuracy: R, [n, n].

  Returns:
    NaN for a single task.
  """
  accuracy = _checked(accuracy)
  return _mean((accuracy[-1] - np.diag(accuracy))[:-1])


def forward_transfer(accuracy: np.ndarray, before: np.ndarray) -> float:
  """Mean over tasks j > 0 of R[j - 1, j] - before[j].

  What earlier tasks gave to one that is still to be learned. FWT of Lopez-Paz
  and Ranzato (2017), whose baseline is a network at its random start.

  Args:
    accuracy: R, [n, n], of all classes: with NaN above the diagonal there is no
      forward transfer.
    before: [n], accuracies of the learner before it learned anything.

  Returns:
    NaN for a single task.
  """
  accuracy = _checked(accuracy)
  before = np.asarray(before, np.float64)
  if before.shape != accuracy.shape[:1]:
    raise ValueError(
      f'before has shape {before.shape} for {len(accuracy)} tasks; give an '
      'accuracy for each.'
    )
  return _mean(np.diag(accuracy, 1) - before[1:])


def summary(accuracy: np.ndarray) -> dict[str, float]:
  """All of the above that need no baseline, by name.

  Args:
    accuracy: R, [n, n].
  """
  return {
    'average_accuracy': average_accuracy(accuracy),
    'anytime_average': anytime_average(accuracy),
    'forgetting': forgetting(accuracy),
    'backward_transfer': backward_transfer(accuracy),
  }


def _mean(values: Any) -> float:
  return float(np.mean(values)) if len(values) else float('nan')


def _checked(accuracy: np.ndarray) -> np.ndarray:
  """The matrix in float64.

  Raises:
    ValueError: if it is not square, or lacks a task that was seen.
  """
  accuracy = np.asarray(accuracy, np.float64)
  if accuracy.ndim != 2 or len(set(accuracy.shape)) != 1 or not accuracy.size:
    raise ValueError(
      f'The accuracies have shape {accuracy.shape}; give a row for each task '
      'learned and a column for each task, as many of both.'
    )
  if np.isnan(np.tril(accuracy)).any():
    raise ValueError(
      'The accuracy of a task that was seen is NaN; score every task up to '
      'the last one learned.'
    )
  return accuracy
