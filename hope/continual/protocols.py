"""Three protocols: classes that come in turn, languages, domains that return.

Each gives a result that JSON can hold (`to_dict`), and the same one for the
same learner and seed.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from hope.continual import metrics
from hope.continual.following import Moment, Segment, follow
from hope.continual.learner import Classifier, Predictor
from hope.tasks.datasets.intents import Intents

# ----------------------------------------------------------- class-incremental


@dataclasses.dataclass(frozen=True)
class ClassIncremental:
  """What a learner of classes in turn knew after each task.

  Row i is after task i, column j of the test examples of task j, in the order
  in which tasks were learned.

  Attributes:
    tasks: names of their classes, in that order.
    accuracy: float64 [n, n], where the learner predicts among the classes of
      tasks 0 to i; NaN for tasks to come.
    accuracy_of_all: float64 [n, n], where it predicts among all classes.
    before: float64 [n], among all classes, before the first task.
  """

  tasks: tuple[tuple[str, ...], ...]
  accuracy: np.ndarray
  accuracy_of_all: np.ndarray
  before: np.ndarray

  def metrics(self) -> dict[str, float]:
    """Of `hope.continual.metrics`, by name; of all classes as 'NAME_of_all'."""
    of_all = metrics.summary(self.accuracy_of_all)
    of_all['forward_transfer'] = metrics.forward_transfer(
      self.accuracy_of_all, self.before
    )
    return metrics.summary(self.accuracy) | {
      f'{name}_of_all': value for name, value in of_all.items()
    }

  def to_dict(self) -> dict[str, Any]:
    """For a file: None for NaN."""
    return {
      'metrics': _plain(self.metrics()),
      'accuracy': _plain(self.accuracy.tolist()),
      'accuracy_of_all': _plain(self.accuracy_of_all.tolist()),
      'before': _plain(self.before.tolist()),
      'tasks': [list(names) for names in self.tasks],
    }


def class_segments(intents: Intents, seed: int) -> list[Segment]:
  """The tasks in the order of a seed; so are the examples within each."""
  rng = np.random.default_rng(seed)
  segments = []
  for i in rng.permutation(len(intents.groups)).tolist():
    group = set(intents.groups[i])
    found = [x for x in intents.train if x[1] in group]
    order = rng.permutation(len(found)).tolist()
    segments.append(Segment(str(i), [found[k] for k in order]))
  return segments


def class_incremental(
  learner: Classifier, intents: Intents, seed: int, **options: Any
) -> ClassIncremental:
  """Learns groups of classes in turn, in one pass; labels of tasks are unknown.

  Choice: accuracy is of predictions among the classes seen so far, as in
  class-incremental learning by van de Ven and Tolias (2019, arXiv:1904.07734);
  that among all classes, which a learner that knows their names can be asked
  before it has seen them, is given beside it. The paper does not say which.

  Args:
    learner: of the classes' indices.
    intents: the data; `groups` are the tasks.
    seed: of the order of tasks, and of the examples within each.
    **options: of `follow`: batch, every, journal, report.
  """
  segments = class_segments(intents, seed)
  groups = [list(intents.groups[int(x.name)]) for x in segments]
  task_of = {label: j for j, group in enumerate(groups) for label in group}
  texts = [text for text, _ in intents.test]
  labels = np.array([label for _, label in intents.test])
  tasks = np.array([task_of[label] for label in labels.tolist()])

  def measure(learned: int) -> dict[str, list[float]]:
    scores = learner.scores(texts)
    if np.isnan(scores).any():
      raise ValueError(
        f'After {learned} tasks the scores are NaN: the learner diverged; '
        'lower its learning rate, or its penalty.'
      )
    seen = np.isin(np.arange(scores.shape[1]), sum(groups[:learned], []))
    among_seen = np.where(seen, scores, -np.inf)
    return {
      name: _by_task(_right(found, labels), tasks, len(groups))
      for name, found in (('seen', among_seen), ('all', scores))
    }

  moments = follow(learner, segments, measure, **options)
  known = np.tri(len(groups), dtype=bool)
  seen, of_all = (
    np.array([moment.values[name] for moment in moments])
    for name in ('seen', 'all')
  )
  return ClassIncremental(
    tasks=tuple(tuple(intents.classes[c] for c in group) for group in groups),
    accuracy=np.where(known, seen[1:], np.nan),
    accuracy_of_all=of_all[1:],
    before=of_all[0],
  )


def _right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Whether the label [n] has the greatest of scores [n, classes].

  What cannot be told apart counts as a guess: a share of 1. So a learner that
  knows nothing is right by chance, and not where the first class is.
  """
  best = scores == scores.max(axis=1, keepdims=True)
  return best[np.arange(len(labels)), labels] / best.sum(axis=1)


def _by_task(right: np.ndarray, tasks: np.ndarray, number: int) -> list[float]:
  """Means of right [n] by the tasks [n] of the examples."""
  return [float(right[tasks == j].mean()) for j in range(number)]


# ------------------------------------------------------------------ sequential


@dataclasses.dataclass(frozen=True)
class Sequential:
  """What a learner of languages in turn lost of each.

  Attributes:
    names: of the languages, in the order in which they were learned.
    loss: float64 [n + 1, n], nats per target on each, before the first and
      after each.
    alone: float64 [n], of a learner that learned this one alone.
  """

  names: tuple[str, ...]
  loss: np.ndarray
  alone: np.ndarray

  def metrics(self) -> dict[str, float]:
    """What was lost since it was learned, and against learning it alone.

    'forgotten/NAME' is the loss at the end less that right after NAME,
    'against_alone/NAME' the loss at the end less that of NAME alone.
    """
    found = {}
    for j, name in enumerate(self.names):
      found[f'forgotten/{name}'] = self.loss[-1, j] - self.loss[j + 1, j]
      found[f'against_alone/{name}'] = self.loss[-1, j] - self.alone[j]
    return {name: float(x) for name, x in found.items()}

  def to_dict(self) -> dict[str, Any]:
    """For a file."""
    return {
      'metrics': self.metrics(),
      'names': list(self.names),
      'loss': self.loss.tolist(),
      'alone': self.alone.tolist(),
    }


def sequential(
  start: Callable[[], Predictor],
  languages: Mapping[str, tuple[Sequence[Any], Sequence[Any]]],
  seed: int,
  **options: Any,
) -> Sequential:
  """Learns languages in the order given, in one pass, and each one alone.

  Args:
    start: makes a learner that has learned nothing.
    languages: (examples to learn, examples to measure) by name.
    seed: of the order of examples within a language.
    **options: of `follow`: batch, every, report; journal is of the sequence.
  """
  rng = np.random.default_rng(seed)
  segments = []
  for name, (train, _) in languages.items():
    order = rng.permutation(len(train)).tolist()
    segments.append(Segment(name, [train[k] for k in order]))
  learner = start()

  def measure(learned: int) -> list[float]:
    del learned
    return [learner.loss(test) for _, test in languages.values()]

  moments = follow(learner, segments, measure, **options)
  alone = []
  for j, segment in enumerate(segments):
    if j == 0:  # it was learned alone at first
      alone.append(moments[1].values[0])
      continue
    other, test = start(), languages[segment.name][1]
    found = follow(
      other,
      [segment],
      lambda _, other=other, test=test: other.loss(test),
      batch=options['batch'],
    )
    alone.append(found[-1].values)
  return Sequential(
    names=tuple(languages),
    loss=np.array([moment.values for moment in moments]),
    alone=np.array(alone),
  )


# ------------------------------------------------------------------- returning


@dataclasses.dataclass(frozen=True)
class Returning:
  """What a learner kept of domains of text that return.

  Attributes:
    names: of the domains.
    visits: the domain of each segment.
    loss: float64 [segments + 1, domains], nats per target on each domain,
      before the first segment and after each.
    courses: of each segment, (examples so far, losses) within it and at its
      end.
  """

  names: tuple[str, ...]
  visits: tuple[str, ...]
  loss: np.ndarray
  courses: tuple[tuple[tuple[int, tuple[float, ...]], ...], ...]

  def returns(self) -> list[dict[str, Any]]:
    """What was lost and regained at each return of a domain.

    Of each: 'domain'; 'segment', its index; 'lost', the loss before the return
    less that after the visit before; 'regained_after', the examples of the
    segment after which the loss is first no more than after the visit before
    (None: it never is); 'gained', the loss after the visit before less that
    after this one.
    """
    last: dict[str, int] = {}
    found = []
    for k, name in enumerate(self.visits):
      if name in last:
        j = self.names.index(name)
        earlier = float(self.loss[last[name] + 1, j])
        again = [seen for seen, x in self.courses[k] if x[j] <= earlier]
        found.append(
          {
            'domain': name,
            'segment': k,
            'lost': float(self.loss[k, j]) - earlier,
            'regained_after': again[0] if again else None,
            'gained': earlier - float(self.loss[k + 1, j]),
          }
        )
      last[name] = k
    return found

  def to_dict(self) -> dict[str, Any]:
    """For a file."""
    return {
      'returns': self.returns(),
      'names': list(self.names),
      'visits': list(self.visits),
      'loss': self.loss.tolist(),
      'courses': [
        [[seen, list(x)] for seen, x in course] for course in self.courses
      ],
    }


def returning(
  learner: Predictor,
  domains: Mapping[str, tuple[Sequence[str], Sequence[str]]],
  visits: int,
  every: int,
  **options: Any,
) -> Returning:
  """Learns domains in turn, again and again: A B A B for two visits of two.

  Every visit brings new texts of the domain.

  Args:
    learner: of texts.
    domains: (texts to learn, texts to measure) by name; the former are cut into
      as many equal parts as there are visits.
    visits: of each domain, at least 2.
    every: batches between two measurements.
    **options: of `follow`: batch, journal, report.

  Raises:
    ValueError: for fewer visits, or a domain of fewer texts.
  """
  if visits < 2:
    raise ValueError(f'visits={visits}: no domain returns; give at least 2.')
  for name, (train, _) in domains.items():
    if len(train) < visits:
      raise ValueError(
        f'The domain {name!r} has {len(train)} texts for {visits} visits; give '
        'more texts.'
      )
  segments = [
    Segment(
      name, train[i * len(train) // visits : (i + 1) * len(train) // visits]
    )
    for i in range(visits)
    for name, (train, _) in domains.items()
  ]

  def measure(learned: int) -> list[float]:
    del learned
    return [learner.loss(test) for _, test in domains.values()]

  moments = follow(learner, segments, measure, every=every, **options)
  return Returning(
    names=tuple(domains),
    visits=tuple(x.name for x in segments),
    loss=np.array([moment.values for moment in moments]),
    courses=tuple(
      _course(moment, len(segment.examples))
      for moment, segment in zip(moments[1:], segments, strict=True)
    ),
  )


def _course(
  moment: Moment, examples: int
) -> tuple[tuple[int, tuple[float, ...]], ...]:
  """(examples so far, losses) within a segment and at its end."""
  found = {seen: tuple(x) for seen, x in moment.course}
  found[examples] = tuple(moment.values)
  return tuple(found.items())


def _plain(value: Any) -> Any:
  """The same with None for NaN, at any depth."""
  if isinstance(value, dict):
    return {name: _plain(x) for name, x in value.items()}
  if isinstance(value, list):
    return [_plain(x) for x in value]
  return None if isinstance(value, float) and np.isnan(value) else value
