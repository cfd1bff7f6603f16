"""How far a mean over examples may be from that over all examples.

The confidence is 95%: of 95 in 100 sets of examples, the interval holds the
mean over all that could be drawn.
"""

from collections.abc import Sequence
import math
import statistics
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
# Standard deviations of a normal distribution within which that much is.
_DEVIATIONS = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Estimate(NamedTuple):
  """A value with its interval.

  Attributes:
    value: over the examples.
    low: end of the interval; None: none is known.
    high: its other end.
  """

  value: float
  low: float | None = None
  high: float | None = None


def of_share(share: float, number: int) -> Estimate:
  """A mean of values in [0, 1], with Wilson's interval.

  `Choice:` the same for values between 0 and 1, whose variance is never larger
  than that of 0 and 1 with the same mean: the interval is then too wide rather
  than too narrow.

  Args:
    share: the mean.
    number: of independent values.
  """
  z2 = _DEVIATIONS**2
  centre = (share + z2 / (2 * number)) / (1 + z2 / number)
  half = math.sqrt(share * (1 - share) / number + z2 / (4 * number**2))
  half *= _DEVIATIONS / (1 + z2 / number)
  # Rounding must not put the mean outside.
  return Estimate(
    share,
    min(share, max(0.0, centre - half)),
    max(share, min(1.0, centre + half)),
  )


def of_mean(values: Sequence[float]) -> Estimate:
  """The mean of independent values, with the normal interval; None of one."""
  mean = float(np.mean(values))
  if len(values) < 2:
    return Estimate(mean)
  error = statistics.stdev(values) / math.sqrt(len(values))
  return Estimate(mean, mean - _DEVIATIONS * error, mean + _DEVIATIONS * error)
