"""Tests of hope.run.manifest: fingerprints notice every change."""

from conftest import run_program
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope.run import manifest


def numpy_fingerprint(x):
  """The sum of manifest._hash, number by number, in Python's integers."""
  if x.dtype == np.bool_:
    x = x.astype(np.uint8)
  if np.iscomplexobj(x):
    x = np.stack([x.real, x.imag])
  words = np.ascontiguousarray(x).view(f'u{min(x.dtype.itemsize, 4)}')
  total = 0
  for i, word in enumerate(words.reshape(-1).tolist()):
    h = (word + i * 0x9E3779B1) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    total += h ^ h >> 16
  return total % 2**32


TYPES = (
  'bool int8 uint8 int16 int32 uint32 int64 uint64 float16 bfloat16 float32 '
  'float64 complex64 complex128'
).split()


def numbers(dtype, shape=(3, 5)):
  """Random bits of a type; NaNs, subnormals and negative zeros as they come."""
  dtype = jnp.dtype(dtype)
  rng = np.random.default_rng(0)
  if dtype == np.bool_:
    return rng.integers(2, size=shape).astype(bool)
  data = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
  return np.frombuffer(data, dtype).reshape(shape)


@pytest.mark.parametrize('dtype', TYPES)
def test_fingerprint_is_its_definition(dtype):
  x = numbers(dtype)
  with jax.enable_x64(True):
    found = manifest.fingerprints({'x': jnp.asarray(x)})
  assert found == {'x': numpy_fingerprint(x)}


def test_fingerprint_of_keys_scalars_and_empty_arrays():
  key = jax.random.key(3)
  found = manifest.fingerprints(
    {'key': key, 'scalar': jnp.int32(7), 'empty': jnp.zeros((0, 4))}
  )
  assert found == {
    'key': numpy_fingerprint(np.asarray(jax.random.key_data(key))),
    'scalar': numpy_fingerprint(np.array([7], np.int32)),
    'empty': 0,
  }


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_fingerprint_changes_with_every_bit_and_with_order(dtype):
  x = numbers(dtype, (4, 4))
  before = manifest.fingerprints({'x': jnp.asarray(x)})
  data = np.frombuffer(x.tobytes(), np.uint8)
  for bit in range(8 * data.size):
    changed = data.copy()
    changed[bit // 8] ^= 1 << bit % 8
    changed = jnp.asarray(changed.view(x.dtype).reshape(x.shape))
    assert manifest.fingerprints({'x': changed}) != before
  for other in (x.T, x[::-1], x.reshape(-1)[::-1].reshape(x.shape)):
    assert manifest.fingerprints({'x': jnp.asarray(other)}) != before


SPLIT = """
import json, jax, numpy as np
from hope.run import manifest
mesh = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
x = jax.device_put(np.arange(48, dtype=np.float32).reshape(16, 3), split)
assert len(x.addressable_shards) == 2
print(json.dumps({'x': int(manifest.fingerprints({'x': x})['x'])}))
"""


def test_fingerprint_does_not_depend_on_sharding():
  x = np.arange(48, dtype=np.float32).reshape(16, 3)
  assert run_program(SPLIT, devices=2) == {'x': numpy_fingerprint(x)}
