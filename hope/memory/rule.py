r"""The inner learning rule: delta gradient descent with retention and momentum.

For a layer with input u_t and output error g_t (Eq. 57 and 88 of
arXiv:2512.24695 with the momentum of its Table 6), a kernel K [i, o] and its
trace S [i, o] follow

  S_t = beta_t S_{t-1} - eta'_t outer(u_t, g_t)
  K_t = (alpha_t I - eps_t outer(u_t, u_t)) K_{t-1} + S_t                   (A)

`token_update` is (A) as it stands. `chunk_update` is the same function of the
same arguments as matmuls and one unit lower triangular solve. With
`trace_erases` what is erased goes through the trace,

  S_t = beta_t S_{t-1} - outer(u_t, eta'_t g_t + eps_t u_t K_{t-1})
  K_t = alpha_t K_{t-1} + S_t                                             (B)

so that with eps = eta' and alpha = 1 it is the heavy ball on 1/2 |u K + g|^2 at
the current state. Without momentum (B) is (A). Where keys change, (B) has no
bound: what is fed back is late by 1 / (1 - beta) tokens.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hope.memory.solve import solve_unit_lower

# Least squared norm that divides a relative step.
_LEAST_SQUARE = 1e-2


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
  return proximal_step(eta[..., None], u)[..., 0]


def proximal_step(eta: jax.Array, u: jax.Array) -> jax.Array:
  """`normalized_step` of a column.

  Args:
    eta: [..., c, 1].
    u: [..., c, i].

  Returns:
    [..., c, 1].
  """
  return eta / (1 + eta * jnp.sum(jnp.square(u), axis=-1, keepdims=True))


def relative_step(rate: jax.Array, u: jax.Array) -> jax.Array:
  """The step eta' = rate / |u|^2 of normalised LMS.

  A write by the delta rule, without retention and momentum, multiplies the
  error at u by 1 - rate: 1 corrects it at once, 2 turns its sign.

  Choice: |u|^2 counts as at least 0.01, so that a write for an input near 0
  is at most 10 rate |g| long.

  Args:
    rate: [..., c, 1], in [0, 2] for writes that do not expand.
    u: [..., c, i].

  Returns:
    [..., c, 1].
  """
  square = jnp.sum(jnp.square(u), axis=-1, keepdims=True)
  return rate / jnp.maximum(square, _LEAST_SQUARE)


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
  read_after: bool = False,
  trace_erases: bool = False,
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
    read_after: False reads K_{t-1}, the kernel before the token's own write;
      True reads K_t, as published linear recurrences do.
    trace_erases: rule (B) in the place of (A).

  Returns:
    (K_c, S_c, reads): the state after the last token and, for each token, its
    query times the kernel that it reads, [..., c, o] (None without queries).
  """

  def tokens(x: jax.Array | None) -> jax.Array | None:
    """[..., c, i] as [c, ..., 1, i]."""
    return None if x is None else jnp.moveaxis(x, -2, 0)[..., None, :]

  def rates(x: jax.Array | None) -> jax.Array | None:
    """[..., c] as [c, ..., 1, 1]."""
    return None if x is None else tokens(x[..., None])

  def step(state, x):
    kernel, trace = state
    u, g, eta, alpha, beta, eps, q = x
    kernel, trace, read = one_token(
      kernel,
      trace,
      u,
      g,
      eta=eta,
      decay=TokenDecays(alpha, beta, read_after),
      erase=0.0 if eps is None else eps,
      queries=q,
      trace_erases=trace_erases,
    )
    return (kernel, trace), read

  given = (eta, alpha, beta, _erase_rates(erase, eta))
  rest = (*map(rates, given), tokens(queries))
  xs = (tokens(u), tokens(g), *rest)
  (kernel, trace), reads = lax.scan(step, (kernel, trace), xs)
  if reads is not None:
    reads = jnp.moveaxis(reads[..., 0, :], 0, -2)
  return kernel, trace, reads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenDecays:
  """The decay factors of a single token.

  Attributes:
    alpha: [..., 1, 1], retention.
    beta: [..., 1, 1], momentum factor; None: no momentum.
    read_after: whether queries read after the token's own write.
  """

  alpha: jax.Array
  beta: Any
  read_after: bool = dataclasses.field(metadata={'static': True})


def token_decays(
  alpha: jax.Array,
  beta: jax.Array | None,
  valid: None = None,
  read_after: bool = False,
) -> TokenDecays:
  """`decays` of a single token, which always counts.

  Args:
    alpha: [..., 1, 1], retention.
    beta: [..., 1, 1], momentum factor; None: no momentum.
    valid: None.
    read_after: whether queries read after their token's own write.
  """
  del valid
  return TokenDecays(alpha, beta, read_after)


def one_token(
  kernel: jax.Array,
  trace: jax.Array | None,
  u: jax.Array,
  g: jax.Array,
  *,
  eta: jax.Array,
  decay: TokenDecays,
  erase: jax.Array | float | None = None,
  queries: jax.Array | None = None,
  trace_erases: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """Rule (A), or (B), for one token: no tables and no solve.

  Args and Returns: as `decayed_update` with c = 1: kernel, trace [..., i, o];
  u, queries [..., 1, i]; g [..., 1, o]; eta, erase [..., 1, 1]; decay of
  `token_decays`.
  """
  eps = _erase_rates(erase, eta)
  write, erased = eta * g, None
  if eps is not None:
    erased = eps * (u @ kernel)
    if trace_erases:
      write, erased = write + erased, None
  write = -_turn(u) * write
  if trace is not None:
    write = trace = decay.beta * trace + write
  new = decay.alpha * kernel + write
  if erased is not None:
    new -= _turn(u) * erased
  if queries is None:
    return new, trace, None
  return new, trace, queries @ (new if decay.read_after else kernel)


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
  past = jnp.tri(x.shape[-1] + 1, dtype=bool)
  # The exponent is masked as well: above the diagonal it may overflow.
  logs = jnp.where(past, _sums_between(jnp.log(jnp.where(zero, 1, x))), 0)
  zeros = _sums_between(zero.astype(jnp.int32))
  return jnp.where(past & (zeros == 0), jnp.exp(logs), 0)


def _sums_between(x: jax.Array) -> jax.Array:
  """Sums of x [..., c] between any two states, [..., c + 1, c + 1].

  x_j + ... + x_{t-1} at [t, j] for j <= t; its negative for [j, t].
  """
  first = [(0, 0)] * (x.ndim - 1) + [(1, 0)]
  sums = jnp.pad(jnp.cumsum(x, axis=-1), first)
  return sums[..., :, None] - sums[..., None, :]


def _products_fwd(x):
  table = products(x)
  return table, table


def _products_bwd(table, table_bar):
  # The product without x_s is [t, s + 1] times [s, j].
  # Row 0 is an empty product: no gradient.
  after = jnp.swapaxes(table[..., 1:, 1:], -1, -2) @ table_bar[..., 1:, :-1]
  return (jnp.sum(after * table[..., :-1, :-1], axis=-1),)


products.defvjp(_products_fwd, _products_bwd)


class Factors(NamedTuple):
  """What is left, at some places of a chunk of c tokens, of what came before.

  The places are rows: one per token in `Decays.before` and `Decays.read`, and
  the chunk's end in `Decays.end`, whose `keep` and `write` are columns.

  Attributes:
    start: [..., c, 1], of the kernel at the chunk's start.
    keep: [..., c, c], A: at place t, of the kernel after token j.
    write: [..., c, c], P: at place t, of the write at token j; A without
      momentum.
    trace: [..., c, 1], p: of the incoming trace, in the kernel; None without
      momentum.
  """

  start: jax.Array
  keep: jax.Array
  write: jax.Array
  trace: Any = None


class Decays(NamedTuple):
  """The decay factors of a chunk of c tokens.

  Attributes:
    before: before each token.
    end: after the last token: start and trace [..., 1, 1], keep and write
      [..., c, 1].
    trace_start: [..., 1, 1], of the incoming trace, in the trace at the end;
      None without momentum.
    trace_write: [..., c, 1], of the write at each token, in that trace; None
      without momentum.
    read: where queries read, if not before their token; None: before it.
  """

  before: Factors
  end: Factors
  trace_start: Any = None
  trace_write: Any = None
  read: Factors | None = None


def decays(
  alpha: jax.Array,
  beta: jax.Array | None,
  valid: jax.Array | None = None,
  read_after: bool = False,
) -> Decays:
  """The decay factors of a chunk.

  Args:
    alpha: [..., c, 1], retention.
    beta: [..., c, 1], momentum factor; None: no momentum.
    valid: bool, [c] or [b, 1, c] for alpha [b, n, c, 1]; a token where it is
      False leaves kernel and trace as they are, provided that its eta is 0.
      None: all tokens count.
    read_after: whether queries read after their token's own write.
  """
  alpha = alpha[..., 0]
  beta = None if beta is None else beta[..., 0]
  if valid is not None:
    alpha = jnp.where(valid, alpha, 1)
    beta = None if beta is None else jnp.where(valid, beta, 1)
  kernel = products(alpha)
  start, keep = kernel[..., :1], kernel[..., 1:]
  write, trace, momentum = keep, None, None
  if beta is not None:
    momentum = products(beta)
    # The trace is added to the kernel at every token that counts.
    added = keep if valid is None else jnp.where(valid[..., None, :], keep, 0)
    through = added @ momentum[..., 1:, :]
    trace, write = through[..., :1], through[..., 1:]

  def places(first: int | None, last: int | None) -> Factors:
    """Rows of the tables, one per state of the chunk."""
    at = slice(first, last)
    return Factors(
      start=start[..., at, :],
      keep=keep[..., at, :],
      write=write[..., at, :],
      trace=None if trace is None else trace[..., at, :],
    )

  before = places(None, -1)
  end = Factors(
    start=start[..., -1:, :],
    keep=_turn(keep[..., -1:, :]),
    write=_turn(write[..., -1:, :]),
    trace=None if trace is None else trace[..., -1:, :],
  )
  return Decays(
    before=before,
    end=end,
    trace_start=None if momentum is None else momentum[..., :1][..., -1:, :],
    trace_write=None
    if momentum is None
    else _turn(momentum[..., 1:][..., -1:, :]),
    read=places(1, None) if read_after else None,
  )


def _turn(x: jax.Array) -> jax.Array:
  """[..., r, s] as [..., s, r]."""
  return jnp.swapaxes(x, -1, -2)


class Form(NamedTuple):
  """A form of the rule, for a backend and a length.

  Attributes:
    decays: the decay factors, as `decays`; what it returns is for `update`.
    update: the rule, as `decayed_update`.
  """

  decays: Callable[..., Any]
  update: Callable[..., tuple[Any, Any, Any]]


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
  read_after: bool = False,
  trace_erases: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """Rule (A), or (B), over a chunk in parallel: equal to `token_update`.

  Args and Returns: as `token_update`: kernel, trace [..., i, o]; u, queries
  [..., c, i]; g [..., c, o]; eta, alpha, beta, erase [..., c].
  """

  def column(x: Any) -> Any:
    return x if x is None or isinstance(x, float) else x[..., None]

  return decayed_update(
    kernel,
    trace,
    u,
    g,
    eta=column(eta),
    decay=decays(column(alpha), column(beta), read_after=read_after),
    erase=column(erase),
    queries=queries,
    trace_erases=trace_erases,
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
  trace_erases: bool = False,
  solve: Callable[[jax.Array, jax.Array], jax.Array] = solve_unit_lower,
) -> tuple[jax.Array, Any, Any]:
  """`chunk_update` with the decay factors already computed.

  Args:
    kernel: [..., i, o].
    trace: [..., i, o], or None.
    u: [..., c, i].
    g: [..., c, o].
    eta: [..., c, 1], normalised.
    decay: of alpha and beta; says where queries read.
    erase: as in `chunk_update`, but [..., c, 1].
    queries: [..., c, i], or None.
    trace_erases: as in `token_update`.
    solve: the backend's unit lower triangular solve, as `solve_unit_lower`.

  Returns:
    (kernel, trace, reads), as `chunk_update`.
  """
  eps = _erase_rates(erase, eta)
  before, end = decay.before, decay.end

  def incoming(x: jax.Array, scores: jax.Array, at: Factors) -> jax.Array:
    """What x reads at each token if nothing is erased, [..., c, o].

    Args:
      x: [..., c, i], queries or inputs.
      scores: [..., c, c], x times u.
      at: the decay factors where x reads.
    """
    # Decays and rates scale the side of x, which is the narrower one.
    read = (at.start * x) @ kernel
    if trace is not None:
      read += (at.trace * x) @ trace
    return read - (_turn(eta) * at.write * scores) @ g

  def erasing(at: Factors) -> jax.Array:
    """Effect on the kernel of what each token erases, shaped as at.keep."""
    return at.write if trace_erases else at.keep

  change = end.write * eta * g
  stored: Any = None
  if eps is not None:
    gram = jnp.einsum('...ti,...ji->...tj', u, u)
    left = _turn(eps) * erasing(before) * gram
    stored = solve(left, incoming(u, gram, before))
    change += erasing(end) * eps * stored

  reads = None
  if queries is not None:
    at = before if decay.read is None else decay.read
    match = jnp.einsum('...ti,...ji->...tj', queries, u)
    reads = incoming(queries, match, at)
    if eps is not None:
      reads -= (_turn(eps) * erasing(at) * match) @ stored

  ut = _turn(u)
  new = end.start * kernel - ut @ change
  if trace is None:
    return new, None, reads
  new += end.trace * trace
  trace = decay.trace_start * trace
  write = eta * g
  if eps is not None and trace_erases:
    write += eps * stored
  trace -= ut @ (decay.trace_write * write)
  return new, trace, reads


XLA = Form(decays=decays, update=decayed_update)
TOKEN = Form(decays=token_decays, update=one_token)


def _erase_rates(erase, eta):
  """eps per token, shaped like eta; None where erase is switched off."""
  if erase is None:
    return eta
  return None if isinstance(erase, float) and erase == 0.0 else erase
