"""Groups of memories that share their key: their values, errors and learning.

A group holds m memories of one form per head, all of whose outputs have the
same width o. A memory is M(z) = z + act(z @ up) @ down (Eq. 89 of
arXiv:2512.24695; no residual where i != o), or linear, M(z) = z @ down. The
first layers of a group are one kernel [i, m f], since all of them read the same
key: one Gram matrix and one solve serve them all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hope.memory import objectives, rule

act = jax.nn.silu


class Kernels(NamedTuple):
  """The kernels of a group, or anything shaped like them.

  Attributes:
    up: [..., i, m f]; None for linear memories.
    down: [..., m, f, o]; [..., m, i, o] for linear memories.
  """

  up: Any
  down: Any


class State(NamedTuple):
  """The fast state of a group, [b, n, ...] in every kernel.

  With `anchor='initial'` the kernels are deviations from the initial state.

  Attributes:
    start: the kernels at the start of the current chunk.
    now: the kernels after the last token.
    trace: the momentum traces after the last token; None without momentum.
  """

  start: Kernels
  now: Kernels
  trace: Kernels | None


def _features(kernels: Kernels, z: jax.Array) -> tuple[jax.Array, ...]:
  """Pre-activations [..., c, m f] and features of each, [..., m, c, f]."""
  m = kernels.down.shape[-3]
  if kernels.up is None:
    return z, jnp.broadcast_to(
      z[..., None, :, :], (*z.shape[:-2], m, *z.shape[-2:])
    )
  pre = z @ kernels.up
  return pre, _split(act(pre), m)


def _split(x: jax.Array, m: int) -> jax.Array:
  """[..., c, m f] -> [..., m, c, f]."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], m, -1), -2, -3)


def _join(x: jax.Array) -> jax.Array:
  """[..., m, c, f] -> [..., c, m f]."""
  x = jnp.moveaxis(x, -3, -2)
  return x.reshape(*x.shape[:-2], -1)


def _residual(kernels: Kernels, z: jax.Array, out: jax.Array, residual: bool):
  """out [..., m, c, o], with the residual where the memory has one."""
  if residual and kernels.up is not None and z.shape[-1] == out.shape[-1]:
    out += z[..., None, :, :]
  return out


def forward(kernels: Kernels, z: jax.Array, residual: bool = True) -> jax.Array:
  """M(z) of every memory of a group.

  Args:
    kernels: of the group, up [..., i, m f], down [..., m, f, o].
    z: [..., c, i].
    residual: False leaves z out of M(z) = z + act(z @ up) @ down.

  Returns:
    [..., m, c, o].
  """
  out = _features(kernels, z)[1] @ kernels.down
  return _residual(kernels, z, out, residual)


def select(kernels: Kernels, index: int) -> Kernels:
  """The group that holds the one memory at `index`."""
  m, f = kernels.down.shape[-3:-1]
  up = kernels.up
  if up is not None:
    up = up[..., index * f : (index + 1) * f]
  return Kernels(up, kernels.down[..., index : index + 1, :, :])


def stack(groups: list[Kernels]) -> Kernels:
  """One group of the memories of several."""
  up = None
  if groups[0].up is not None:
    up = jnp.concatenate([g.up for g in groups], axis=-1)
  return Kernels(up, jnp.concatenate([g.down for g in groups], axis=-3))


def spread(tree: Any, batch: int) -> Any:
  """Parameters as every stream of a batch sees them, [batch, ...].

  Spread before a scan, so that their gradient is summed over the batch, and
  over the devices that hold it, once and not at every chunk.
  """
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (batch, *x.shape)), tree)


def add(base: Any, kernels: Any) -> Any:
  """The kernels in force: these, plus the base that they deviate from."""
  return kernels if base is None else jax.tree.map(jnp.add, base, kernels)


class Rates(NamedTuple):
  """Per-token factors of rule (A), shared by the memories of a head.

  Attributes:
    up: [..., c], eta of the first layers, not normalised.
    down: [..., c], eta of the second layers, not normalised.
    decay: of the chunk's tokens.
    erase: whether the erase term is on.
    error_max: largest norm of a layer's error; None: no bound.
  """

  up: jax.Array
  down: jax.Array
  decay: rule.Decays
  erase: bool
  error_max: float | None


class _Errors(NamedTuple):
  """What the layers of a group learn from; `up` is None if it is linear."""

  up: Any
  features: jax.Array
  down: jax.Array


def _errors(
  frozen: Kernels,
  k: jax.Array,
  targets: jax.Array,
  objective: str,
  residual: bool,
  error_max: float | None,
) -> _Errors:
  """The inputs and the errors of both layers, by the chain rule.

  For `down`, u = act(k @ up) and g from the objective; for `up`, u = k and
  g = (g_down @ down.T) * act'(k @ up). Both g and g_down @ down.T are shortened
  to the norm `error_max` where they are longer.
  """
  bound = lambda x: (
    x if error_max is None else objectives.bound_norm(x, error_max)
  )
  pre, u = _features(frozen, k)
  prediction = _residual(frozen, k, u @ frozen.down, residual)
  g = bound(objectives.error(objective, prediction, targets))
  if frozen.up is None:
    return _Errors(None, u, g)
  back = _join(bound(g @ jnp.swapaxes(frozen.down, -1, -2)))
  _, activation_vjp = jax.vjp(act, pre)
  return _Errors(activation_vjp(back)[0], u, g)


def learn(
  base: tuple[Kernels, ...] | None,
  start: tuple[Kernels, ...],
  now: tuple[Kernels, ...],
  trace: tuple[Kernels, ...] | None,
  k: jax.Array,
  targets: tuple[jax.Array, ...],
  rates: Rates,
  objective: str,
  queries: Any = None,
  residual: bool = True,
) -> tuple[tuple[Kernels, ...], tuple[Kernels, ...] | None, Any]:
  """Groups that share their key learn c tokens by rule (A).

  All gradients are taken at `start` (Eq. 90: frozen within a chunk).

  Args:
    base: initial kernels that retention is anchored to, or None.
    start: kernels at the chunk's start, as deviations from `base`.
    now: kernels before these tokens.
    trace: momentum traces before these tokens, or None.
    k: [..., c, i], keys.
    targets: of each group [..., m, c, o], wanted values.
    rates: of these tokens.
    objective: 'l2' or 'dot'.
    queries: [..., c, i]; None: nothing is read.
    residual: as in `forward`.

  Returns:
    (now, trace, reads); reads: of each group M(q) of each memory at the state
    before each token, [..., m, c, o].
  """
  frozen = add(base, start)
  groups = range(len(start))
  errors = [
    _errors(frozen[j], k, targets[j], objective, residual, rates.error_max)
    for j in groups
  ]
  erase = None if rates.erase else 0.0
  ups: Any = [None] * len(start)
  up_traces: Any = [None] * len(start)
  q_features: Any = [None] * len(start)
  if frozen[0].up is not None:
    ups, up_traces, q_pre = rule.decayed_update(
      tuple(x.up for x in now),
      None if trace is None else tuple(x.up for x in trace),
      k,
      tuple(x.up for x in errors),
      eta=rule.normalized_step(rates.up, k),
      decay=rates.decay,
      erase=erase,
      queries=queries,
    )
    if queries is not None:
      if base is not None:
        q_pre = [q_pre[j] + queries @ base[j].up for j in groups]
      q_features = [
        _split(act(q_pre[j]), frozen[j].down.shape[-3]) for j in groups
      ]
  elif queries is not None:
    q_features = [_features(x, queries)[1] for x in frozen]

  decay = jax.tree.map(lambda x: jnp.expand_dims(x, 2), rates.decay)
  new, new_trace, reads = [], [], []
  for j in groups:
    u = errors[j].features
    (down,), down_trace, read = rule.decayed_update(
      (now[j].down,),
      None if trace is None else (trace[j].down,),
      u,
      (errors[j].down,),
      eta=rule.normalized_step(rates.down[..., None, :], u),
      decay=decay,
      erase=erase,
      queries=q_features[j],
    )
    new.append(Kernels(ups[j], down))
    if trace is not None:
      new_trace.append(Kernels(up_traces[j], down_trace[0]))
    if queries is not None:
      out = read[0]
      if base is not None:
        out += q_features[j] @ base[j].down
      reads.append(_residual(frozen[j], queries, out, residual))
  return (
    tuple(new),
    None if trace is None else tuple(new_trace),
    None if queries is None else tuple(reads),
  )
