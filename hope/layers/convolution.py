"""A causal depthwise convolution with a streaming state."""

from flax import nnx
import jax
import jax.numpy as jnp

from hope.memory.segments import since_start


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
    self, x: jax.Array, state: jax.Array, starts: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns (y, state) for x [b, t, channels].

    With `starts`, bool [b, t], inputs of earlier documents count as zeros.
    """
    width = self.kernel.shape[0]
    t = x.shape[1]
    padded = jnp.concatenate([state.astype(x.dtype), x], axis=1)
    kernel = self.kernel[...].astype(x.dtype)
    # Before the first start of the piece, all inputs are of one document.
    since = None if starts is None else since_start(starts, width)[..., None]
    y = jnp.zeros_like(x)
    for j in range(width):
      tap = padded[:, j : j + t]
      if since is not None:
        tap = jnp.where(width - 1 - j <= since, tap, 0)
      y += tap * kernel[j]
    last = padded[:, t:]
    if since is not None:
      age = jnp.arange(width - 2, -1, -1)[:, None]
      last = jnp.where(age <= since[:, -1:], last, 0)
    return y, last.astype(state.dtype)
