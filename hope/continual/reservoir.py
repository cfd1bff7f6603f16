"""A fixed number of examples, each of the stream being as likely to be kept.

Algorithm R of Vitter (1985): example i (from 0) takes the place of a random one
of `capacity` kept with probability capacity / (i + 1). The memory of experience
replay in Chaudhry et al. (2019, arXiv:1902.10486).
"""

import numpy as np

from hope.continual.learner import Rows, take


class Reservoir:
  """Rows that are kept.

  Attributes:
    rows: arrays [capacity, ...] by name, of which the first `filled` count.
    seen: examples of the stream so far.
  """

  def __init__(self, like: Rows, capacity: int):
    """Makes an empty reservoir.

    Args:
      like: rows of the shapes [..., ...] and dtypes that will come.
      capacity: most rows that are kept.
    """
    self.rows = {
      name: np.zeros((capacity, *x.shape[1:]), x.dtype)
      for name, x in like.items()
    }
    self.capacity, self.seen = capacity, 0

  @property
  def filled(self) -> int:
    """Rows that are kept."""
    return min(self.seen, self.capacity)

  def add(self, rows: Rows, rng: np.random.Generator) -> None:
    """Offers rows, in their order."""
    for i in range(len(next(iter(rows.values())))):
      place = self.seen
      if place >= self.capacity:
        place = int(rng.integers(self.seen + 1))
      if place < self.capacity:
        for name, x in self.rows.items():
          x[place] = rows[name][i]
      self.seen += 1

  def draw(self, number: int, rng: np.random.Generator) -> Rows:
    """At most `number` of the rows that are kept, each at most once."""
    number = min(number, self.filled)
    return take(self.rows, rng.choice(self.filled, number, replace=False))

  def state(self) -> dict[str, Rows | np.ndarray]:
    """Arrays of their own."""
    rows = {name: x.copy() for name, x in self.rows.items()}
    return {'rows': rows, 'seen': np.array(self.seen, np.int32)}

  def restore(self, state) -> None:
    """Goes on from a state."""
    self.rows = {name: np.array(x) for name, x in state['rows'].items()}
    self.seen = int(state['seen'])
