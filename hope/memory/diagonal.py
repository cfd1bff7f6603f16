r"""A memory of one matrix per head that decays by channel, as RWKV-7 has it.

With the state S [o, i] and rows khat, a, ktilde, w, r [i] and v [o], RWKV-7
(arXiv:2503.14456) is

  S_t = S_{t-1} (diag(w_t) - khat_t^T (a_t * khat_t)) + v_t^T ktilde_t
  y_t = S_t r_t^T

`token_update` is that, for K = S^T. `chunk_update` is the same function as
matmuls and one unit lower triangular solve: with g_t the sum of log w up to
token t (g_0 = 0) and z_t = khat_t K_{t-1} what a token's key reads before its
write,

  K_t = e^{g_t} * K_0
        + sum_{j <= t} e^{g_t - g_j} * (ktilde_j^T v_j - (a_j * khat_j)^T z_j)

so that Z is the solution of (I + L) Z = (khat_t * e^{g_{t-1}}) K_0 + G V, with
L[t, j] = sum_i khat_ti a_ji khat_ji e^{g_{t-1,i} - g_{j,i}} for j < t, and G
likewise of ktilde.

The decays are inside these sums over i, and e^{g_t} may be 1e-17 after 64
tokens, so they cannot be divided out. Pairs of tokens are halved again and
again: a half's scores against the one before it are a matmul, with the factors
e^{g_t - m} and e^{m - g_j} for the sum m at the border between them. Within
the last few tokens, each pair has its own exponent. No exponent is above 0.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hope.memory import stream
from hope.memory.mlp import State
from hope.memory.solve import solve_unit_lower

# Tokens whose pairs are computed one by one; halving ends there.
_BASE = 8


class Tokens(NamedTuple):
  """What the recurrence is given for c tokens.

  A token of zeros changes nothing: its log decay is 0, and it writes nothing.

  Attributes:
    queries: [..., c, i], r.
    log_decay: [..., c, i], log w, at most 0 and finite.
    removed: [..., c, i], khat, the key that is erased; of norm 1 or 0.
    rate: [..., c, i], a, in [0, 1]: how much of it, by channel.
    keys: [..., c, i], ktilde.
    values: [..., c, o].
  """

  queries: jax.Array
  log_decay: jax.Array
  removed: jax.Array
  rate: jax.Array
  keys: jax.Array
  values: jax.Array


def one_token(
  kernel: jax.Array, x: Tokens
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The recurrence for a single token, as `chunk_update` with c = 1.

  Args:
    kernel: [..., i, o].
    x: of one token.

  Returns:
    (kernel, predictions, reads), [..., 1, o] each but the kernel.
  """
  predictions = x.removed @ kernel
  kernel = _turn(jnp.exp(x.log_decay)) * kernel + _turn(x.keys) * x.values
  kernel -= _turn(x.rate * x.removed) * predictions
  return kernel, predictions, x.queries @ kernel


def token_update(
  kernel: jax.Array, x: Tokens
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The recurrence, one token after another: the slow form, and the oracle.

  Args:
    kernel: [..., i, o], S^T before the first token.
    x: of c tokens.

  Returns:
    (kernel, predictions, reads): S^T after the last token; S_{t-1} khat_t and
    S_t r_t of each token, [..., c, o].
  """

  def step(kernel, x):
    x = jax.tree.map(lambda y: y[None], x)
    kernel, prediction, read = one_token(kernel, x)
    return kernel, (prediction[0], read[0])

  def run(kernel, x):
    kernel, (predictions, reads) = lax.scan(step, kernel, x)
    return kernel, predictions, reads

  for _ in range(kernel.ndim - 2):
    run = jax.vmap(run)
  return run(kernel, x)


def chunk_update(
  kernel: jax.Array, x: Tokens
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The recurrence over a chunk in parallel: equal to `token_update`.

  Args and Returns: as `token_update`: kernel [..., i, o], x of c tokens.
  """
  c = x.values.shape[-2]
  x = jax.tree.map(_padded, x)
  sums = jnp.cumsum(x.log_decay, axis=-2)
  before = jnp.pad(sums, [(0, 0)] * (sums.ndim - 2) + [(1, 0), (0, 0)])
  before = before[..., :-1, :]
  erased = x.rate * x.removed
  # Places 0 and 1: what keys read before a write, queries after it.
  readers = jnp.stack([x.removed, x.queries], axis=-3)
  at = jnp.stack([before, sums], axis=-3)
  scores = _scores(readers, at, jnp.stack([erased, x.keys], axis=-3), sums)
  removed, queries = jnp.moveaxis(readers * jnp.exp(at), -3, 0)
  (of_erased, of_keys), (read_erased, read_keys) = (
    jnp.moveaxis(y, -3, 0) for y in jnp.moveaxis(scores, -4, 0)
  )
  predictions = solve_unit_lower(
    of_erased, removed @ kernel + of_keys @ x.values
  )
  reads = queries @ kernel + read_keys @ x.values - read_erased @ predictions
  left = jnp.exp(sums[..., -1:, :] - sums)
  kernel = _turn(jnp.exp(sums[..., -1:, :])) * kernel
  kernel += _turn(left * x.keys) @ x.values
  kernel -= _turn(left * erased) @ predictions
  return kernel, predictions[..., :c, :], reads[..., :c, :]


def _turn(x: jax.Array) -> jax.Array:
  """[..., r, s] as [..., s, r]."""
  return jnp.swapaxes(x, -1, -2)


def _padded(x: jax.Array) -> jax.Array:
  """x [..., c, d] with zeros after it, so that halving ends at _BASE tokens."""
  c = x.shape[-2]
  size = min(c, _BASE)
  while size < c:
    size *= 2
  return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, size - c), (0, 0)])


def _scores(
  readers: jax.Array, at: jax.Array, written: jax.Array, sums: jax.Array
) -> jax.Array:
  """Decayed products of what reads and what was written.

  Args:
    readers: [..., 2, c, i], keys and queries.
    at: [..., 2, c, i], the sum of log decays where each of them reads: keys
      before their own token, queries after it.
    written: [..., 2, c, i].
    sums: [..., c, i], the sum of log decays after each token.

  Returns:
    [..., 2, 2, c, c]: of reader p at t and what q wrote at j, at [p, q, t, j];
    0 where j is not read at t.
  """
  c = sums.shape[-2]
  if c <= _BASE:
    place = jnp.arange(c)
    last = jnp.stack([place - 1, place])[..., None]  # tokens read, [2, c, 1]
    exponent = at[..., :, None, :] - sums[..., None, None, :, :]
    seen = (place <= last)[..., None]
    decay = jnp.exp(jnp.where(seen, exponent, -jnp.inf))
    return jnp.einsum('...ptji,...pti,...qji->...pqtj', decay, readers, written)
  half = c // 2

  def halves(x):
    return jnp.stack([x[..., :half, :], x[..., half:, :]])

  within = _scores(*map(halves, (readers, at, written, sums)))
  border = sums[..., half - 1 : half, :]
  corner = jnp.einsum(
    '...pti,...qji->...pqtj',
    readers[..., half:, :]
    * jnp.exp(at[..., half:, :] - border[..., None, :, :]),
    written[..., :half, :]
    * jnp.exp(border - sums[..., :half, :])[..., None, :, :],
  )
  first = jnp.concatenate([within[0], jnp.zeros_like(corner)], axis=-1)
  second = jnp.concatenate([corner, within[1]], axis=-1)
  return jnp.concatenate([first, second], axis=-2)


def remember(
  state: State,
  position: jax.Array | None,
  x: Tokens,
  *,
  chunk: int = stream.MAX_BLOCK,
  starts: jax.Array | None = None,
  predicts: bool = False,
) -> tuple[jax.Array, State, jax.Array, jax.Array | None]:
  """Writes and reads the tokens of a piece of a stream.

  Args:
    state: returned for the previous piece, or by `hope.memory.linear`'s
      `init_state`.
    position: returned for the previous piece; None: the sequence starts here.
    x: of [b, t, n, i] and [b, t, n, o], float32 or wider.
    chunk: tokens computed at once, up to rounding without effect on numbers.
    starts: bool [b, t], True where a document starts, with K = 0; where they
      may be, `stream.run` says. None: nowhere.
    predicts: whether predictions are returned.

  Returns:
    (y, state, position, predictions): y [b, t, n, o], S_t r_t of each token;
    predictions [b, t, n, o], S_{t-1} khat_t, or None.
  """

  def body(step: stream.Step) -> tuple[jax.Array, None, Any]:
    # Places without a token are zeros, which change nothing.
    update = one_token if step.x.values.shape[-2] == 1 else chunk_update
    now, predictions, y = update(step.now, step.x)
    return now, None, (y, predictions if predicts else None)

  state, position, (y, predictions) = stream.run(
    body, (), state, position, x, chunk=chunk, starts=starts
  )
  return y, state, position, predictions
