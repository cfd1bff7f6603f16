"""Intervals, against SciPy's; scores of examples in a file."""

import json
import statistics

import numpy as np
import pytest
from scipy import stats

from hope.evaluation import intervals
from hope.evaluation.score_file import ScoreFile

IDENTITY = {'task': 'qa1', 'size': 100, 'model': 'abc'}


@pytest.mark.parametrize(
  ('hits', 'number'), [(0, 1), (0, 50), (1, 3), (17, 40), (40, 40)]
)
def test_an_interval_is_that_of_scipy(hits, number):
  found = intervals.of_share(hits / number, number)
  expected = stats.binomtest(hits, number).proportion_ci(0.95, method='wilson')
  assert found.value == hits / number
  assert found[1:] == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_hold_the_mean_95_times_of_100():
  rng = np.random.default_rng(0)
  draws = rng.random((2000, 60)) < 0.3
  inside = 0
  for draw in draws:
    found = intervals.of_share(float(draw.mean()), 60)
    assert found.low is not None and found.high is not None
    inside += found.low <= 0.3 <= found.high
  assert 0.94 < inside / 2000 < 0.97


def test_values_between_0_and_1_are_never_promised_too_much():
  """Their interval is at least as wide as that of their own deviations."""
  values = np.random.default_rng(0).random(50)
  found = intervals.of_share(float(values.mean()), 50)
  assert found.low is not None and found.high is not None
  normal = intervals.of_mean(values.tolist())
  assert normal.low is not None and normal.high is not None
  assert found.low < normal.low < normal.high < found.high


def test_the_interval_of_a_mean_is_that_of_scipy():
  values = [1.0, 2.5, -3.0, 4.0]
  found = intervals.of_mean(values)
  error = statistics.stdev(values) / 2
  expected = stats.norm.interval(0.95, statistics.mean(values), error)
  assert found.value == statistics.mean(values)
  assert found[1:] == pytest.approx(expected)
  assert intervals.of_mean([2.0]) == intervals.Estimate(2.0)


# ------------------------------------------------------------- scores in a file


def fill(path, examples):
  with ScoreFile(path, IDENTITY) as file:
    for i in examples:
      file.append(i, {'accuracy': i / 10, 'output': 'a\n"é'})
    return dict(file.done)


def test_scores_are_kept_and_go_on(tmp_path):
  path = tmp_path / 'evals' / 'qa1.jsonl'
  first = fill(path, [3, 1])
  assert fill(path, [1, 2]) == {
    **first,
    2: {'accuracy': 0.2, 'output': 'a\n"é'},
  }
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines[0] == IDENTITY
  assert [line['example'] for line in lines[1:]] == [3, 1, 2]


def test_a_kill_at_any_byte_loses_a_line_at_most(tmp_path):
  path = tmp_path / 'qa1.jsonl'
  whole = fill(path, [0, 1, 2])
  content = path.read_bytes()
  for size in range(len(content) + 1):
    path.write_bytes(content[:size])
    kept = fill(path, [])
    ends = content[:size].count(b'\n')
    assert kept == {i: whole[i] for i in range(max(0, ends - 1))}
    assert fill(path, [0, 1, 2]) == whole
    assert path.read_bytes() == content


def test_scores_of_something_else_are_refused(tmp_path):
  path = tmp_path / 'qa1.jsonl'
  fill(path, [0])
  content = path.read_bytes()
  with pytest.raises(ValueError, match="model is 'abc' there and 'xyz' here"):
    ScoreFile(path, IDENTITY | {'model': 'xyz'})
  with pytest.raises(ValueError, match='size is 100 there and 200 here'):
    ScoreFile(path, IDENTITY | {'size': 200})
  assert path.read_bytes() == content
  for text in ('a text', 'a text\n', '{}\n', '3\n'):
    path.write_text(text)
    with pytest.raises(ValueError, match='holds no scores of examples'):
      ScoreFile(path, IDENTITY)
    assert path.read_text() == text
  path.write_bytes(content + b'{"example": "x"}\n')
  with pytest.raises(ValueError, match='a line that is no score'):
    ScoreFile(path, IDENTITY)
