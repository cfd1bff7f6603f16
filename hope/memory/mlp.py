"""Memories that share a key: their values, errors and learning.

A memory is M(z) = z + act(z @ up) @ down (Eq. 89 of arXiv:2512.24695), or
linear, M(z) = z @ down. Memories whose values have the same role, and so the
same width o, form a group; `down` has a kernel of each. The first group's
values are vectors like z; others, as gates, have no residual, even where z is
as narrow as they are. The first layers of all are one kernel `up`, since all
read the same key: one Gram matrix and one solve serve them all.

With the objective 'delta' the second layer, or the only one, learns by the
delta rule. The features u = act(k @ up) of a chunk are taken at its start, as
all gradients are. For given features the second layer has a linear problem,
which rule (A) solves at the current state. Where D is what the rule moves and B
the base that it is anchored to (B = 0 if to nothing),

  g_t = residual(k_t) + u_t B - target_t
  D_t = alpha_t D_{t-1} - eta'_t outer(u_t, alpha_t u_t D_{t-1} + g_t)

where alpha_t u_t D_{t-1} + g_t is the error after retention: rule (A) with
eps = alpha eta'. So a linear memory without a base is Gated DeltaNet. With
momentum, all of the outer product goes through the trace (rule (B)), since all
of it is the gradient. The first layer learns as by 'l2'.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope.memory import objectives, rule

act = jax.nn.silu


class Kernels(NamedTuple):
  """The kernels of all memories of a head, or anything shaped like them.

  Attributes:
    up: [..., i, m f] for m memories in all; None if they are linear.
    down: of each group, [..., m, f, o] for its m memories; [..., m, i, o] if
      they are linear.
  """

  up: Any
  down: tuple[Any, ...]


class State(NamedTuple):
  """The fast state of memories, [b, n, ...] in every kernel.

  Of the memories here these are `Kernels`; `hope.memory.linear` has one array.
  With `anchor='initial'` the kernels are deviations from the initial state.

  Attributes:
    start: the kernels at the start of the current chunk; None where nothing is
      computed from them.
    now: the kernels after the last token.
    trace: the momentum traces after the last token; None without momentum.
  """

  start: Any
  now: Any
  trace: Any


def _features(
  kernels: Kernels, z: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """Pre-activations [..., c, m f] of all, features [..., m, c, f] by group."""
  if kernels.up is None:
    *lead, c, i = z.shape
    return z, tuple(
      jnp.broadcast_to(z[..., None, :, :], (*lead, x.shape[-3], c, i))
      for x in kernels.down
    )
  pre = z @ kernels.up
  return pre, _split(act(pre), kernels)


def _split(x: jax.Array, kernels: Kernels) -> tuple[jax.Array, ...]:
  """[..., c, m f] of all memories -> [..., m, c, f] of each group."""
  f = kernels.down[0].shape[-2]
  x = jnp.moveaxis(x.reshape(*x.shape[:-1], -1, f), -2, -3)
  ends = list(itertools.accumulate(d.shape[-3] for d in kernels.down))
  return tuple(jnp.split(x, ends[:-1], axis=-3))


def _join(xs: list[jax.Array]) -> jax.Array:
  """The inverse of `_split`: [..., c, m f]."""
  x = jnp.moveaxis(jnp.concatenate(xs, axis=-3), -3, -2)
  return x.reshape(*x.shape[:-2], -1)


def _residual(
  kernels: Kernels, z: jax.Array, outs: list[jax.Array], residual: bool
) -> tuple[jax.Array, ...]:
  """Outputs [..., m, c, o] of each group, the first one's with the residual."""
  first, *others = outs
  if residual and kernels.up is not None:
    first += z[..., None, :, :]
  return first, *others


def forward(
  kernels: Kernels, z: jax.Array, residual: bool = True
) -> tuple[jax.Array, ...]:
  """M(z) of every memory.

  Args:
    kernels: up [..., i, m f], down [..., m, f, o] of each group.
    z: [..., c, i].
    residual: False leaves z out of M(z) = z + act(z @ up) @ down.

  Returns:
    Of each group, [..., m, c, o].
  """
  _, features = _features(kernels, z)
  outs = [u @ down for u, down in zip(features, kernels.down, strict=True)]
  return _residual(kernels, z, outs, residual)


def losses(
  kernels: Kernels,
  k: jax.Array,
  targets: tuple[jax.Array, ...],
  objective: str,
  residual: bool = True,
) -> tuple[jax.Array, ...]:
  """What each memory's objective says of its values for some keys.

  Args:
    kernels: up [..., i, m f], down [..., m, f, o] of each group.
    k: [..., c, i], keys.
    targets: of each group [..., m, c, o], wanted values.
    objective: one of `objectives.NAMES`.
    residual: as in `forward`.

  Returns:
    Of each memory, counted through all groups, [..., c, 1].
  """
  found = (
    objectives.loss(objective, prediction, target)
    for prediction, target in zip(
      forward(kernels, k, residual), targets, strict=True
    )
  )
  return tuple(x[..., j, :, :] for x in found for j in range(x.shape[-3]))


def select(kernels: Kernels, first: int, last: int) -> Kernels:
  """The memories first, ..., last - 1, counted through all groups.

  Args:
    kernels: up [..., i, m f], down [..., m, f, o] of each group.
    first: the first memory.
    last: one past the last memory.

  Returns:
    The kernels of these memories, without groups that have none of them.
  """
  up, f, down = kernels.up, kernels.down[0].shape[-2], []
  if up is not None:
    up = up[..., first * f : last * f]
  for group in kernels.down:
    part = group[..., max(first, 0) : max(last, 0), :, :]
    if part.shape[-3]:
      down.append(part)
    first, last = first - group.shape[-3], last - group.shape[-3]
  return Kernels(up, tuple(down))


def stack(groups: list[list[Kernels]]) -> Kernels:
  """Puts single memories together.

  Args:
    groups: lists of memories of the same width o, each up [..., i, f] and down
      ([..., 1, f, o],).

  Returns:
    up [..., i, m f] of all, down [..., m, f, o] of each group.
  """
  every = [memory for group in groups for memory in group]
  up = None
  if every[0].up is not None:
    up = jnp.concatenate([memory.up for memory in every], axis=-1)
  return Kernels(
    up,
    tuple(
      jnp.concatenate([memory.down[0] for memory in group], axis=-3)
      for group in groups
    ),
  )


def spread(tree: Any, batch: int) -> Any:
  """Parameters [...] as every stream of a batch sees them, [batch, ...].

  Spread before a scan, so that their gradient is summed over the batch (and
  over the devices that hold it) once, not at every chunk.
  """
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), tree)


def add(base: Any, kernels: Any) -> Any:
  """The kernels in force: deviations plus the base; both trees of [...]."""
  return kernels if base is None else jax.tree.map(jnp.add, base, kernels)


def norms(kernels: Any) -> jax.Array:
  """The norm of a memory by layer, [layers]: RMS over heads and batch.

  Args:
    kernels: tree of [layers, b, n, ...].
  """
  square = sum(
    jnp.sum(jnp.square(x), axis=tuple(range(3, x.ndim))).mean((1, 2))
    for x in jax.tree.leaves(kernels)
  )
  return jnp.sqrt(jnp.asarray(square))


class Rates(NamedTuple):
  """Per-token factors of rule (A), shared by the memories of a head.

  Attributes:
    up: [..., c, 1], eta of the first layers, not normalised.
    down: [..., c, 1], eta of the second layers, not normalised.
    decay: of the chunk's tokens.
    erase: whether the erase term is on; by 'delta' it always is in the last
      layer.
    error_max: largest norm of a layer's error; None: no bound. The errors of
      layers that learn by the delta rule have none.
    form: of the rule.
    alpha: [..., c, 1], retention; only 'delta' needs it.
    relative: whether `down` is a part of the error rather than eta
      (`rule.relative_step`).
  """

  up: jax.Array
  down: jax.Array
  decay: rule.Decays
  erase: bool
  error_max: float | None
  form: rule.Form = rule.XLA
  alpha: Any = None
  relative: bool = False

  def step_down(self, u: jax.Array) -> jax.Array:
    """The second layers' eta' for inputs u [..., m, c, f]: [..., m, c, 1]."""
    step = rule.relative_step if self.relative else rule.proximal_step
    return step(self.down[..., None, :, :], u)


def _errors(
  base: Kernels | None,
  frozen: Kernels,
  k: jax.Array,
  targets: tuple[jax.Array, ...],
  objective: str,
  residual: bool,
  error_max: float | None,
) -> tuple[tuple[jax.Array, ...], Kernels]:
  """Inputs and errors of the layers, by the chain rule: (features, errors).

  For `down`, u = act(k @ up) and g from the objective; for `up`, u = k and
  g = (g_down @ down.T) * act'(k @ up). Both g and g_down @ down.T are shortened
  to the norm `error_max` where they are longer. By the delta rule, the g that
  `down` learns from is that of the base alone, and has no bound.
  """

  def bound(x: jax.Array) -> jax.Array:
    return x if error_max is None else objectives.bound_norm(x, error_max)

  pre, features = _features(frozen, k)
  errors, back = [], []
  outs = [u @ down for u, down in zip(features, frozen.down, strict=True)]
  predictions = _residual(frozen, k, outs, residual)
  of_base = predictions
  if objective == 'delta':
    of_base = _residual(frozen, k, _of_base(base, features), residual)
  for prediction, kept, down, target in zip(
    predictions, of_base, frozen.down, targets, strict=True
  ):
    g = bound(objectives.error(objective, prediction, target))
    if frozen.up is not None:
      back.append(bound(g @ jnp.swapaxes(down, -1, -2)))
    if objective == 'delta':
      g = objectives.error(objective, kept, target)
    errors.append(g)
  up = None
  if frozen.up is not None:
    _, activation_vjp = jax.vjp(act, pre)
    (up,) = activation_vjp(_join(back))
  return features, Kernels(up, tuple(errors))


def _of_base(
  base: Kernels | None, features: tuple[jax.Array, ...]
) -> list[jax.Array]:
  """Outputs of the base for features, [..., m, c, o] of each group."""
  if base is None:
    return [jnp.zeros((), u.dtype) for u in features]
  return [u @ down for u, down in zip(features, base.down, strict=True)]


def learn(
  base: Kernels | None,
  start: Kernels,
  now: Kernels,
  trace: Kernels | None,
  *,
  k: jax.Array,
  targets: tuple[jax.Array, ...],
  rates: Rates,
  objective: str,
  queries: jax.Array | None = None,
  residual: bool = True,
) -> tuple[Kernels, Kernels | None, Any]:
  """Memories that share their key learn c tokens by rule (A).

  All gradients are taken at `start` (Eq. 90: frozen within a chunk), but by the
  delta rule those of the last layer.

  Args:
    base: initial kernels that retention is anchored to, or None.
    start: kernels at the chunk's start, as deviations from `base`.
    now: kernels before these tokens.
    trace: momentum traces before these tokens, or None.
    k: [..., c, i], keys.
    targets: of each group [..., m, c, o], wanted values.
    rates: of writes, retention and momentum at these tokens.
    objective: one of `objectives.NAMES`.
    queries: [..., c, i]; None: nothing is read.
    residual: as in `forward`.

  Returns:
    (now, trace, reads); reads: of each group M(q) of each memory at the state
    where `rates.decay` says that a token reads, [..., m, c, o].
  """
  frozen = add(base, start)
  features, errors = _errors(
    base, frozen, k, targets, objective, residual, rates.error_max
  )
  erase = None if rates.erase else 0.0
  delta = objective == 'delta'
  up, up_trace, q_features = None, None, [None] * len(features)
  if frozen.up is not None:
    up, up_trace, q_pre = rates.form.update(
      now.up,
      None if trace is None else trace.up,
      k,
      errors.up,
      eta=rule.proximal_step(rates.up, k),
      decay=rates.decay,
      erase=erase,
      queries=queries,
    )
    if queries is not None:
      if base is not None:
        q_pre += queries @ base.up
      q_features = _split(act(q_pre), frozen)
  elif queries is not None:
    _, q_features = _features(frozen, queries)

  decay = jax.tree.map(lambda x: x[..., None, :, :], rates.decay)
  downs, down_traces, reads = [], [], []
  for j, u in enumerate(features):
    step = rates.step_down(u)
    down, down_trace, read = rates.form.update(
      now.down[j],
      None if trace is None else trace.down[j],
      u,
      errors.down[j],
      eta=step,
      decay=decay,
      erase=rates.alpha[..., None, :, :] * step if delta else erase,
      queries=q_features[j],
      trace_erases=delta,
    )
    downs.append(down)
    down_traces.append(down_trace)
    if queries is not None:
      if base is not None:
        read += q_features[j] @ base.down[j]
      reads.append(read)
  return (
    Kernels(up, tuple(downs)),
    None if trace is None else Kernels(up_trace, tuple(down_traces)),
    None if queries is None else _residual(frozen, queries, reads, residual),
  )
