"""Nearest class mean: features do not change, and their means do not forget.

The classifier of Mensink et al. (2013, PAMI 35). What it knows after all
classes does not depend on their order.
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
  """Cosines of features and means; -inf for classes without examples.

  Choice: cosine, as with the normalised means of iCaRL (Rebuffi et al., 2017,
  arXiv:1611.07725), and not Euclidean distance, which prefers classes whose
  features differ most, as their means are short.

  Args:
    means: of what was seen.
    features: float [n, d].

  Returns:
    [n, classes].
  """
  found = _unit(features) @ _unit(means.sums).T
  return jnp.where(means.counts > 0, found, -jnp.inf)


def _unit(x: jax.Array) -> jax.Array:
  """Rows of a norm of 1; rows of zeros stay."""
  norms = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.where(norms > 0, norms, 1)
