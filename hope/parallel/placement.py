"""Where every array lies on the mesh: a table for parameters, one for the rest.

A parameter is stored as the first rule that matches its path says. A layer's
parameters are gathered along `fsdp` when the layer is computed, and gathered
anew in the backward pass where the layer is (`compute.remat`); their gradients
are summed into the stored parts. Optimizer state that has the shape of its
parameter lies like it; all other optimizer state is on every device.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import optax

from hope.parallel.mesh import BATCH

# Heads of a mixer: within it, all tokens of a row are on one device.
_HEADS = ('tensor', 'seq')

# Pattern of a parameter's path, and how it is stored. The stacked layers of
# `blocks` come before these dimensions and are not split.
PARAMETERS: tuple[tuple[str, P], ...] = (
  (r'embed/embedding', P(None, ('fsdp', 'tensor'))),
  (r'(.*/)?norm/scale', P()),
  (r'blocks/mixer/(mix|query|qkv|beta)/kernel', P('fsdp', 'tensor')),
  (r'blocks/mixer/output/kernel', P('tensor', 'fsdp')),
  (r'blocks/mixer/conv/kernel', P(None, 'tensor')),
  (r'blocks/mixer/(k|v|q|eta|alpha|memory)/(up|down)', P('tensor', 'fsdp')),
  (r'blocks/mixer/(eta_bias|alpha_bias|beta/bias)', P('tensor')),
  (r'blocks/mixer/(memory|projection)_rate', P(None, 'tensor')),
  (
    r'blocks/cms/level_\d+/(up/kernel|up|key_value/kernel)',
    P('fsdp', 'tensor'),
  ),
  (r'blocks/cms/level_\d+/(down/kernel|down)', P('tensor', 'fsdp')),
  (r'blocks/cms/level_\d+/gates/kernel', P('fsdp')),
  (r'blocks/cms/level_\d+/gates/bias', P()),
  (r'blocks/cms/mix', P()),
)
# Stored along `tensor`, but used whole: what a token of a level learns with a
# part of its hidden units would have to be summed at every chunk.
_USED_WHOLE = r'blocks/cms/level_\d+/(up|down|key_value/kernel)|embed/embedding'
# Kernels of nnx.Linear, and the embedding: converted to the type of products.
_IN_PRODUCTS = r'(?!.*/conv/).*/kernel|embed/embedding'

# Values between layers and fast weights, by what they are.
ACTIVATIONS: dict[str, P] = {
  'tokens': P(BATCH, 'seq'),  # [b, t, width]
  'logits': P(BATCH, ('seq', 'tensor')),  # [b, t, width or v]
  'heads': P(BATCH, None, _HEADS),  # [b, t, heads (x their width)]
  'hidden': P(BATCH, 'seq', 'tensor'),  # [b, t, heads x their width or f]
  'memory': P(BATCH, _HEADS),  # [b, n, ...]: fast weights of heads
  'level': P(BATCH),  # [b, 1, ...]: fast weights of a level
}


def spec(path: str) -> P:
  """How the parameter of a path, like 'blocks/mixer/k/up', is stored.

  Raises:
    ValueError: if no rule matches.
  """
  for pattern, found in PARAMETERS:
    if re.fullmatch(pattern, path):
      return P(None, *found) if path.startswith('blocks/') else found
  raise ValueError(
    f'No rule of hope.parallel.placement matches the parameter {path}; add one.'
  )


def _in_layer(path: str) -> P:
  """How a parameter is stored, without the stacked layers."""
  found = spec(path)
  return P(*found[1:]) if path.startswith('blocks/') else found


def _used(path: str) -> P:
  """How a layer uses a parameter."""
  if re.fullmatch(_USED_WHOLE, path):
    return P()
  return P(*(None if x == 'fsdp' else x for x in _in_layer(path)))


def _path(keys: Any) -> str:
  return '/'.join(str(getattr(k, 'key', k)) for k in keys)


def of_params(params: Any, mesh: Mesh) -> Any:
  """Shardings of parameters.

  Args:
    params: nested dict of the model's parameters.
    mesh: of the run.

  Raises:
    ValueError: for a leaf that no rule matches, or that does not divide.
  """

  def sharding(keys, leaf):
    path = _path(keys)
    found = NamedSharding(mesh, spec(path))
    try:
      found.shard_shape(leaf.shape)
    except ValueError:
      raise ValueError(
        f'{path} of shape {leaf.shape} does not divide as {found.spec} over '
        f'the mesh {dict(mesh.shape)}; choose smaller axes.'
      ) from None
    return found

  return jax.tree_util.tree_map_with_path(sharding, params)


def of_opt_state(tx: Any, opt_state: Any, params: Any, mesh: Mesh) -> Any:
  """Shardings of the state of an optax transformation; all may be abstract."""
  everywhere = NamedSharding(mesh, P())
  masked = lambda leaf: isinstance(leaf, optax.MaskedNode)

  def sharding(leaf, param, of_param):
    if masked(leaf):
      return leaf
    return of_param if leaf.shape == param.shape else everywhere

  return optax.tree.map_params(
    tx,
    sharding,
    opt_state,
    params,
    of_params(params, mesh),
    transform_non_params=lambda _: everywhere,
    is_leaf=masked,
  )


def on_mesh(found: P, mesh: Any) -> P:
  """A spec without the axes that a mesh lacks or has one device along."""

  def keep(axes):
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1) or None

  return P(*map(keep, found))


def _split(found: P) -> bool:
  """Whether the mesh in force splits anything along a spec."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and any(on_mesh(found, mesh))


def constrain(x: Any, kind: str) -> Any:
  """Lays values out as `ACTIVATIONS` says; without a mesh, leaves them.

  Args:
    x: tree of arrays.
    kind: a name of `ACTIVATIONS`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  found = P() if mesh.empty else on_mesh(ACTIVATIONS[kind], mesh)
  if not any(found):
    return x
  return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, found), x)


def by_head(x: jax.Array) -> jax.Array:
  """Exchanges tokens for heads: [b, t, heads x their width].

  Each device computes its tokens and sends what others need of them. Without
  the first constraint the compiler gathers what they are computed from.
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


def gather(params: Any, prefix: str, dtype: Any) -> Any:
  """Parameters as they are used, from those that are stored.

  Gradients go the way back: their sum over the devices is split as the
  parameters are stored.
  Choice: kernels of matrix products are gathered in the type of the product,
  and the compiler sums their gradients over devices in that type.

  Args:
    params: nested dict, of one layer where they are stacked.
    prefix: path of the dict in the model, like 'blocks'.
    dtype: of matrix products.
  """

  def one(keys, x):
    path = f'{prefix}/{_path(keys)}'
    stored, used = _in_layer(path), _used(path)
    if not _split(stored):
      return x
    in_product = re.fullmatch(_IN_PRODUCTS, path)
    return _gather(x, jnp.dtype(dtype) if in_product else x.dtype, stored, used)

  return jax.tree_util.tree_map_with_path(one, params)
