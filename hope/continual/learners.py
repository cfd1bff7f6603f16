"""Learners: one model, and seven rules by which it learns a stream in one pass.

  frozen      learns nothing: what the model knows beforehand.
  class_mean  the nearest mean of each class' features; parameters stay.
  naive       one update for each batch, and nothing against forgetting.
  replay      the same with as many examples of a reservoir in every update.
  ewc         naive with a penalty on what mattered to earlier segments.
  online_ewc  the same with one penalty, at the last segment's parameters.
  joint       trains from the start on all that was seen, after each segment:
              no continual learner, but what one may be measured by.

How a model answers and what its optimizer is are the model's own.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope.continual import class_mean, ewc
from hope.continual.learner import Model, Rows, join, size, take
from hope.continual.options import LearnerOptions
from hope.continual.reservoir import Reservoir
from hope.fields import nearest

# What a random draw is for.
_KEEP, _DRAW, _ORDER = range(3)


class Frozen:
  """Learns nothing; the other rules are this one and more."""

  def __init__(self, model: Model, options: LearnerOptions, seed: int):
    """Starts at the parameters of the model.

    Args:
      model: that learns.
      options: of the rule.
      seed: of what is drawn.
    """
    self.model, self.options = model, options
    self.params = model.params
    self._seed, self._drawn = seed, 0
    self._losses = jax.jit(_summed(model))
    self._scores = jax.jit(model.scores or _no_scores)

  def learn(self, batch: Sequence[Any]) -> None:
    """Learns a batch, in updates of `options.batch` examples."""
    for start in range(0, len(batch), self.options.batch):
      part = batch[start : start + self.options.batch]
      self._learn(self.model.encode(part))

  def end_segment(self) -> None:
    """Is told that other examples come next."""

  def scores(self, texts: Sequence[str]) -> np.ndarray:
    """How well each class fits, float [n, classes]."""
    rows = self.model.encode([(text, 0) for text in texts])
    found = [
      np.asarray(self._score(part))[: int(counted.sum())]
      for part, counted in _padded(rows, self.options.score_batch)
    ]
    return np.concatenate(found)

  def loss(self, examples: Sequence[Any]) -> float:
    """Nats per target."""
    rows = self.model.encode(examples)
    sums = [
      jax.device_get(self._losses(self.params, part, counted))
      for part, counted in _padded(rows, self.options.score_batch)
    ]
    nats, targets = np.sum(np.array(sums, np.float64), axis=0)
    return float(nats / targets)

  def state(self) -> Any:
    """All that learning changes."""
    return {'drawn': np.array(self._drawn, np.int32)}

  def restore(self, state: Any) -> None:
    """Goes on from a state."""
    self._drawn = int(state['drawn'])

  def _learn(self, rows: Rows) -> None:
    """Makes an update."""

  def _score(self, rows: Rows) -> jax.Array:
    return self._scores(self.params, rows)

  def _rng(self, purpose: int) -> np.random.Generator:
    """A generator of its own for each draw, so that none has a state."""
    self._drawn += 1
    return np.random.default_rng((self._seed, purpose, self._drawn))


class ClassMean(Frozen):
  """Keeps the mean of the features of each class."""

  def __init__(self, model: Model, options: LearnerOptions, seed: int):
    super().__init__(model, options, seed)
    if model.features is None or model.scores is None:
      raise ValueError(
        "rule='class_mean' needs a model with classes and features."
      )
    rows = model.encode([('', 0)])
    classes = jax.eval_shape(model.scores, model.params, rows).shape[1]
    width = jax.eval_shape(model.features, model.params, rows).shape[1]
    self._means = class_mean.Means(
      jnp.zeros((classes, width)), jnp.zeros(classes)
    )

    def add(means, params, rows, counted):
      features = model.features(params, rows)
      return class_mean.add(means, features, rows['label'], counted)

    def score(means, params, rows):
      return class_mean.scores(means, model.features(params, rows))

    self._add, self._nearest = jax.jit(add), jax.jit(score)

  def state(self) -> Any:
    """All that learning changes."""
    return super().state() | {'means': self._means}

  def restore(self, state: Any) -> None:
    """Goes on from a state."""
    super().restore(state)
    self._means = state['means']

  def _learn(self, rows: Rows) -> None:
    for part, counted in _padded(rows, self.options.batch):
      self._means = self._add(self._means, self.params, part, counted)

  def _score(self, rows: Rows) -> jax.Array:
    return self._nearest(self._means, self.params, rows)


class Naive(Frozen):
  """Updates the parameters with each batch."""

  def __init__(self, model: Model, options: LearnerOptions, seed: int):
    super().__init__(model, options, seed)
    self._opt_state = model.optimizer.init(model.params)
    self._step = jax.jit(_update(model, options.penalty))

  def state(self) -> Any:
    """All that learning changes."""
    return super().state() | {
      'params': self.params,
      'optimizer': self._opt_state,
    }

  def restore(self, state: Any) -> None:
    """Goes on from a state."""
    super().restore(state)
    self.params, self._opt_state = state['params'], state['optimizer']

  def _learn(self, rows: Rows) -> None:
    self._update(rows, self.options.batch)

  def _update(self, rows: Rows, height: int) -> None:
    """Makes an update with rows, padded to a height."""
    for part, counted in _padded(rows, height):
      self.params, self._opt_state = self._step(
        self.params, self._opt_state, part, counted, self._against()
      )

  def _against(self) -> ewc.Penalty | None:
    """The penalty of an update; None: none."""
    return None


class Replay(Naive):
  """Updates with new examples and as many of those that it keeps."""

  def __init__(self, model: Model, options: LearnerOptions, seed: int):
    super().__init__(model, options, seed)
    self._kept = Reservoir(model.encode([]), options.buffer)

  def state(self) -> Any:
    """All that learning changes."""
    return super().state() | {'kept': self._kept.state()}

  def restore(self, state: Any) -> None:
    """Goes on from a state."""
    super().restore(state)
    self._kept.restore(state['kept'])

  def _learn(self, rows: Rows) -> None:
    drawn = self._kept.draw(self.options.batch, self._rng(_DRAW))
    self._update(join(rows, drawn), 2 * self.options.batch)
    self._kept.add(rows, self._rng(_KEEP))


class Ewc(Naive):
  """Updates against a penalty on what mattered to earlier segments."""

  def __init__(self, model: Model, options: LearnerOptions, seed: int):
    super().__init__(model, options, seed)
    self._penalty: ewc.Penalty = ewc.nothing(model.params)
    self._segment = self._empty()
    self._fisher = jax.jit(functools.partial(ewc.fisher, model.losses))

  def end_segment(self) -> None:
    """Adds what mattered to this segment."""
    if not self._segment.filled:
      return
    filled = np.arange(self._segment.capacity) < self._segment.filled
    counted = filled.astype(np.float32)
    found = self._fisher(self.params, self._segment.rows, counted)
    if self.options.rule == 'ewc':
      self._penalty = ewc.add_task(self._penalty, found, self.params)
    else:
      self._penalty = ewc.move(
        self._penalty, found, self.params, self.options.decay
      )
    self._segment = self._empty()

  def state(self) -> Any:
    """All that learning changes."""
    return super().state() | {
      'penalty': self._penalty,
      'segment': self._segment.state(),
    }

  def restore(self, state: Any) -> None:
    """Goes on from a state."""
    super().restore(state)
    self._penalty = state['penalty']
    self._segment.restore(state['segment'])

  def _against(self) -> ewc.Penalty:
    return self._penalty

  def _empty(self) -> Reservoir:
    return Reservoir(self.model.encode([]), self.options.fisher_examples)

  def _learn(self, rows: Rows) -> None:
    super()._learn(rows)
    self._segment.add(rows, self._rng(_KEEP))


class Joint(Naive):
  """Trains from the start, after each segment, on all that was seen."""

  def __init__(
    self, model: Model, options: LearnerOptions, seed: int, examples: int
  ):
    """Starts at the parameters of the model.

    Args:
      model: that learns.
      options: of the rule.
      seed: of what is drawn.
      examples: of the whole stream.
    """
    super().__init__(model, options, seed)
    self._seen = Reservoir(model.encode([]), examples)

  def end_segment(self) -> None:
    """Trains from the first parameters on, in `options.passes` passes."""
    self.params = self.model.params
    self._opt_state = self.model.optimizer.init(self.params)
    for _ in range(self.options.passes):
      order = self._rng(_ORDER).permutation(self._seen.filled)
      self._update(take(self._seen.rows, order), self.options.batch)

  def state(self) -> Any:
    """All that learning changes."""
    return super().state() | {'seen': self._seen.state()}

  def restore(self, state: Any) -> None:
    """Goes on from a state."""
    super().restore(state)
    self._seen.restore(state['seen'])

  def _learn(self, rows: Rows) -> None:
    if self._seen.seen + size(rows) > self._seen.capacity:
      raise ValueError(
        f'The stream has more than the {self._seen.capacity} examples that '
        'joint training was told of; give examples=, how many there are.'
      )
    self._seen.add(rows, self._rng(_KEEP))


_RULES: dict[str, type[Frozen]] = {
  'frozen': Frozen,
  'class_mean': ClassMean,
  'naive': Naive,
  'replay': Replay,
  'ewc': Ewc,
  'online_ewc': Ewc,
}


def make(
  model: Model, options: LearnerOptions, seed: int, examples: int
) -> Frozen:
  """A learner.

  Args:
    model: that learns.
    options: of the rule.
    seed: of what is drawn.
    examples: of the whole stream, which 'joint' keeps.

  Raises:
    ValueError: for an unknown rule, or one that the model cannot have.
  """
  if options.rule == 'joint':
    return Joint(model, options, seed, examples)
  if options.rule not in _RULES:
    known = [*_RULES, 'joint']
    raise ValueError(
      f'rule={options.rule!r} is unknown; choose one of {", ".join(known)}.'
      f'{nearest(options.rule, known)}'
    )
  return _RULES[options.rule](model, options, seed)


# ----------------------------------------------------------------------- parts


def _padded(rows: Rows, height: int) -> Iterator[tuple[Rows, np.ndarray]]:
  """Parts of `height` rows; the last repeats a row, which does not count.

  One compiled program then serves all parts.

  Yields:
    (rows, counted), counted float32 [height].
  """
  number = size(rows)
  for start in range(0, number, height):
    indices = np.arange(start, start + height)
    counted = (indices < number).astype(np.float32)
    yield take(rows, np.minimum(indices, number - 1)), counted


def _no_scores(params, rows) -> jax.Array:
  """[n, 0], of a model that has no classes."""
  raise ValueError('This model has no classes; ask for its loss.')


def _summed(model: Model):
  """(params, rows, counted) -> (nats [], targets []) of the rows that count."""

  def summed(params, rows, counted):
    nats, targets = model.losses(params, rows)
    return jnp.sum(counted * nats), jnp.sum(counted * targets)

  return summed


def _update(model: Model, strength: float):
  """(params, opt_state, rows, counted, penalty) -> (params, opt_state).

  The loss is the mean over targets, and the penalty by its strength.
  """
  summed = _summed(model)

  def objective(params, rows, counted, penalty):
    nats, targets = summed(params, rows, counted)
    loss = nats / jnp.maximum(targets, 1)
    if penalty is not None:
      loss += strength * ewc.value(penalty, params)
    return loss

  def update(params, opt_state, rows, counted, penalty):
    grads = jax.grad(objective)(params, rows, counted, penalty)
    updates, opt_state = model.optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return update
