"""Systems (I + L) z = r with L strictly lower triangular, batched.

The inverse of I + L is built from diagonal blocks of 8 rows by forward
substitution and merged two by two; it is never built from powers of L, whose
float32 error is 4e2 at 64 equal keys. One inverse serves the solve and, by its
transpose, the backward pass.
"""

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

_BASE = 8


def _invert_rows(lower: jax.Array) -> jax.Array:
  """Inverse of I + lower by forward substitution, [..., c, c] with small c."""
  c = lower.shape[-1]
  eye = jnp.eye(c, dtype=lower.dtype)
  rows = [jnp.broadcast_to(eye[0], (*lower.shape[:-2], c))]
  for t in range(1, c):
    above = jnp.stack(rows, axis=-2)
    rows.append(eye[t] - jnp.sum(lower[..., t, :t, None] * above, axis=-2))
  return jnp.stack(rows, axis=-2)


def invert_unit_lower(lower: jax.Array) -> jax.Array:
  """Returns (I + lower)^-1.

  Args:
    lower: [..., c, c], strictly lower triangular; any c >= 1.

  Returns:
    [..., c, c], unit lower triangular.
  """
  c = lower.shape[-1]
  size = _BASE
  while size < c:
    size *= 2
  pad = [(0, 0)] * (lower.ndim - 2) + [(0, size - c)] * 2
  blocks = c if c <= _BASE else _BASE
  if c > _BASE:
    lower = jnp.pad(lower, pad)
  n = lower.shape[-1] // blocks
  diagonal = jnp.stack(
    [
      lower[..., j * blocks : (j + 1) * blocks, j * blocks : (j + 1) * blocks]
      for j in range(n)
    ],
    axis=-3,
  )
  inverse = _invert_rows(diagonal)  # [..., n, blocks, blocks]
  while n > 1:
    # [[X, 0], [-Y M X, Y]] inverts [[X^-1, 0], [M, Y^-1]].
    upper, below = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
    middle = jnp.stack(
      [
        lower[
          ...,
          (2 * j + 1) * blocks : (2 * j + 2) * blocks,
          2 * j * blocks : (2 * j + 1) * blocks,
        ]
        for j in range(n // 2)
      ],
      axis=-3,
    )
    corner = -_matmul(below, _matmul(middle, upper))
    inverse = jnp.concatenate(
      [
        jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1),
        jnp.concatenate([corner, below], axis=-1),
      ],
      axis=-2,
    )
    n, blocks = n // 2, blocks * 2
  return inverse[..., 0, :c, :c]


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


@jax.custom_vjp
def solve_unit_lower(lower: jax.Array, rhs: jax.Array) -> jax.Array:
  """Returns z with (I + lower) z = rhs.

  Args:
    lower: [..., c, c], strictly lower triangular.
    rhs: [..., c, o], with the same leading dimensions.

  Returns:
    [..., c, o].
  """
  return _matmul(invert_unit_lower(lower), rhs)


def _solve_fwd(lower, rhs):
  inverse = checkpoint_name(invert_unit_lower(lower), 'solve')
  z = checkpoint_name(_matmul(inverse, rhs), 'solve')
  return z, (inverse, z)


def _solve_bwd(residuals, z_bar):
  inverse, z = residuals
  rhs_bar = _matmul(jnp.swapaxes(inverse, -1, -2), z_bar)
  lower_bar = _matmul(rhs_bar, jnp.swapaxes(z, -1, -2))
  return -jnp.tril(lower_bar, -1), rhs_bar


solve_unit_lower.defvjp(_solve_fwd, _solve_bwd)
