"""How every array is sharded over the mesh.

A parameter is stored as its row in the model's table says. A layer's parameters
are all-gathered along `fsdp` when the layer is computed, and again in the
backward pass if that recomputes the layer (`compute.remat`); their gradients
are reduce-scattered. Optimizer state that has the shape of its parameter is
sharded like it; all other optimizer state is replicated.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import optax

from hope.parallel.mesh import BATCH
from hope.parts import Leaf, find

# Heads of a mixer: within it, all tokens of a row are on one device.
_HEADS = ('tensor', 'seq')

Table = Sequence[Leaf]

# Shardings of activations and fast weights, by kind.
ACTIVATIONS: dict[str, P] = {
  'tokens': P(BATCH, 'seq'),  # [b, t, width]
  'logits': P(BATCH, ('seq', 'tensor')),  # [b, t, width or v]
  'heads': P(BATCH, None, _HEADS),  # [b, t, heads (x their width)]
  'hidden': P(BATCH, 'seq', 'tensor'),  # [b, t, heads x their width or f]
  'blocks': P(None, BATCH, _HEADS),  # [N, b, n, ...]: tokens in N blocks
  'memory': P(BATCH, _HEADS),  # [b, n, ...]: fast weights of heads
  'level': P(BATCH),  # [b, 1, ...]: fast weights of a level
}


def spec(table: Table, path: str) -> P:
  """How the parameter of a path, like 'blocks/0/mixer/k/up', is stored.

  The table describes one layer; the axis of stacked layers, which parameters of
  `blocks` have in front, is not sharded.

  Args:
    table: of the model (`hope.blocks.parameters`).
    path: of the parameter.

  Raises:
    ValueError: if no row matches.
  """
  found = find(table, path).spec
  return P(None, *found) if path.startswith('blocks/') else found


def _used(leaf: Leaf) -> P:
  """The sharding of a parameter while its layer is computed."""
  if leaf.used_whole:
    return P()
  return P(*(None if x == 'fsdp' else x for x in leaf.spec))


def _path(keys: Any) -> str:
  return '/'.join(str(getattr(k, 'key', k)) for k in keys)


def of_params(params: Any, mesh: Mesh, table: Table) -> Any:
  """Shardings of parameters.

  Args:
    params: nested dict of the model's parameters.
    mesh: of the run.
    table: of the model's parameters.

  Raises:
    ValueError: for a parameter that no row of the table describes, or whose
      shape the mesh does not divide.
  """

  def sharding(keys, leaf):
    path = _path(keys)
    found = NamedSharding(mesh, spec(table, path))
    try:
      found.shard_shape(leaf.shape)
    except ValueError:
      raise ValueError(
        f'{path} of shape {leaf.shape} does not divide as {found.spec} over '
        f'the mesh {dict(mesh.shape)}; choose smaller axes.'
      ) from None
    return found

  return jax.tree_util.tree_map_with_path(sharding, params)


def _is_masked(leaf: Any) -> bool:
  return isinstance(leaf, optax.MaskedNode)


def of_opt_state(
  tx: Any, opt_state: Any, params: Any, mesh: Mesh, table: Table
) -> Any:
  """Shardings of the state of an optax transformation; all may be abstract."""
  everywhere = NamedSharding(mesh, P())

  def sharding(leaf, param, of_param):
    if _is_masked(leaf):
      return leaf
    return of_param if leaf.shape == param.shape else everywhere

  return optax.tree.map_params(
    tx,
    sharding,
    opt_state,
    params,
    of_params(params, mesh, table),
    transform_non_params=lambda _: everywhere,
    is_leaf=_is_masked,
  )


def on_mesh(found: P, mesh: Any) -> P:
  """A spec without the axes that a mesh lacks or has one device along."""

  def keep(axes):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1) or None

  return P(*map(keep, found))


def _split(found: P) -> bool:
  """Whether the current mesh shards anything that has this spec."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and any(on_mesh(found, mesh))


def constrain(x: Any, kind: str) -> Any:
  """Constrains the sharding of values; does nothing without a mesh.

  Args:
    x: tree of arrays.
    kind: of the values, a name of `ACTIVATIONS`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  found = P() if mesh.empty else on_mesh(ACTIVATIONS[kind], mesh)
  if not any(found):
    return x
  return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, found), x)


def by_head(x: jax.Array) -> jax.Array:
  """Reshards x [b, t, heads x their width]: split by token, then by head.

  Each device computes its own tokens, then an all-to-all exchanges tokens for
  heads. Without the first constraint the compiler all-gathers the inputs that
  x is computed from.
  """
  return constrain(constrain(x, 'hidden'), 'heads')


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: jax.Array, dtype: Any, stored: P, used: P) -> jax.Array:
  del stored
  return jax.lax.with_sharding_constraint(x.astype(dtype), used)


def _gather_fwd(x, dtype, stored, used):
  return _gather(x, dtype, stored, used), None


def _gather_bwd(dtype, stored, used, residuals, x_bar):
  del dtype, used, residuals
  x_bar = x_bar.astype(jnp.float32)
  return (jax.lax.with_sharding_constraint(x_bar, stored),)


_gather.defvjp(_gather_fwd, _gather_bwd)


def gather(params: Any, prefix: str, dtype: Any, table: Table) -> Any:
  """All-gathers stored parameters for use in a layer.

  Gradients go the way back: they are summed over the devices and sharded as the
  parameters are stored.
  Choice: kernels of matmuls are all-gathered in the dtype of matmuls, and the
  compiler sums their gradients over the devices in that dtype.

  Args:
    params: nested dict, of one layer where they are stacked.
    prefix: path of the dict in the model, like 'blocks/0'.
    dtype: of matmuls.
    table: of the model's parameters.
  """

  def one(keys, x):
    leaf = find(table, f'{prefix}/{_path(keys)}')
    if not _split(leaf.spec):
      return x
    into = jnp.dtype(dtype) if leaf.in_products else x.dtype
    return _gather(x, into, leaf.spec, _used(leaf))

  return jax.tree_util.tree_map_with_path(one, params)
