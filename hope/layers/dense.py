"""Linear layers whose matmul has its own backward pass."""

import functools

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return x @ kernel


def _matmul_fwd(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_bwd(residuals, y_bar):
  x, kernel = residuals
  rows = tuple(range(x.ndim - 1))
  kernel_bar = lax.dot_general(x, y_bar, ((rows, rows), ((), ())))
  return y_bar @ kernel.T, kernel_bar


_matmul.defvjp(_matmul_fwd, _matmul_bwd)


def dot_general(x, kernel, dimension_numbers, *, precision, out_sharding):
  """x @ kernel, for `nnx.Linear(dot_general=...)`.

  Here the gradient of the kernel is x^T @ y_bar. In JAX it is the transpose of
  y_bar^T @ x, for which XLA computes y_bar in transposed layout if y_bar is
  wider than x: many times slower.

  Args:
    x: [..., i].
    kernel: [i, o].
    dimension_numbers: of a plain matmul, like all that follow: ignored.
    precision: ignored.
    out_sharding: ignored.

  Returns:
    [..., o].
  """
  del dimension_numbers, precision, out_sharding  # Those of a plain product.
  return _matmul(x, kernel)


# An `nnx.Linear` without bias: (inputs, outputs, *, dtype, rngs, ...).
dense_layer = functools.partial(
  nnx.Linear, use_bias=False, dot_general=dot_general
)


def split_heads(x: jax.Array, heads: int, streams: int) -> list[jax.Array]:
  """The streams of a projection, each [..., heads, d].

  Args:
    x: [..., heads streams d], by head, and within a head by stream: so a part
      of the heads is a part of the columns.
    heads: of each stream.
    streams: as q, k and v.
  """
  x = x.reshape(*x.shape[:-1], heads, streams, -1)
  # The gradient of a split is one concatenation.
  return [jnp.squeeze(z, -2) for z in jnp.split(x, streams, axis=-2)]
