"""Metrics of accuracy matrices: cases by hand, and sums written out."""

import numpy as np
import pytest

from hope.continual import metrics

NAN = float('nan')
# Three tasks: the first is half forgotten, then partly regained.
HAND = np.array([[0.8, 0.1, 0.0], [0.4, 0.9, 0.2], [0.6, 0.5, 0.7]])


def test_cases_by_hand():
  assert metrics.average_accuracy(HAND) == pytest.approx(1.8 / 3)
  # (0.8, (0.4 + 0.9) / 2, 0.6) in the mean.
  assert metrics.anytime_average(HAND) == pytest.approx((0.8 + 0.65 + 0.6) / 3)
  # Best 0.8 and 0.9, at the end 0.6 and 0.5.
  assert metrics.forgetting(HAND) == pytest.approx((0.2 + 0.4) / 2)
  assert metrics.backward_transfer(HAND) == pytest.approx((-0.2 - 0.4) / 2)
  # 0.1 - 0.05 and 0.2 - 0.1.
  got = metrics.forward_transfer(HAND, np.array([0.5, 0.05, 0.1]))
  assert got == pytest.approx((0.05 + 0.1) / 2)


def test_forgetting_counts_from_the_best_moment():
  # Task 0 gets better with task 1, and is then lost.
  matrix = np.array([[0.5, 0, 0], [0.9, 0.6, 0], [0.3, 0.8, 0.7]])
  assert metrics.forgetting(matrix) == pytest.approx((0.6 - 0.2) / 2)
  assert metrics.backward_transfer(matrix) == pytest.approx((-0.2 + 0.2) / 2)


def sums_written_out(r, before):
  """The papers' sums, one term after another, with tasks from 1 to t."""
  t = len(r)
  a = {
    (k, j): r[k - 1][j - 1] for k in range(1, t + 1) for j in range(1, t + 1)
  }
  acc = sum(a[t, i] for i in range(1, t + 1)) / t
  bwt = sum(a[t, i] - a[i, i] for i in range(1, t)) / (t - 1)
  fwt = sum(a[i - 1, i] - before[i - 1] for i in range(2, t + 1)) / (t - 1)
  forgotten = 0.0
  for j in range(1, t):
    best = max(a[k, j] for k in range(j, t))
    forgotten += (best - a[t, j]) / (t - 1)
  anytime = 0.0
  for k in range(1, t + 1):
    for j in range(1, k + 1):
      anytime += a[k, j] / k / t
  return acc, anytime, forgotten, bwt, fwt


@pytest.mark.parametrize('seed', range(5))
def test_equals_the_sums_written_out(seed):
  rng = np.random.default_rng(seed)
  tasks = 2 + seed * 2
  matrix, before = rng.random((tasks, tasks)), rng.random(tasks)
  got = (*metrics.summary(matrix).values(),)
  got += (metrics.forward_transfer(matrix, before),)
  np.testing.assert_allclose(
    got, sums_written_out(matrix.tolist(), before.tolist()), rtol=1e-12
  )


def test_tasks_to_come_need_not_be_known():
  known = np.where(np.tri(3, dtype=bool), HAND, NAN)
  assert metrics.summary(known) == metrics.summary(HAND)
  assert np.isnan(metrics.forward_transfer(known, np.zeros(3)))


def test_a_single_task_forgets_nothing_that_could_be_measured():
  found = metrics.summary(np.array([[0.5]]))
  assert found['average_accuracy'] == found['anytime_average'] == 0.5
  assert np.isnan(found['forgetting']) and np.isnan(found['backward_transfer'])


@pytest.mark.parametrize(
  ('matrix', 'message'),
  [
    (np.zeros((2, 3)), r'shape \(2, 3\)'),
    (np.zeros((0, 0)), r'shape \(0, 0\)'),
    (np.zeros(4), r'shape \(4,\)'),
    (np.array([[1, 0], [NAN, 1]]), 'that was seen is NaN'),
  ],
)
def test_refuses(matrix, message):
  with pytest.raises(ValueError, match=message):
    metrics.summary(matrix)
  with pytest.raises(ValueError, match='an accuracy for each'):
    metrics.forward_transfer(HAND, np.zeros(2))
