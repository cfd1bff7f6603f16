r"""The inner learning rule: delta gradient descent with retention and momentum.

For a layer with input u_t and output error g_t (Eq. 57 and 88 of
arXiv:2512.24695 with the momentum of its Table 6), a kernel K [i, o] and its
trace S [i, o] follow

  S_t = beta_t S_{t-1} - eta'_t outer(u_t, g_t)
  K_t = (alpha_t I - eps_t outer(u_t, u_t)) K_{t-1} + S_t                   (A)

`token_update` is (A) as it stands. `chunk_update` is the same function of the
same arguments as matmuls and one unit lower triangular solve.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hope.memory.solve import solve_unit_lower


def normalized_step(eta: jax.Array, u: jax.Array) -> jax.Array:
  """The step eta' = eta / (1 + eta |u|^2) that solves Eq. 56 exactly.

  With it, (A) at alpha = 1, beta = 0 and eps = eta' is the minimiser of
  1/2 |u K + g|^2 + 1/(2 eta) |K - K_t|^2 for any norm of u.

  Args:
    eta: [..., c], learning rates, >= 0.
    u: [..., c, i], the layer's inputs.

  Returns:
    [..., c].
  """
  return eta / (1 + eta * jnp.sum(jnp.square(u), axis=-1))


def token_update(
  kernel: jax.Array,
  trace: jax.Array | None,
  u: jax.Array,
  g: jax.Array,
  *,
  eta: jax.Array,
  alpha: jax.Array,
  beta: jax.Array | None,
  erase: jax.Array | float | None = None,
  queries: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """Rule (A), one token after another: the slow form, and the oracle.

  Args:
    kernel: [..., i, o], K_0.
    trace: [..., i, o], S_0; None, together with `beta`: no momentum.
    u: [..., c, i], the layer's input at each token.
    g: [..., c, o], the error at the layer's output at each token.
    eta: [..., c], the normalised step eta' (see `normalized_step`).
    alpha: [..., c], retention, in [0, 1].
    beta: [..., c], momentum factor, in [0, 1], or None.
    erase: [..., c], eps; None: eta, that is DGD; the float 0.0: no erase.
    queries: [..., c, i], or None: nothing is read.

  Returns:
    (K_c, S_c, reads): the state after the last token and, for each token, its
    query times the kernel before that token, [..., c, o] (None without
    queries).
  """
  decayed = _erase_rates(erase, eta)
  time_major = lambda x, rank: None if x is None else jnp.moveaxis(x, -rank, 0)
  xs = (
    time_major(u, 2),
    time_major(g, 2),
    time_major(eta, 1),
    time_major(alpha, 1),
    time_major(beta, 1),
    time_major(decayed, 1),
    time_major(queries, 2),
  )

  def step(state, x):
    kernel, trace = state
    u, g, eta, alpha, beta, eps, q = x
    per_kernel = lambda rate: rate[..., None, None]
    read = None if q is None else jnp.einsum('...i,...io->...o', q, kernel)
    write = -per_kernel(eta) * u[..., :, None] * g[..., None, :]
    if trace is not None:
      write = trace = per_kernel(beta) * trace + write
    new = per_kernel(alpha) * kernel + write
    if eps is not None:
      stored = jnp.einsum('...i,...io->...o', u, kernel)
      new -= per_kernel(eps) * u[..., :, None] * stored[..., None, :]
    return (new, trace), read

  (kernel, trace), reads = lax.scan(step, (kernel, trace), xs)
  return kernel, trace, None if reads is None else jnp.moveaxis(reads, 0, -2)


@jax.custom_vjp
def products(x: jax.Array) -> jax.Array:
  """Products of x between any two states of a chunk.

  State t is the one before token t, state c the one after the last token.
  Zeros are counted, not taken the logarithm of, and the gradient divides by
  nothing, so that both are exact for any x in [0, 1].

  Args:
    x: [..., c].

  Returns:
    [..., c + 1, c + 1], x_j ... x_{t-1} at [t, j] for j <= t, else 0.
  """
  zero = x == 0
  sums = lambda a: jnp.pad(
    jnp.cumsum(a, axis=-1), [(0, 0)] * (x.ndim - 1) + [(1, 0)]
  )
  between = lambda a: a[..., :, None] - a[..., None, :]
  past = jnp.tri(x.shape[-1] + 1, dtype=bool)
  # The exponent is masked as well: above the diagonal it may overflow.
  logs = jnp.where(past, between(sums(jnp.log(jnp.where(zero, 1, x)))), 0)
  zeros = between(sums(zero.astype(jnp.int32)))
  return jnp.where(past & (zeros == 0), jnp.exp(logs), 0)


def _products_fwd(x):
  table = products(x)
  return table, table


def _products_bwd(table, table_bar):
  # The product without x_s is [t, s + 1] times [s, j].
  # Row 0, before any factor, has nothing to give.
  after = jnp.swapaxes(table[..., 1:, 1:], -1, -2) @ table_bar[..., 1:, :-1]
  return (jnp.sum(after * table[..., :-1, :-1], axis=-1),)


products.defvjp(_products_fwd, _products_bwd)


class Decays(NamedTuple):
  """What is left at each state of a chunk of c tokens of what came before.

  State t is the one before token t, state c the one after the last token.

  Attributes:
    start: [..., c + 1], A: of the kernel at the chunk's start.
    keep: [..., c + 1, c], A: of the kernel after token j.
    write: [..., c + 1, c], P: of the write at token j; A without momentum.
    trace: [..., c + 1], p: of the incoming trace, in the kernel; None without
      momentum, as the two below.
    trace_start: [...], of the incoming trace, in the trace after the chunk.
    trace_write: [..., c], of the write at token j, in that trace.
  """

  start: jax.Array
  keep: jax.Array
  write: jax.Array
  trace: Any
  trace_start: Any
  trace_write: Any


def decays(
  alpha: jax.Array, beta: jax.Array | None, valid: jax.Array | None = None
) -> Decays:
  """The decay factors of a chunk.

  Args:
    alpha: [..., c], retention.
    beta: [..., c], momentum factor; None: no momentum.
    valid: [c], bool; a token where it is False leaves kernel and trace as they
      are, provided that its eta is 0. None: all tokens count.
  """
  if valid is not None:
    alpha = jnp.where(valid, alpha, 1)
    beta = None if beta is None else jnp.where(valid, beta, 1)
  kernel = products(alpha)
  start, keep = kernel[..., 0], kernel[..., 1:]
  if beta is None:
    return Decays(start, keep, keep, None, None, None)
  momentum = products(beta)
  # The trace is added to the kernel at every token that counts.
  added = keep if valid is None else jnp.where(valid, keep, 0)
  through = added @ momentum[..., 1:, :]
  return Decays(
    start,
    keep,
    through[..., 1:],
    through[..., 0],
    momentum[..., -1, 0],
    momentum[..., -1, 1:],
  )


def chunk_update(
  kernel: jax.Array,
  trace: jax.Array | None,
  u: jax.Array,
  g: jax.Array,
  *,
  eta: jax.Array,
  alpha: jax.Array,
  beta: jax.Array | None,
  erase: jax.Array | float | None = None,
  queries: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """Rule (A) over a chunk in parallel: equal to `token_update`.

  Args and Returns: as `token_update`.
  """
  return decayed_update(
    kernel,
    trace,
    u,
    g,
    eta=eta,
    decay=decays(alpha, beta),
    erase=erase,
    queries=queries,
  )


def decayed_update(
  kernel: jax.Array,
  trace: jax.Array | None,
  u: jax.Array,
  g: jax.Array,
  *,
  eta: jax.Array,
  decay: Decays,
  erase: jax.Array | float | None = None,
  queries: jax.Array | None = None,
) -> tuple[jax.Array, Any, Any]:
  """`chunk_update`, given what its decay factors are.

  Args:
    kernel: [..., i, o].
    trace: [..., i, o], or None.
    u: [..., c, i].
    g: [..., c, o].
    eta: [..., c], normalised.
    decay: of alpha and beta.
    erase: as in `chunk_update`.
    queries: [..., c, i], or None.

  Returns:
    (kernel, trace, reads), as `chunk_update`.
  """
  eps = _erase_rates(erase, eta)
  row, column = lambda x: x[..., None, :], lambda x: x[..., None]
  keep, write = decay.keep[..., :-1, :], decay.write[..., :-1, :]
  # All that a token reads is one product with what it reads from. Decays and
  # rates scale the other factor, which is the narrower one.
  held = [kernel, g] if trace is None else [kernel, trace, g]
  held = jnp.concatenate(held, axis=-2)

  def incoming(x: jax.Array, scores: jax.Array) -> jax.Array:
    """Times `held`: what x reads before each token, were nothing erased.

    scores: [..., c, c], x times u.
    """
    factors = [column(decay.start[..., :-1]) * x]
    if trace is not None:
      factors.append(column(decay.trace[..., :-1]) * x)
    factors.append(-row(eta) * write * scores)
    return jnp.concatenate(factors, axis=-1) @ held

  change = column(decay.write[..., -1, :] * eta) * g
  stored = None
  if eps is not None:
    gram = jnp.einsum('...ti,...ji->...tj', u, u)
    stored = solve_unit_lower(row(eps) * keep * gram, incoming(u, gram))
    change += column(decay.keep[..., -1, :] * eps) * stored

  reads = None
  if queries is not None:
    match = jnp.einsum('...ti,...ji->...tj', queries, u)
    reads = incoming(queries, match)
    if eps is not None:
      reads -= (row(eps) * keep * match) @ stored

  ut = jnp.swapaxes(u, -1, -2)
  per_kernel = lambda x: x[..., None, None]
  new = per_kernel(decay.start[..., -1]) * kernel - ut @ change
  if trace is None:
    return new, None, reads
  new += per_kernel(decay.trace[..., -1]) * trace
  trace = per_kernel(decay.trace_start) * trace
  trace -= ut @ (column(decay.trace_write * eta) * g)
  return new, trace, reads


def _erase_rates(erase, eta):
  """eps per token; None where erase is switched off."""
  if erase is None:
    return eta
  return None if isinstance(erase, float) and erase == 0.0 else erase
