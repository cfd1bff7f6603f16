"""How Orbax stores a leaf of a state, and what becomes of it when read.

Orbax stores numbers: a PRNG key is stored as the numbers it is made of.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def numbers(leaf: jax.Array) -> jax.Array:
  """What Orbax stores.

  Args:
    leaf: numbers [...], or typed PRNG keys [...].

  Returns:
    The same numbers [...], or those of the keys, [..., numbers of a key].
  """
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def target(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
  """What Orbax is to restore for a leaf: numbers, and where they go.

  Args:
    name: of the leaf, for the message.
    leaf: an array, or a `jax.ShapeDtypeStruct`. Without a sharding, the numbers
      go to the first device of this process.

  Raises:
    ValueError: for a leaf without a sharding, with several processes.
  """
  sharding = leaf.sharding
  if sharding is None:
    if jax.process_count() > 1:
      raise ValueError(
        f'The abstract state gives no sharding for {name}; with several '
        'processes every leaf needs one.'
      )
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  if _is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def place(
  value: jax.Array | None, leaf: Any, wanted: jax.ShapeDtypeStruct
) -> jax.Array:
  """Turns what Orbax restored into an array like a leaf.

  A leaf that is not bound to a device gives an array that is not either, so
  that a computation may use it together with arrays on any devices.

  Args:
    value: numbers of the shape [...] of `wanted`; None: they are zeros, as
      Orbax stores no array without elements.
    leaf: as given to `target`.
    wanted: what `target` returned for it.

  Returns:
    Numbers or keys of the leaf's shape [...].
  """
  if value is None:
    value = jnp.zeros(wanted.shape, wanted.dtype, device=wanted.sharding)
  if leaf.sharding is None or not getattr(leaf, 'committed', True):
    value = jnp.asarray(np.asarray(value))
  if _is_key(leaf):
    impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
    value = jax.random.wrap_key_data(value, impl=impl)
  return value
