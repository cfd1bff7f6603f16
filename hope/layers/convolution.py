"""A causal depthwise convolution with a streaming state."""

from flax import nnx
import jax
import jax.numpy as jnp


class CausalConvolution(nnx.Module):
  """y_t = sum_j kernel_j * x_{t - width + 1 + j}, each channel by itself.

  It starts as the identity plus noise, so that a token sees itself first.
  """

  def __init__(self, channels: int, width: int, *, rngs: nnx.Rngs):
    noise = jax.random.normal(rngs.params(), (width, channels))
    self.kernel = nnx.Param((0.5 / width**0.5 * noise).at[-1].add(1.0))

  def init_state(self, batch: int) -> jax.Array:
    """The last width - 1 inputs, [batch, width - 1, channels]: zeros."""
    width, channels = self.kernel.shape
    return jnp.zeros((batch, width - 1, channels))

  def __call__(
    self, x: jax.Array, state: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (y, state) for x [b, t, channels]."""
    width = self.kernel.shape[0]
    t = x.shape[1]
    padded = jnp.concatenate([state.astype(x.dtype), x], axis=1)
    kernel = self.kernel[...].astype(x.dtype)
    y = jnp.zeros_like(x)
    for j in range(width):
      y += padded[:, j : j + t] * kernel[j]
    return y, padded[:, t:].astype(state.dtype)
