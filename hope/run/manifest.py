"""What a checkpoint says about its arrays, so that damage is noticed.

The manifest is kept as JSON beside the arrays:

  {'content': {'format': ..., 'step': ..., 'config': ..., 'leaves': {path:
   {'shape': ..., 'dtype': ..., 'fingerprint': ...}}, 'data_state': ...,
   'extra': ...}, 'digest': SHA-256 of the content}
"""

import collections
from collections.abc import Mapping
import hashlib
import json
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Version of the content and of the layout of the arrays.
FORMAT = 1

_WORD_TYPES = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
# Most leaves that one message names.
_NAMED = 10


def _words(x: jax.Array) -> jax.Array:
  """Returns the bits of x as uint32, one or more words per number."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    x = jnp.stack([x.real, x.imag])
  words = lax.bitcast_convert_type(x, _WORD_TYPES[x.dtype.itemsize])
  return words.astype(jnp.uint32)


def _hash(x: jax.Array) -> jax.Array:
  """Returns a uint32 that depends on every bit of x and on its place.

  sum_i mix(word_i + i * odd) mod 2^32, where mix is the finalizer of
  MurmurHash3. It is one-to-one, so a change within one word always changes the
  sum. Integers add up to the same sum in any order: sharding does not matter.
  """
  words = _words(x)
  index = jnp.zeros_like(words)
  stride = 1
  for axis in reversed(range(words.ndim)):
    place = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    index += place * jnp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  h = words + index * jnp.uint32(0x9E3779B1)
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)


@jax.jit
def _hashes(leaves: list[jax.Array]) -> jax.Array:
  return jnp.stack([_hash(leaf) for leaf in leaves])


def leaves_by_path(tree: Any) -> dict[str, Any]:
  """Returns the leaves of tree by their dotted paths, in the tree's order.

  Raises:
    ValueError: if two leaves have the same path.
  """
  leaves = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    if name in leaves:
      raise ValueError(f'Two leaves of the state are called {name!r}.')
    leaves[name] = leaf
  return leaves


def fingerprints(leaves: Mapping[str, jax.Array]) -> dict[str, int]:
  """Computes a fingerprint of every array, on the devices that hold it.

  Args:
    leaves: Arrays of any number type and typed PRNG keys, by name.

  Returns:
    A 32-bit integer per array. Arrays that differ in one number (a half of
    one if it has 64 bits), in however many bits, have different ones.

  Raises:
    TypeError: if a leaf is not a jax array.
  """
  for name, leaf in leaves.items():
    if not isinstance(leaf, jax.Array):
      raise TypeError(
        f'{name} is a {type(leaf).__name__}: checkpoints hold jax arrays '
        'only; wrap it in jnp.asarray or save it in `extra`.'
      )
  groups = collections.defaultdict(list)
  for name, leaf in leaves.items():
    groups[frozenset(leaf.sharding.device_set)].append(name)
  found = {}
  for names in groups.values():
    values = np.asarray(_hashes([leaves[name] for name in names]))
    found |= zip(names, values.tolist(), strict=True)
  return found


def _digest(content: Any) -> str:
  text = json.dumps(content, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


def _check_json(name: str, value: Any) -> None:
  """Raises a ValueError unless value comes back from JSON as it is."""
  try:
    same = json.loads(json.dumps(value, allow_nan=False)) == value
  except (TypeError, ValueError) as error:
    raise ValueError(f'{name} cannot be written as JSON: {error}') from None
  if not same:
    raise ValueError(
      f'{name} changes when written as JSON: use dicts with string keys, '
      'lists, strings, numbers, booleans and None only.'
    )


def build(
  step: int,
  leaves: Mapping[str, jax.Array],
  config_fingerprint: str,
  data_state: dict[str, Any],
  extra: dict[str, Any] | None,
) -> dict[str, Any]:
  """Returns the manifest of a checkpoint.

  Args:
    step: Training steps done.
    leaves: The arrays by their dotted paths.
    config_fingerprint: Fingerprint of the configuration.
    data_state: Position in the data.
    extra: Anything else.

  Raises:
    ValueError: if data_state or extra is not plain JSON.
    TypeError: if a leaf is not a jax array.
  """
  _check_json('data_state', data_state)
  _check_json('extra', extra)
  hashes = fingerprints(leaves)
  content = {
    'format': FORMAT,
    'step': step,
    'config': config_fingerprint,
    'leaves': {
      name: {**_structure(leaf), 'fingerprint': hashes[name]}
      for name, leaf in leaves.items()
    },
    'data_state': data_state,
    'extra': extra,
  }
  return {'content': content, 'digest': _digest(content)}


def is_intact(manifest: Any, step: int) -> bool:
  """Returns whether a manifest is what was saved at this step."""
  try:
    content = manifest['content']
    return _digest(content) == manifest['digest'] and content['step'] == step
  except (KeyError, TypeError, ValueError):
    return False


def _structure(leaf: Any) -> dict[str, Any]:
  return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}


def _describe(structure: dict[str, Any] | None) -> str:
  if structure is None:
    return 'absent'
  return f'{structure["dtype"]} {tuple(structure["shape"])}'


def misfit(
  content: dict[str, Any], wanted: Mapping[str, Any], config_fingerprint: str
) -> str:
  """Says why a checkpoint is not of this configuration.

  Args:
    content: Content of an intact manifest.
    wanted: Arrays or `jax.ShapeDtypeStruct`s by their dotted paths.
    config_fingerprint: Fingerprint of the configuration.

  Returns:
    The end of a sentence that begins with the checkpoint; '' if it fits.
  """
  if content['format'] != FORMAT:
    return (
      f'has format {content["format"]}; this version reads format {FORMAT}.'
    )
  problems = []
  for name in sorted({*content['leaves'], *wanted}):
    old = _describe(content['leaves'].get(name))
    new = _describe(_structure(wanted[name]) if name in wanted else None)
    if old != new:
      problems.append(f'  {name}: {old} in the checkpoint, {new} in the state')
  if problems:
    if len(problems) > _NAMED:
      problems[_NAMED:] = [f'  and {len(problems) - _NAMED} more']
    return 'does not fit the state:\n' + '\n'.join(problems)
  if content['config'] != config_fingerprint:
    return (
      'was written with another configuration (fingerprint '
      f'{content["config"]!r}, now {config_fingerprint!r}).'
    )
  return ''


def damaged(
  content: dict[str, Any], leaves: Mapping[str, jax.Array]
) -> list[str]:
  """Returns the names of the arrays that differ from what was saved."""
  found = fingerprints(leaves)
  return [
    name
    for name, leaf in content['leaves'].items()
    if leaf['fingerprint'] != found[name]
  ]
