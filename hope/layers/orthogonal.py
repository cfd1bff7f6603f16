"""Orthogonal initial matrices, by matrix products alone."""

import jax
from jax.nn import initializers

from optimizers import orthogonalization

# Singular values above 1e-6 of the norm end within [0.7, 1.3], then at 1.
_STEPS = 12 * (orthogonalization.COEFFICIENTS,) + 6 * ((1.5, -0.5, 0.0),)


def orthogonal(scale: float = 1.0) -> initializers.Initializer:
  """An initializer of matrices whose shorter side is orthonormal, times scale.

  A draw is the polar factor of a normal matrix, which is distributed evenly
  over all of them. The initializer of this name in jax computes a QR
  decomposition, and several of those in a program for two CPU devices, on a
  machine of two cores, wait for each other for ever (jax 0.10.2).

  Args:
    scale: of every singular value.

  Returns:
    (key, shape [..., m, n], dtype) -> matrices of that shape.
  """

  def init(key, shape, dtype=None, out_sharding=None) -> jax.Array:
    x = jax.random.normal(key, shape, dtype, out_sharding=out_sharding)
    with jax.default_matmul_precision('float32'):
      return scale * orthogonalization.newton_schulz(x, coefficients=_STEPS)

  return init
