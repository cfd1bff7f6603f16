"""A product of a `nnx.Linear` with a backward pass of its own."""

import jax
from jax import lax


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

  The gradient of the kernel is x^T @ y_bar, in this order. JAX's own is the
  transpose of y_bar^T @ x: where y_bar is still to be computed and wider than
  x, XLA then computes it in transposed order, many times slower.
  """
  del dimension_numbers, precision, out_sharding  # Those of a plain product.
  return _matmul(x, kernel)
