"""Causal softmax attention whose memory is linear in the length.

Queries and keys are cut into blocks. A block of queries goes through the blocks
of keys that it sees, with a running maximum and sum (the online softmax of
FlashAttention, arXiv:2205.14135, 2307.08691); the backward pass computes the
probabilities again from the logarithm of the sum. Pairs of blocks that the
causal mask or the window excludes are not computed.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from hope.parallel import placement

# Most queries of a block, and as many for windows that are no longer: the
# fastest of 64 to 1,024 on a CPU.
MAX_BLOCK = 256
_WINDOW_BLOCK = 128


class _Grid(NamedTuple):
  """Which blocks of keys the blocks of queries see.

  Attributes:
    count: blocks of queries.
    diagonal: the block of keys with the first query's own key.
    before: blocks before that of its own key that a query may see.
  """

  count: int
  diagonal: int
  before: int

  def pairs(self) -> list[tuple[int, int]]:
    """(query block, key block); a query's own key comes first.

    So the running maximum is finite from the first pair on.
    """
    return [
      (i, own - back)
      for i, own in enumerate(range(self.diagonal, self.diagonal + self.count))
      for back in range(min(own, self.before) + 1)
    ]


class _Blocks(NamedTuple):
  """Blocks of queries and keys; N blocks of q queries, M of k keys.

  Attributes:
    q: [N, b, m, g, q, d]; m heads of keys, each read by g heads of queries.
    k: [M, b, m, k, d].
    v: [M, b, m, k, d].
    first: int32 [N, 1 or b, q], the first key that a query sees.
    own: int32 [N, q], the last one.
  """

  q: jax.Array
  k: jax.Array
  v: jax.Array
  first: jax.Array
  own: jax.Array


def _scores(x: _Blocks, i: jax.Array, j: jax.Array) -> jax.Array:
  """Scores [b, m, g, q, k] of query block i and key block j; -inf: unseen."""
  q, k = x.q[i], x.k[j]
  scores = _dot('bmgqd,bmkd->bmgqk', q, k) * q.shape[-1] ** -0.5
  key = j * k.shape[-2] + jnp.arange(k.shape[-2])
  seen = (x.first[i][..., None] <= key) & (key <= x.own[i][:, None])
  return jnp.where(seen[:, None, None], scores, -jnp.inf)


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """A product of operands of b's type, summed in float32 at least."""
  total = jnp.promote_types(b.dtype, jnp.float32)
  a = a.astype(b.dtype)
  return jnp.einsum(equation, a, b, preferred_element_type=total)


def _over(
  pairs: Sequence[tuple[int, int]], step: Callable[..., Any], carry: Any
) -> Any:
  """The carry after step(carry, i, j) for each pair (i, j) in turn."""
  if len(pairs) == 1:
    return step(carry, *pairs[0])

  def body(carry: Any, pair: jax.Array) -> tuple[Any, None]:
    return step(carry, *pair), None

  return lax.scan(body, carry, jnp.asarray(pairs, jnp.int32))[0]


def _forward(grid: _Grid, x: _Blocks) -> tuple[jax.Array, jax.Array]:
  """Returns (y, logarithm of the sum of exponentials), by query block."""
  total = jnp.promote_types(x.q.dtype, jnp.float32)
  rows = x.q.shape[:-1]

  def step(carry, i, j):
    y, top, weight = (z[i] for z in carry)
    scores = _scores(x, i, j)
    highest = jnp.maximum(top, scores.max(axis=-1))
    p = jnp.exp(scores - highest[..., None])
    kept = jnp.exp(top - highest)
    y = y * kept[..., None] + _dot('bmgqk,bmkd->bmgqd', p, x.v[j])
    new = y, highest, weight * kept + p.sum(axis=-1)
    return tuple(c.at[i].set(z) for c, z in zip(carry, new, strict=True))

  empty = (
    jnp.zeros(x.q.shape, total),
    jnp.full(rows, -jnp.inf, total),
    jnp.zeros(rows, total),
  )
  y, top, weight = _over(grid.pairs(), step, empty)
  return y / weight[..., None], top + jnp.log(weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(grid: _Grid, x: _Blocks) -> tuple[jax.Array, jax.Array]:
  return _forward(grid, x)


def _attend_fwd(grid, x):
  y, log_sum = _forward(grid, x)
  return (y, log_sum), (x, y, log_sum)


def _attend_bwd(grid, kept, bars):
  x, y, log_sum = kept
  y_bar, log_sum_bar = bars
  mean = (y * y_bar).sum(axis=-1) - log_sum_bar

  def step(carry, i, j):
    q_bar, k_bar, v_bar = carry
    q, k, v = x.q[i], x.k[j], x.v[j]
    p = jnp.exp(_scores(x, i, j) - log_sum[i][..., None])
    change = _dot('bmgqd,bmkd->bmgqk', y_bar[i], v) - mean[i][..., None]
    change = p * change * q.shape[-1] ** -0.5
    return (
      q_bar.at[i].add(_dot('bmgqk,bmkd->bmgqd', change, k)),
      k_bar.at[j].add(_dot('bmgqk,bmgqd->bmkd', change, q)),
      v_bar.at[j].add(_dot('bmgqk,bmgqd->bmkd', p, y_bar[i].astype(v.dtype))),
    )

  zeros = tuple(jnp.zeros(z.shape, y.dtype) for z in x[:3])
  bars = _over(grid.pairs(), step, zeros)
  q, k, v = (bar.astype(z.dtype) for bar, z in zip(bars, x[:3], strict=True))
  return (x._replace(q=q, k=k, v=v, first=None, own=None),)


_attend.defvjp(_attend_fwd, _attend_bwd)


def _add(
  always: tuple[jax.Array, jax.Array],
  q: jax.Array,
  y: jax.Array,
  log_sum: jax.Array,
) -> jax.Array:
  """What queries read of the keys of a softmax and of others, all in one.

  Args:
    always: keys and values [m, p, d] that all queries see.
    q: [N, b, m, g, q, d].
    y: what they read of the keys before, like q.
    log_sum: logarithm of the sum of these keys' exponentials.
  """
  k, v = (x.astype(q.dtype) for x in always)
  scores = _dot('Nbmgqd,mpd->Nbmgqp', q, k) * q.shape[-1] ** -0.5
  total = jnp.logaddexp(log_sum, jax.nn.logsumexp(scores, axis=-1))
  p = jnp.exp(scores - total[..., None])
  kept = jnp.exp(log_sum - total)
  return y * kept[..., None] + _dot('Nbmgqp,mpd->Nbmgqd', p, v)


def _split(x: jax.Array, front: int, back: int, block: int) -> jax.Array:
  """x [b, l, ...], zeros at both ends, as blocks [N, b, block, ...]."""
  padding = ((0, 0), (front, back)) + ((0, 0),) * (x.ndim - 2)
  x = jnp.pad(x, padding)
  x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  first: jax.Array,
  reach: int,
  always: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Softmax attention of each query to the keys from `first` to its own.

  Args:
    q: [b, t, n, d]; query i is at the place of key s - t + i.
    k: [b, s, m, d]; m divides n: consecutive heads of queries share one.
    v: [b, s, m, d].
    first: int32 [t] or [b, t], the first key that a query sees.
    reach: most keys before its own that a query sees; blocks beyond it are
      skipped.
    always: keys and values [m, p, d] that all queries see beside those; None:
      none.

  Returns:
    [b, t, n, d], of q's type.
  """
  b, t, n, d = q.shape
  s, m = k.shape[1:3]
  count = -(-t // min(MAX_BLOCK, max(reach, _WINDOW_BLOCK)))
  if count == 1:
    q_block, k_block, front, back = t, s, 0, 0
    grid = _Grid(1, 0, 0)
  else:
    q_block = k_block = -(-t // count)
    front, back = (t - s) % q_block, count * q_block - t
    grid = _Grid(count, (front + s - t) // q_block, -(-reach // q_block))
  place = front + s - t + np.arange(count * q_block, dtype=np.int32)
  first = jnp.atleast_2d(first) + front
  queries = _split(q.reshape(b, t, m, n // m, d), 0, back, q_block)
  in_blocks = functools.partial(placement.constrain, kind='blocks')
  blocks = _Blocks(
    q=in_blocks(jnp.einsum('Nbqmgd->Nbmgqd', queries)),
    k=in_blocks(jnp.swapaxes(_split(k, front, back, k_block), 2, 3)),
    v=in_blocks(jnp.swapaxes(_split(v, front, back, k_block), 2, 3)),
    first=_split(first, 0, back, q_block),
    own=jnp.asarray(place).reshape(count, q_block),
  )
  y, log_sum = _attend(grid, blocks)
  if always is not None:
    y = _add(always, blocks.q, y, log_sum)
  y = jnp.einsum('Nbmgqd->bNqmgd', in_blocks(y))
  return y.reshape(b, -1, n, d)[:, :t].astype(q.dtype)
