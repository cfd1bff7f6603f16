"""Norms: RMSNorm as a module, L2 as a function."""

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from hope.layers.precision import at_least_float32


def l2_normalize(x: jax.Array) -> jax.Array:
  """x [..., d] / |x|, the norm over d; zero stays zero, its gradient finite."""
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * lax.rsqrt(square + 1e-12)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis, in float32 or better."""

  def __init__(self, width: int, eps: float = 1e-6):
    self.scale, self.eps = nnx.Param(jnp.ones(width)), eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns an array like x [..., width]."""
    y = at_least_float32(x)
    y *= lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return (y * self.scale[...]).astype(x.dtype)
