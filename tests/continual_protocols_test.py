"""Protocols: learners whose course is known, and processes that are killed."""

import json
import math
import pathlib

import numpy as np
import pytest

from hope.continual import protocols
from hope.continual.following import Journal, Segment, follow
from hope.tasks.datasets.intents import Intents

CLASSES = 6
GROUPS = ((0, 3), (1, 4), (2, 5))


def made_up():
  """Six classes in three groups; the text of a query names its class."""
  train = [(f'{y} {i}', y) for i in range(10) for y in range(CLASSES)]
  test = [(f'{y} test {i}', y) for i in range(3) for y in range(CLASSES)]
  return Intents(
    train=tuple(train),
    validation=(),
    test=tuple(test),
    classes=tuple('abcdef'),
    groups=GROUPS,
  )


class Fake:
  """Knows what it learned last: the classes of so many examples."""

  def __init__(self, span=None, stops_at=None):
    self.seen, self.span, self.stops_at = [], span, stops_at
    self.ended = 0

  def learn(self, batch):
    if self.stops_at is not None and len(self.seen) >= self.stops_at:
      raise KeyboardInterrupt
    self.seen += batch

  def end_segment(self):
    self.ended += 1

  def state(self):
    seen = np.full((100, 2), -1)
    for i, (text, y) in enumerate(self.seen):
      seen[i] = y, int(text.split()[-1])
    return {'seen': seen}

  def restore(self, state):
    seen = np.asarray(state['seen']).tolist()
    self.seen = [(f'{y} {i}', y) for y, i in seen if y >= 0]

  def scores(self, texts):
    last = self.seen if self.span is None else self.seen[-self.span :]
    known = {y for _, y in last}
    scores = np.zeros((len(texts), CLASSES))
    for i, text in enumerate(texts):
      y = int(text.split()[0])
      scores[i, y] = float(y in known)
    return scores


def run(learner, seed=0, **options):
  return protocols.class_incremental(
    learner, made_up(), seed, batch=4, **options
  )


# ----------------------------------------------------------- class-incremental


def test_a_learner_that_forgets_nothing():
  result = run(Fake())
  assert (result.accuracy[np.tri(3, dtype=bool)] == 1).all()
  found = result.metrics()
  assert found['average_accuracy'] == found['anytime_average'] == 1
  assert found['forgetting'] == found['backward_transfer'] == 0


def test_a_learner_that_knows_the_last_task_alone():
  result = run(Fake(span=20))  # a task has 20 examples
  # Of the others it has to guess: among 2 + 2, 2 + 2 + 2, and all classes.
  wanted = np.array(
    [[1, math.nan, math.nan], [1 / 4, 1, math.nan], [1 / 6, 1 / 6, 1]]
  )
  np.testing.assert_allclose(result.accuracy, wanted)
  np.testing.assert_allclose(
    result.accuracy_of_all, np.where(np.eye(3), 1, 1 / 6)
  )
  np.testing.assert_allclose(result.before, 1 / 6)
  found = result.metrics()
  assert found['average_accuracy'] == pytest.approx((1 + 2 / 6) / 3)
  assert found['forgetting'] == pytest.approx(5 / 6)
  assert found['forward_transfer_of_all'] == pytest.approx(0, abs=1e-12)


def test_a_constant_answer_is_right_by_chance():
  learner = Fake()
  learner.scores = lambda texts: np.tile(np.arange(6.0), (len(texts), 1))
  result = run(learner)
  np.testing.assert_allclose(result.accuracy_of_all.mean(axis=1), 1 / 6)
  # Among the classes seen: the last task has half of its own.
  assert (result.accuracy[0, 0], result.before.mean()) == (0.5, 1 / 6)


def test_the_seed_orders_tasks_and_examples():
  orders = []
  for seed in (0, 0, 1, 2, 3):
    learner = Fake()
    result = run(learner, seed=seed)
    assert sorted(learner.seen) == sorted(made_up().train)  # each once
    assert learner.ended == 3
    order = [
      set(text.split()[0] for text, _ in x)
      for x in (learner.seen[:20], learner.seen[20:40], learner.seen[40:])
    ]
    names = [{'abcdef'[int(y)] for y in group} for group in order]
    assert names == [set(names) for names in result.tasks]
    orders.append((result.tasks, tuple(learner.seen)))
  assert orders[0] == orders[1]
  assert len({tasks for tasks, _ in orders}) > 2
  # Not sorted by class within a task.
  assert len({y for _, y in orders[0][1][:10]}) == 2


def test_the_result_is_json():
  content = json.loads(json.dumps(run(Fake(span=20)).to_dict()))
  assert content['accuracy'][0] == [1, None, None]
  assert content['metrics']['average_accuracy'] == pytest.approx(4 / 9)


def test_a_learner_that_diverged_is_refused():
  learner = Fake()
  learner.scores = lambda texts: np.full((len(texts), CLASSES), np.nan)
  with pytest.raises(ValueError, match='After 0 tasks the scores are NaN'):
    run(learner)


# --------------------------------------------------------------------- journal


@pytest.mark.parametrize('stops_at', [0, 13, 20, 56])
def test_goes_on_where_it_was_killed(stops_at, tmp_path):
  whole = run(Fake(span=30))
  with pytest.raises(KeyboardInterrupt):
    killed = Fake(span=30, stops_at=stops_at)
    run(killed, journal=Journal(tmp_path, {'seed': 0}))
  learner = Fake(span=30)
  result = run(learner, journal=Journal(tmp_path, {'seed': 0}))
  assert result.to_dict() == whole.to_dict()
  # Segments that were done are not learned again.
  assert learner.ended == 3 - stops_at // 20
  again = Fake(span=30)
  done = run(again, journal=Journal(tmp_path, {'seed': 0}))
  assert done.to_dict() == whole.to_dict() and again.ended == 0
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ['record.json', 'state-4.npz']


def test_is_killed_while_it_writes(tmp_path, monkeypatch):
  whole, replace = run(Fake(span=30)), pathlib.Path.replace

  def killed(path, target):
    if (tmp_path / 'state-3.npz').exists() and target.name == 'record.json':
      raise KeyboardInterrupt
    return replace(path, target)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
      run(Fake(span=30), journal=Journal(tmp_path, {}))
  learner = Fake(span=30)
  result = run(learner, journal=Journal(tmp_path, {}))
  assert result.to_dict() == whole.to_dict() and learner.ended == 2


def test_a_journal_is_of_one_learner(tmp_path):
  run(Fake(), journal=Journal(tmp_path, {'seed': 0}))
  with pytest.raises(ValueError, match='other options or data'):
    Journal(tmp_path, {'seed': 1})
  other = Fake()
  other.state = lambda: {'seen': np.zeros(3)}
  with pytest.raises(ValueError, match='no state of this learner'):
    run(other, journal=Journal(tmp_path, {'seed': 0}))


def test_reports_what_is_done():
  said = []
  segments = [Segment('a', list(range(5))), Segment('b', list(range(3)))]
  learner = Fake()
  moments = follow(
    learner,
    segments,
    lambda learned: [learned],
    batch=2,
    every=2,
    report=lambda done, values: said.append((done, values)),
  )
  assert said == [
    *((0, [0]), (2, None), (4, None), (5, None), (5, [1])),
    *((7, None), (8, None), (8, [2])),
  ]
  assert [x.course for x in moments] == [[], [(4, [1])], [(3, [2])]]


# -------------------------------------------------------- sequential, returning


class Distance:
  """A number that moves half the way to each example; the loss is how far."""

  def __init__(self):
    self.place = 0.0

  def learn(self, batch):
    for x in batch:
      self.place += (x - self.place) / 2

  def end_segment(self):
    pass

  def loss(self, examples):
    return float(np.mean([abs(x - self.place) for x in examples]))


def test_languages_in_sequence_and_alone():
  languages = {'a': ([1.0] * 3, [1.0]), 'b': ([-1.0] * 2, [-1.0])}
  result = protocols.sequential(Distance, languages, seed=0, batch=1)
  # 0, then 7/8, then -1/16 and -17/32.
  np.testing.assert_allclose(
    result.loss, [[1, 1], [1 / 8, 15 / 8], [49 / 32, 15 / 32]]
  )
  np.testing.assert_allclose(result.alone, [1 / 8, 1 / 4])
  assert result.metrics() == {
    'forgotten/a': 49 / 32 - 1 / 8,
    'against_alone/a': 49 / 32 - 1 / 8,
    'forgotten/b': 0,
    'against_alone/b': 15 / 32 - 1 / 4,
  }
  json.dumps(result.to_dict())


def test_domains_that_return():
  domains = {'a': ([1.0] * 7, [1.0]), 'b': ([-1.0] * 5, [-1.0])}
  result = protocols.returning(Distance(), domains, visits=2, every=1, batch=1)
  assert result.visits == ('a', 'b', 'a', 'b')
  place, ends, regained = 0.0, [0.0], {}
  for k, (x, number) in enumerate([(1, 3), (-1, 2), (1, 4), (-1, 3)]):
    for i in range(number):
      place += (x - place) / 2
      if k >= 2 and abs(x - place) <= abs(x - ends[k - 1]):
        regained.setdefault(k, i + 1)
    ends.append(place)
  wanted = [[1 - x, abs(-1 - x)] for x in ends]
  np.testing.assert_allclose(result.loss, wanted)
  back_a, back_b = result.returns()
  assert (back_a['domain'], back_a['segment']) == ('a', 2)
  assert back_a['lost'] == pytest.approx(wanted[2][0] - wanted[1][0])
  assert back_a['gained'] == pytest.approx(wanted[1][0] - wanted[3][0])
  assert back_a['regained_after'] == regained[2] == 4
  assert (back_b['domain'], back_b['regained_after']) == ('b', regained.get(3))
  json.dumps(result.to_dict())


def test_a_domain_that_is_not_regained():
  domains = {'a': ([1.0] * 3 + [0.0] * 3, [1.0]), 'b': ([-1.0] * 6, [-1.0])}
  result = protocols.returning(Distance(), domains, visits=2, every=2, batch=1)
  assert result.returns()[0]['regained_after'] is None
  # Ends of segments are measured too, where `every` does not divide them.
  assert [seen for seen, _ in result.courses[0]] == [2, 3]


def test_refuses_what_cannot_return():
  domains = {'a': ([1.0], [1.0]), 'b': ([2.0] * 2, [2.0])}
  with pytest.raises(ValueError, match='visits=1: no domain returns'):
    protocols.returning(Distance(), domains, visits=1, every=1, batch=1)
  with pytest.raises(ValueError, match="'a' has 1 texts for 2 visits"):
    protocols.returning(Distance(), domains, visits=2, every=1, batch=1)
