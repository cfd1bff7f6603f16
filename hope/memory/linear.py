r"""A memory of one matrix per head, as published linear recurrences have it.

With the state S as [o, i] and k_t, v_t as columns, as their papers write them,

  S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T
  y_t = S_t q_t

is Gated DeltaNet (arXiv:2412.06464); with alpha = 1, DeltaNet. Without the
erase, that is without the bracket, it is linear attention (alpha = beta = 1)
and RetNet (beta = 1, a constant alpha per head). Comba (arXiv:2506.02475)
erases a share of its own,

  S_t = S_{t-1} (alpha_t I - b beta_t k_t k_t^T) + beta_t v_t k_t^T

All are rule (A) of `hope.memory.rule` for K = S^T with u = k, g = -v,
eta' = beta, no momentum and eps = alpha beta, of Comba b beta, read after the
write.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hope.memory import stream
from hope.memory.mlp import State


def init_state(
  batch: int, heads: int, i: int, o: int, dtype: jnp.dtype = jnp.float32
) -> State:
  """The state before the first token: K = 0.

  Returns:
    A state with `now` [batch, heads, i, o] and no `start`, since no token
    reads the state at its chunk's start.
  """
  return State(
    start=None, now=jnp.zeros((batch, heads, i, o), dtype), trace=None
  )


def remember(
  state: State,
  position: jax.Array | None,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  erase: bool,
  alpha: jax.Array | None = None,
  beta: jax.Array | None = None,
  feedback: jax.Array | None = None,
  chunk: int = stream.MAX_BLOCK,
  kernel: str = 'xla',
  starts: jax.Array | None = None,
  predicts: bool = False,
) -> tuple[jax.Array, State, jax.Array, jax.Array | None]:
  """Writes and reads the tokens of a piece of a stream.

  Args:
    state: returned for the previous piece, or by `init_state`.
    position: returned for the previous piece; None: the sequence starts here.
    q: [b, t, n, i], queries; all inputs float32 or wider, as the state.
    k: [b, t, n, i], keys; with erase, beta |k|^2 should be in [0, 2].
    v: [b, t, n, o], values.
    erase: whether what is stored for a key is erased before it is written.
    alpha: broadcastable to [b, t, n, 1], in [0, 1], retention; None: 1.
    beta: broadcastable to [b, t, n, 1], the step itself; None: 1.
    feedback: broadcastable to [b, t, n, 1], eps / beta; None: alpha.
    chunk: tokens computed at once, up to rounding without effect on numbers.
    kernel: as in `stream.run`.
    starts: bool [b, t], True where a document starts, with K = 0; where they
      may be, `stream.run` says. None: nowhere.
    predicts: whether S_{t-1} k_t is read as well.

  Returns:
    (y, state, position, predictions): y [b, t, n, o], S_t q_t of each token;
    predictions [b, t, n, o], S_{t-1} k_t, or None.
  """

  def column(rate: jax.Array | None) -> jax.Array:
    rate = jnp.ones((), v.dtype) if rate is None else rate
    return jnp.broadcast_to(rate, (*v.shape[:3], 1))

  def body(step: stream.Step) -> tuple[jax.Array, None, Any]:
    q, k, v, alpha, beta, share = step.x
    share = alpha if share is None else share
    beta = step.counted(beta)

    def learn(queries: jax.Array, read_after: bool):
      return step.form.update(
        step.now,
        None,
        k,
        -v,
        eta=beta,
        decay=step.form.decays(alpha, None, step.valid, read_after),
        erase=share * beta if erase else 0.0,
        queries=queries,
      )

    now, _, y = learn(q, read_after=True)
    predictions = learn(k, read_after=False)[2] if predicts else None
    return now, None, (y, predictions)

  share = None if feedback is None else column(feedback)
  state, position, (y, predictions) = stream.run(
    body,
    (),
    state,
    position,
    (q, k, v, column(alpha), column(beta), share),
    chunk=chunk,
    kernel=kernel,
    starts=starts,
  )
  return y, state, position, predictions
