"""What a protocol asks of a learner, and a learner of a model.

A learner has a model and a rule by which it learns. All rules of
`hope.continual.learners` are of one `Model`, so that they differ in nothing
else.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
import optax

# A query and its class, as in `hope.tasks.datasets.intents`; a text; or a text
# and its translation.
Example = TypeVar('Example', contravariant=True)
# Examples as a model takes them: arrays [n, ...] by name.
Rows = dict[str, np.ndarray]


class Learner(Protocol[Example]):
  """Learns batches of examples in turn, each of them once."""

  def learn(self, batch: Sequence[Example]) -> None:
    """Learns a batch."""

  def end_segment(self) -> None:
    """Is told, while it learns, that other examples come next.

    It is never told what examples to predict belong to.
    """

  def state(self) -> Any:
    """All that learning changes: a tree of arrays, always of one shape."""

  def restore(self, state: Any) -> None:
    """Goes on from a state of a learner like this one."""


class Classifier(Learner[tuple[str, int]], Protocol):
  """A learner of queries and their classes."""

  def scores(self, texts: Sequence[str]) -> np.ndarray:
    """How well each class fits, float [n, classes]; the greatest is the best.

    -inf stands for classes that the learner cannot predict.
    """


class Predictor(Learner[Example], Protocol):
  """A learner that is measured by its loss."""

  def loss(self, examples: Sequence[Example]) -> float:
    """Nats per target."""


@dataclasses.dataclass(frozen=True)
class Model:
  """A model as pure functions of its parameters.

  Attributes:
    params: before it learned anything, a tree of float32 arrays.
    optimizer: of its parameters.
    encode: (examples) -> rows, those of no example included. Rows of queries
      have 'label', int32 [n].
    losses: (params, rows) -> (nats [n], targets [n]): of each example the sum
      over what is to be predicted, and how much that is.
    scores: (params, rows) -> [n, classes]. None: it has no classes.
    features: (params, rows) -> [n, d]. None: it has none.
  """

  params: Any
  optimizer: optax.GradientTransformation
  encode: Callable[[Sequence[Any]], Rows]
  losses: Callable[[Any, Any], tuple[jax.Array, jax.Array]]
  scores: Callable[[Any, Any], jax.Array] | None = None
  features: Callable[[Any, Any], jax.Array] | None = None


def take(rows: Rows, indices: Any) -> Rows:
  """Some of the rows."""
  return {name: x[indices] for name, x in rows.items()}


def join(*parts: Rows) -> Rows:
  """Rows after rows."""
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }


def size(rows: Rows) -> int:
  """How many rows there are."""
  return len(next(iter(rows.values())))
