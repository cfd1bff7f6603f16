"""Nearest class mean: features do not change, and their means do not forget.

The classifier of Mensink et al. (2013, PAMI 35) with Euclidean distance. What
it knows after all classes does not depend on their order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Means(NamedTuple):
  """What is kept of the examples.

  Attributes:
    sums: float32 [classes, d], of the features of each class.
    counts: float32 [classes], examples of each class.
  """

  sums: jax.Array
  counts: jax.Array


def add(
  means: Means, features: jax.Array, labels: jax.Array, counted: jax.Array
) -> Means:
  """Counts more examples.

  Args:
    means: of those before.
    features: float [n, d].
    labels: int [n].
    counted: float [n], 1 for an example and 0 for padding.
  """
  return Means(
    means.sums.at[labels].add(counted[:, None] * features),
    means.counts.at[labels].add(counted),
  )


def scores(means: Means, features: jax.Array) -> jax.Array:
  """-1/2 squared distance to each mean; -inf for classes without examples.

  Args:
    means: of what was seen.
    features: float [n, d].

  Returns:
    [n, classes].
  """
  known = means.counts > 0
  center = means.sums / jnp.where(known, means.counts, 1)[:, None]
  found = features @ center.T - 0.5 * (
    (center**2).sum(-1) + (features**2).sum(-1)[:, None]
  )
  return jnp.where(known, found, -jnp.inf)
