"""When a model is evaluated, and on how much."""

import dataclasses

from hope.fields import field


@dataclasses.dataclass(frozen=True)
class EvalsOptions:
  """When a model is evaluated, and on how much."""

  every: int = field(100, 'Interval of evaluations.', unit='updates', minimum=1)
  batches: int = field(
    16, 'Batches of one evaluation.', minimum=1, maximum=2**20
  )
