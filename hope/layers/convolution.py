"""A causal depthwise convolution with a streaming state."""

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hope.memory.segments import since_start


def _part(x: jax.Array, start: int, t: int) -> jax.Array:
  """t places of x [b, .., c] from `start` on."""
  return lax.slice_in_dim(x, start, start + t, axis=1)


def _tap(padded, since, j: int, width: int) -> jax.Array:
  """What tap j sees at each token: [b, t, c], 0 from earlier documents."""
  tap = _part(padded, j, padded.shape[1] - width + 1)
  return tap if since is None else jnp.where(width - 1 - j <= since, tap, 0)


@jax.custom_vjp
def convolve(
  padded: jax.Array, kernel: jax.Array, since: jax.Array | None
) -> jax.Array:
  """y_t = sum_j kernel_j * padded_{t + j}.

  Its backward pass is its own: XLA's writes a padded array for each tap, and
  sums over tokens in several passes over memory.

  Args:
    padded: [b, width - 1 + t, c], inputs after the width - 1 before them.
    kernel: [width, c]; it is rounded to the type of the inputs.
    since: int32 [b, t, 1], tokens since the document's start: inputs from
      before it count as zeros. None: all are of one document.

  Returns:
    [b, t, c].
  """
  rounded = kernel.astype(padded.dtype)
  width = kernel.shape[0]
  taps = (_tap(padded, since, j, width) * rounded[j] for j in range(width))
  return sum(taps, start=jnp.zeros((), padded.dtype))


def _forward(padded, kernel, since):
  return convolve(padded, kernel, since), (padded, kernel, since)


def _backward(residuals, y_bar):
  padded, kernel, since = residuals
  width, size = kernel.shape[0], padded.shape[1]
  rounded = kernel.astype(padded.dtype)
  around = ((0, 0), (width - 1, width - 1), (0, 0))
  wide = jnp.pad(y_bar, around)
  reach = None if since is None else jnp.pad(since, around, constant_values=-1)
  # A sum over tokens as a matmul, which reads its operand as it is computed.
  ones = jnp.ones(y_bar.shape[:2], y_bar.dtype)
  padded_bar, kernel_bar = jnp.zeros((), padded.dtype), []
  for j in range(width):
    part = _part(wide, width - 1 - j, size)
    if reach is not None:
      seen = width - 1 - j <= _part(reach, width - 1 - j, size)
      part = jnp.where(seen, part, 0)
    padded_bar += part * rounded[j]
    kernel_bar.append(
      jnp.einsum(
        'bt,btc->c',
        ones,
        _tap(padded, since, j, width) * y_bar,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=kernel.dtype,
      )
    )
  no_gradient = None
  if since is not None:
    no_gradient = np.zeros(since.shape, jax.dtypes.float0)
  return padded_bar, jnp.stack(kernel_bar), no_gradient


convolve.defvjp(_forward, _backward)


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
    width, t = self.kernel.shape[0], x.shape[1]
    padded = jnp.concatenate([state.astype(x.dtype), x], axis=1)
    # Before the first start of the piece, all inputs are of one document.
    since = None if starts is None else since_start(starts, width)[..., None]
    y = convolve(padded, self.kernel[...], since)
    last = padded[:, t:]
    if since is not None:
      age = jnp.arange(width - 2, -1, -1)[:, None]
      last = jnp.where(age <= since[:, -1:], last, 0)
    return y, last.astype(state.dtype)
