"""What the memories of self-referential Titans measure, by name."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hope.memory import mlp
from hope.mixers.titans_options import TitansOptions


def generated(q_memory: bool) -> list[str]:
  """The memories that generate, in the order of `_generators`."""
  return ['v', *(['q'] if q_memory else []), 'k', 'eta', 'alpha']


def changes(made, first) -> tuple[jax.Array, ...]:
  """|x - y| / |y| [..., c, 1] of what memories and their initial states made.

  Args:
    made: arrays [..., c, d].
    first: the same by the initial states.
  """

  def norm(x: jax.Array) -> jax.Array:
    return jnp.linalg.norm(x, axis=-1, keepdims=True)

  return tuple(norm(x - y) / norm(y) for x, y in zip(made, first, strict=True))


def measured(
  options: TitansOptions, generating, remembering
) -> dict[str, jax.Array]:
  """What a call measured, by name, [b, t, n, 1]."""
  found = {'memory': remembering[0]}
  if not options.self_modifying:
    return found
  losses, changes = generating
  names = generated(options.q_memory)
  found |= zip(names, losses, strict=True)
  for name, x in zip(('q', 'k', 'v', 'eta', 'alpha'), changes, strict=True):
    if name in names:
      found[f'{name}/change'] = x
  return found


def norms(names: Sequence[str], memory: mlp.State) -> dict[str, jax.Array]:
  """Norms of what memories hold and of what they wrote last, by layer.

  state_norm is the norm of the kernels (of their deviation from the initial
  ones if anchored to them), write_norm that of the traces, the decayed sum of
  the writes; RMS over heads and batch. Without momentum there are no traces and
  no write norms.

  Args:
    names: of the memories.
    memory: of stacked layers, [layers, b, ...].

  Returns:
    Arrays [layers] by name, as 'memory/state_norm'.
  """
  found, kinds = {}, {'state_norm': memory.now}
  if memory.trace is not None:
    kinds['write_norm'] = memory.trace
  for kind, kernels in kinds.items():
    for j, name in enumerate(names):
      found[f'{name}/{kind}'] = mlp.norms(mlp.select(kernels, j, j + 1))
  return found


def metrics(state: Any) -> dict[str, jax.Array]:
  """`norms` of all memories.

  Args:
    state: TitansState of stacked layers, [layers, b, ...].
  """
  found = norms(['memory'], state.memory)
  if state.projections:
    with_q = state.projections.now.down[0].shape[-3] == 3
    found |= norms(generated(with_q), state.projections)
  return found
