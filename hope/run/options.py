"""What a run keeps, and when: read without the libraries that write it."""

import dataclasses

from hope.fields import field


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
  """When checkpoints are written, and which are kept."""

  every: int = field(50, 'Interval of checkpoints.', unit='updates', minimum=1)
  keep: int = field(3, 'Newest checkpoints kept.', minimum=1)
  keep_every: int = field(
    0,
    'Also keep checkpoints at multiples of this step (0: off).',
    unit='updates',
    minimum=0,
  )
  keep_best: int = field(
    0,
    'Also keep so many checkpoints of the lowest held-out loss, where it was '
    'evaluated at their step.',
    minimum=0,
  )


@dataclasses.dataclass(frozen=True)
class LogOptions:
  """When numbers are written."""

  every: int = field(10, 'Interval of log lines.', unit='updates', minimum=1)
