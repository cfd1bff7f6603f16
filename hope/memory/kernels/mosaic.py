"""Operations of the chunk form for Mosaic, the compiler of TPU kernels.

All are of one head, on the values that a kernel holds, without cumulative sums
and without slices that are not multiples of 8 rows.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from hope.memory import rule

# Smallest decay factor, so that its logarithm is finite.
_SMALLEST_FACTOR = 1e-30
# Rows of the diagonal blocks that are inverted by forward substitution.
_BASE = 8


def _places(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Row and column of each entry of a matrix, or of a stack of them."""
  row, column = len(shape) - 2, len(shape) - 1
  iota = functools.partial(lax.broadcasted_iota, jnp.int32, shape)
  return iota(row), iota(column)


def decays(
  alpha: jax.Array,
  beta: jax.Array | None,
  valid: None = None,
  read_after: bool = False,
) -> rule.Decays:
  """`rule.decays` of one head, without cumulative sums and odd slices.

  Factors below 1e-30 count as 1e-30; `rule.decays` is exact there.

  Args:
    alpha: [c, 1].
    beta: [c, 1]; None: no momentum.
    valid: None, since all tokens of whole chunks count.
    read_after: as in `rule.decays`.
  """
  del valid
  c = alpha.shape[0]
  t, j = _places((c, c))

  def sums(x):
    """Sums of log x up to each token: as a column, as a row, and of all."""
    log = jnp.log(jnp.maximum(x, _SMALLEST_FACTOR))
    along = jnp.where(j <= t, jnp.swapaxes(log, 0, 1), 0)
    down = jnp.where(t <= j, log, 0)
    column = jnp.sum(along, axis=1, keepdims=True)
    row = jnp.sum(down, axis=0, keepdims=True)
    return log, column, row, jnp.sum(log, axis=0, keepdims=True)

  def table(mask, column, row):
    """exp(column - row) where the mask is set, else 0: [c, c]."""
    # The exponent is masked as well: above the diagonal it may overflow.
    exponent = jnp.where(mask, column - row, 0)
    return jnp.where(mask, jnp.exp(exponent), 0)

  through: Any = None
  sums_beta: Any = None
  if beta is not None:
    sums_beta = sums(beta)
    through = table(j <= t, sums_beta[1], sums_beta[2])

  def factors(start, keep):
    """Factors of one row per token, with those of the trace."""
    if sums_beta is None:
      return rule.Factors(start=start, keep=keep, write=keep)
    return rule.Factors(
      start=start,
      keep=keep,
      write=keep @ through,
      trace=jnp.sum(keep * jnp.exp(sums_beta[2]), axis=1, keepdims=True),
    )

  log, column, row, total = sums(alpha)
  before = factors(jnp.exp(column - log), table(j < t, column - log, row))
  read = None
  if read_after:
    read = factors(jnp.exp(column), table(j <= t, column, row))
  end_start, end_keep = jnp.exp(total), jnp.exp(total - column)
  if sums_beta is None:
    end = rule.Factors(start=end_start, keep=end_keep, write=end_keep)
    return rule.Decays(before=before, end=end, read=read)
  _, column, row, total = sums_beta
  end_write = jnp.sum(end_keep * through, axis=0, keepdims=True)
  end = rule.Factors(
    start=end_start,
    keep=end_keep,
    write=jnp.swapaxes(end_write, 0, 1),
    trace=jnp.sum(end_keep * jnp.exp(column), axis=0, keepdims=True),
  )
  return rule.Decays(
    before=before,
    end=end,
    trace_start=jnp.exp(total),
    trace_write=jnp.exp(total - column),
    read=read,
  )


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def invert_unit_lower(lower: jax.Array) -> jax.Array:
  """`solve.invert_unit_lower` of whole rows, without odd slices.

  Diagonal blocks of 8 rows are inverted by forward substitution and merged two
  by two: with X and Y the inverses of a pair and M the block left of the
  second, the merged inverse has -Y M X there.

  Args:
    lower: [..., c, c], strictly lower triangular; c a power of two, at least 8.
  """
  *lead, c, _ = lower.shape
  t, j = _places(lower.shape)
  apart = t ^ j

  def pairs(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(*lead, -1, 2, size, c)

  def flat(x: jax.Array) -> jax.Array:
    return x.reshape(*lead, -1, c)

  inverse = jnp.where(apart == 0, 1.0, 0.0).astype(lower.dtype)
  inverse = inverse.reshape(*lead, -1, _BASE, c)
  near = jnp.where(apart < _BASE, lower, 0)
  for s in range(_BASE - 1):
    column = jnp.where((j & (_BASE - 1)) == s, near, 0)
    column = jnp.sum(column, axis=-1, keepdims=True)
    column = column.reshape(*inverse.shape[:-1], 1)
    inverse -= column * inverse[..., s : s + 1, :]
  inverse, size = flat(inverse), _BASE
  while size < c:
    left = jnp.where((apart >= size) & (apart < 2 * size), lower, 0)
    left = pairs(left, size)[..., 1, :, :]
    first, second = (pairs(inverse, size)[..., k, :, :] for k in (0, 1))
    product = _matmul(flat(left), inverse).reshape(second.shape)
    product = jnp.stack([jnp.zeros_like(product), product], axis=-3)
    product = _matmul(flat(second), flat(product)).reshape(second.shape)
    inverse = flat(jnp.stack([first, second - product], axis=-3))
    size *= 2
  return inverse


@jax.custom_vjp
def solve_unit_lower(lower: jax.Array, rhs: jax.Array) -> jax.Array:
  """`solve.solve_unit_lower` with lower [..., c, c] and rhs [..., c, o]."""
  return _matmul(invert_unit_lower(lower), rhs)


def _solve_fwd(lower, rhs):
  inverse = invert_unit_lower(lower)
  z = _matmul(inverse, rhs)
  return z, (inverse, z)


def _solve_bwd(residuals, z_bar):
  inverse, z = residuals
  rhs_bar = _matmul(jnp.swapaxes(inverse, -1, -2), z_bar)
  lower_bar = _matmul(rhs_bar, jnp.swapaxes(z, -1, -2))
  t, j = _places(lower_bar.shape)
  return jnp.where(j < t, -lower_bar, 0), rhs_bar


solve_unit_lower.defvjp(_solve_fwd, _solve_bwd)


FORM = rule.Form(
  decays=decays,
  update=functools.partial(rule.decayed_update, solve=solve_unit_lower),
)
