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


class Decays(NamedTuple):
  """How much of what was there at j is left at t, in a chunk of c tokens.

  Attributes:
    keep: [..., c, c], A: decay of a kernel from after j to after t, j <= t.
    total: [..., c], decay of the incoming kernel to after t.
    write: [..., c, c], P: effect at t of a write at j; A without momentum.
    trace: [..., c], p: effect at t of the incoming trace; None without it.
    trace_last: [..., c], decay of a write's trace from j to the chunk's end.
    trace_total: [...], decay of the incoming trace over the chunk.
  """

  keep: jax.Array
  total: jax.Array
  write: jax.Array
  trace: Any
  trace_last: Any
  trace_total: Any


def _products(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Products of x over (j, t] for j <= t, and over [1, t].

  They are products, not exponentials of summed logarithms: exact at zeros, with
  their gradient, and without cancellation.
  """
  c = x.shape[-1]
  later = jnp.tril(jnp.ones((c, c), bool), -1)
  table = jnp.cumprod(jnp.where(later, x[..., :, None], 1), axis=-2)
  return jnp.tril(table), jnp.cumprod(x, axis=-1)


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
  keep, total = _products(alpha)
  if beta is None:
    return Decays(keep, total, keep, None, None, None)
  momentum, momentum_total = _products(beta)
  applied = keep if valid is None else jnp.where(valid, keep, 0)
  write = jnp.matmul(applied, momentum)
  trace = jnp.einsum('...tj,...j->...t', applied, momentum_total)
  return Decays(
    keep,
    total,
    write,
    trace,
    momentum[..., -1, :],
    momentum_total[..., -1],
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
  """`chunk_update` with the decays of alpha and beta already computed."""
  eps = _erase_rates(erase, eta)
  before = lambda x, axis: _shift(x, axis, first=0)
  keep, write = before(decay.keep, -2), before(decay.write, -2)
  total = _shift(decay.total, -1, first=1)[..., None]
  lead: Any = None
  if trace is not None:
    lead = before(decay.trace, -1)[..., None]

  wanted = eta[..., None] * g
  stored = None
  if eps is not None:
    gram = jnp.einsum('...ti,...ji->...tj', u, u)
    rhs = total * (u @ kernel) - (write * gram) @ wanted
    if trace is not None:
      rhs += lead * (u @ trace)
    stored = solve_unit_lower(
      eps[..., None] * keep * gram, -eps[..., None] * rhs
    )

  reads = None
  if queries is not None:
    match = jnp.einsum('...ti,...ji->...tj', queries, u)
    reads = total * (queries @ kernel) - (write * match) @ wanted
    if trace is not None:
      reads += lead * (queries @ trace)
    if stored is not None:
      reads += (keep * match) @ stored

  last = -decay.write[..., -1, :, None] * wanted
  if stored is not None:
    last += decay.keep[..., -1, :, None] * stored
  ut = jnp.swapaxes(u, -1, -2)
  new = decay.total[..., -1, None, None] * kernel + ut @ last
  if trace is not None:
    new += decay.trace[..., -1, None, None] * trace
    trace = decay.trace_total[..., None, None] * trace - ut @ (
      decay.trace_last[..., None] * wanted
    )
  return new, trace, reads


def _erase_rates(erase, eta):
  """eps per token; None where erase is switched off."""
  if erase is None:
    return eta
  return None if isinstance(erase, float) and erase == 0.0 else erase


def _shift(x: jax.Array, axis: int, first: float) -> jax.Array:
  """x one step later along axis, with `first` in the place of its first."""
  head = jnp.full_like(lax.slice_in_dim(x, 0, 1, axis=axis), first)
  return jnp.concatenate(
    [head, lax.slice_in_dim(x, 0, x.shape[axis] - 1, axis=axis)], axis=axis
  )
