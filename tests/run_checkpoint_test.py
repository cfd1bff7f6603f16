"""Tests of checkpoints: what goes in comes out, or nothing does."""

import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope import errors
from hope.run import checkpoint, manifest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def small_state(seed):
  """Params, an optax state with NamedTuples, and numbers of other types."""
  rng = np.random.default_rng(seed)
  params = {
    'embed': {'table': jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)},
    'blocks': [{'w': jnp.asarray(rng.normal(size=(16, 16)), jnp.bfloat16)}],
  }
  return {
    'params': params,
    'opt': optax.adamw(1e-3).init(params),
    'step': jnp.int32(seed),
  }


def abstract(state):
  return jax.eval_shape(lambda: state)


def raw(leaf):
  """The bytes of an array or of a key."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  return np.asarray(leaf).tobytes()


def assert_identical(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert raw(x) == raw(y)


@pytest.fixture(scope='module')
def three_steps(tmp_path_factory):
  """A directory with checkpoints of the steps 2, 4 and 6."""
  path = tmp_path_factory.mktemp('three')
  with checkpoint.Checkpointer(path, keep=3) as saver:
    for step in (2, 4, 6):
      saver.save(step, small_state(step), data_state={'next_index': step})
  return path


@pytest.fixture
def directory(three_steps, tmp_path):
  """A copy of it to damage."""
  return pathlib.Path(shutil.copytree(three_steps, tmp_path / 'checkpoints'))


def restore(directory, state=None):
  with checkpoint.Checkpointer(directory, keep=3) as saver:
    return saver.restore_latest(abstract(state or small_state(0)))


def largest_file(directory):
  files = [path for path in directory.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


TYPES = (
  'int8 uint8 int16 int32 uint32 int64 uint64 float16 bfloat16 float32 '
  'float64 complex64 complex128'
).split()


def test_restores_every_type_bit_for_bit(tmp_path):
  with jax.enable_x64(True):
    data = np.random.default_rng(0).bytes(160)
    state = {
      dtype: jnp.asarray(np.frombuffer(data, jnp.dtype(dtype)).reshape(2, -1))
      for dtype in TYPES
    }
    state |= {
      'bool': jnp.array([True, False]),
      'scalar': jnp.uint32(2**32 - 1),
      'empty': jnp.zeros((0, 3), jnp.bfloat16),
      'key': jax.random.key(1),
      'keys': jax.random.split(jax.random.key(2, impl='rbg'), 5),
      'no keys': jax.random.split(jax.random.key(2), 5)[:0],
      'nothing': None,
      'a/b': [jnp.ones(2), (jnp.zeros(1),)],
      'opt': small_state(0)['opt'],
    }
    with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
      saver.save(3, state, data_state={'at': [1, 2]}, extra={'note': 'é'})
      saver.wait()
      from_arrays = saver.restore_latest(state)
      from_shapes = saver.restore_latest(abstract(state))
  for restored in (from_arrays, from_shapes):
    assert restored.step == 3
    assert restored.data_state == {'at': [1, 2]}
    assert restored.extra == {'note': 'é'}
    assert_identical(restored.state, state)


def test_restores_the_sharding_asked_for(tmp_path):
  devices = jax.devices()
  mesh = jax.make_mesh(
    (len(devices),), ('x',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  state = {'w': jnp.arange(16.0 * len(devices)), 'step': jnp.int32(1)}
  target = {'w': jax.device_put(state['w'], split), 'step': state['step']}
  with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
    saver.save(1, state, data_state={})
    restored = saver.restore_latest(target).state
  assert_identical(restored, state)
  assert restored['w'].sharding == split
  # Not bound to a device, so it goes together with the array that is spread.
  assert not restored['step'].committed
  jax.block_until_ready(jax.jit(lambda s: s['w'] + s['step'])(restored))


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
  increase = jax.jit(lambda x: x + 1, donate_argnums=0)
  x = jnp.zeros((1000, 1000))
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
    for step in range(3):
      saver.save(step, {'x': x}, data_state={})
      for _ in range(5):
        x = increase(x)
    restored = saver.restore_latest({'x': x})
  assert restored.step == 2
  np.testing.assert_array_equal(restored.state['x'], 10)


def test_nothing_saved_gives_none(tmp_path):
  assert restore(tmp_path / 'new') is None


def test_keeps_the_newest(tmp_path):
  with checkpoint.Checkpointer(tmp_path, keep=2) as saver:
    for step in (1, 2, 3, 10):
      saver.save(step, small_state(step), data_state={})
  assert sorted(path.name for path in tmp_path.iterdir()) == ['10', '3']


def test_refuses_flipped_bits(tmp_path, caplog):
  state = {'x': jax.random.normal(jax.random.key(0), (200, 200))}
  with checkpoint.Checkpointer(tmp_path, keep=3) as saver:
    saver.save(4, {'x': state['x'] + 1}, data_state={'next_index': 4})
    saver.save(6, state, data_state={'next_index': 6})
  path = largest_file(tmp_path / '6' / 'state')
  good = path.read_bytes()
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(12):
    data = bytearray(good)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    caplog.clear()
    restored = restore(tmp_path, state)
    if restored.step == 4:
      refused += 1
      assert restored.data_state == {'next_index': 4}
      assert_identical(restored.state, {'x': state['x'] + 1})
      lines = [line for line in caplog.messages if 'Refused' in line]
      assert len(lines) == 1
      assert f'Refused the checkpoint of step 6 in {tmp_path}: ' in lines[0]
      assert '\n' not in lines[0]
    else:
      # The file has a few bytes that are not read.
      assert_identical(restored.state, state)
  assert refused >= 10


def test_names_the_arrays_that_differ(directory, monkeypatch, caplog):
  original = manifest.fingerprints

  def altered(leaves):
    found = original(leaves)
    if int(leaves['step']) == 6:
      found['params.embed.table'] ^= 1
      found['opt.0.mu.blocks.0.w'] ^= 1
    return found

  monkeypatch.setattr(manifest, 'fingerprints', altered)
  assert restore(directory).step == 4
  assert (
    '2 of 8 arrays differ from what was saved: opt.0.mu.blocks.0.w, '
    'params.embed.table'
  ) in caplog.text


def truncate(step):
  path = largest_file(step)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step):
  shutil.rmtree(step)
  step.mkdir()


def change_metadata(step):
  path = step / 'meta' / 'metadata'
  text = path.read_text()
  assert '"next_index": 6' in text
  path.write_text(text.replace('"next_index": 6', '"next_index": 7'))


DAMAGES = {
  'truncated': truncate,
  'empty': empty,
  'no arrays': lambda step: shutil.rmtree(step / 'state'),
  'no metadata': lambda step: shutil.rmtree(step / 'meta'),
  'half of the metadata': lambda step: (step / 'meta' / 'metadata').write_text(
    '{"content": {'
  ),
  'not JSON': lambda step: (step / 'meta' / 'metadata').write_bytes(b'\xff\0'),
  'metadata of another kind': lambda step: (
    step / 'meta' / 'metadata'
  ).write_text('[1]'),
  'changed metadata': change_metadata,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_falls_back_and_saves_over_what_is_damaged(directory, damage, caplog):
  DAMAGES[damage](directory / '6')
  before = sorted(p.name for p in (directory / '6').rglob('*'))
  with checkpoint.Checkpointer(directory, keep=3) as saver:
    restored = saver.restore_latest(abstract(small_state(0)))
    assert restored.step == 4
    assert_identical(restored.state, small_state(4))
    assert 'step 6' in caplog.text
    # A reader changes nothing.
    assert sorted(p.name for p in directory.iterdir()) == ['2', '4', '6']
    assert saver.save(6, small_state(60), data_state={'next_index': 60})
  names = sorted(p.name for p in directory.iterdir())
  assert names == ['2', '4', '6', '6.corrupt']
  corrupt = directory / '6.corrupt'
  assert sorted(p.name for p in corrupt.rglob('*')) == before
  restored = restore(directory)
  assert restored.step == 6
  assert_identical(restored.state, small_state(60))


def test_a_second_damaged_checkpoint_gets_another_name(directory):
  for count in range(2):
    truncate(directory / '6')
    with checkpoint.Checkpointer(directory, keep=3) as saver:
      saver.restore_latest(abstract(small_state(0)))
      saver.save(5 + count, small_state(5), data_state={})
      if count == 0:
        saver.save(6, small_state(6), data_state={})
  names = sorted(p.name for p in directory.iterdir())
  assert names == ['4', '5', '6', '6.corrupt', '6.corrupt-2']


def test_an_empty_directory_of_a_higher_step(directory):
  (directory / '100').mkdir()
  with checkpoint.Checkpointer(directory, keep=3) as saver:
    assert saver.restore_latest(abstract(small_state(0))).step == 6
    assert saver.save(7, small_state(7), data_state={})
  assert sorted(p.name for p in directory.iterdir()) == [
    '100.corrupt',
    '4',
    '6',
    '7',
  ]
  assert restore(directory).step == 7


def test_all_damaged_is_an_error(directory):
  truncate(directory / '2')
  empty(directory / '4')
  truncate(directory / '6')
  with pytest.raises(checkpoint.CheckpointError) as error:
    restore(directory)
  assert errors.exit_code(error.value) == errors.MISUSED
  message = str(error.value)
  assert 'None of the 3 checkpoints' in message
  for step in (2, 4, 6):
    assert f'  step {step}: its ' in message
  assert 'to start anew, move the directory away' in message
  assert sorted(p.name for p in directory.iterdir()) == ['2', '4', '6']


def test_saving_before_restoring_is_an_error(directory):
  with checkpoint.Checkpointer(directory, keep=3) as saver:
    with pytest.raises(ValueError, match='holds a checkpoint of step 6'):
      saver.save(1, small_state(1), data_state={})
  assert sorted(p.name for p in directory.iterdir()) == ['2', '4', '6']


def test_saving_a_step_twice_does_nothing(directory):
  with checkpoint.Checkpointer(directory, keep=3) as saver:
    saver.restore_latest(abstract(small_state(0)))
    assert not saver.save(6, small_state(0), data_state={})
    assert saver.save(7, small_state(7), data_state={})
    assert not saver.save(7, small_state(0), data_state={})
    restored = saver.restore_latest(abstract(small_state(0)))
  assert_identical(restored.state, small_state(7))


def test_another_structure_is_an_error(directory):
  state = small_state(0)
  state['params']['embed']['table'] = jnp.zeros((64, 32))
  state['params']['blocks'][0]['w'] = jnp.zeros((16, 16), jnp.float32)
  state['params']['head'] = jnp.zeros(3)
  del state['step']
  with pytest.raises(ValueError) as error:
    restore(directory, state)
  assert str(error.value).splitlines() == [
    f'The checkpoint of step 6 in {directory} does not fit the state:',
    '  params.blocks.0.w: bfloat16 (16, 16) in the checkpoint, float32 '
    '(16, 16) in the state',
    '  params.embed.table: float32 (64, 16) in the checkpoint, float32 '
    '(64, 32) in the state',
    '  params.head: absent in the checkpoint, float32 (3,) in the state',
    '  step: int32 () in the checkpoint, absent in the state',
    'Restore it with the configuration and the version that wrote it, or use '
    'another directory.',
  ]


def test_another_configuration_is_an_error(directory):
  with checkpoint.Checkpointer(
    directory, keep=3, config_fingerprint='f00'
  ) as saver:
    with pytest.raises(ValueError, match="another configuration.*'f00'"):
      saver.restore_latest(abstract(small_state(0)))


@pytest.mark.parametrize(
  'kwargs, error, message',
  [
    ({'data_state': {'at': (1, 2)}}, ValueError, 'data_state changes'),
    ({'data_state': {1: 2}}, ValueError, 'data_state changes'),
    ({'data_state': {'a': np.int64(1)}}, ValueError, 'data_state cannot be'),
    ({'extra': {'loss': float('nan')}}, ValueError, 'extra cannot be'),
    ({'state': {'a': np.zeros(2)}}, TypeError, 'a is a ndarray'),
    ({'state': {'a': 1.0}}, TypeError, 'a is a float'),
    ({'state': {'a': jnp.zeros(0)}}, ValueError, 'no arrays'),
    (
      {'state': {'a.b': jnp.ones(1), 'a': {'b': jnp.ones(1)}}},
      ValueError,
      "Two leaves of the state are called 'a.b'",
    ),
  ],
)
def test_what_cannot_be_saved_is_an_error(tmp_path, kwargs, error, message):
  kwargs = {'state': {'x': jnp.ones(1)}, 'data_state': {}} | kwargs
  with checkpoint.Checkpointer(tmp_path, keep=1) as saver:
    with pytest.raises(error, match=message):
      saver.save(1, **kwargs)
  assert not list(tmp_path.iterdir())


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(ValueError, match='keep=0'):
    checkpoint.Checkpointer(tmp_path, keep=0)


def test_killed_while_saving(tmp_path):
  program = """
    import os, signal, sys
    import jax.numpy as jnp
    from hope.run import checkpoint
    saver = checkpoint.Checkpointer(sys.argv[1], keep=3)
    for step in (1, 2):
      x = jnp.arange(8_000_000, dtype=jnp.float32) * step
      saver.save(step, {'x': x}, data_state={'next_index': step})
      if step == 1:
        saver.wait()
    os.kill(os.getpid(), signal.SIGKILL)
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program), str(tmp_path)],
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  with checkpoint.Checkpointer(tmp_path, keep=3) as saver:
    restored = saver.restore_latest({'x': jnp.zeros(8_000_000)})
    # 2 only if the disk was faster than the signal.
    assert restored.step in (1, 2)
    assert restored.data_state == {'next_index': restored.step}
    expected = np.arange(8_000_000, dtype=np.float32) * restored.step
    np.testing.assert_array_equal(restored.state['x'], expected)
    saver.save(3, {'x': jnp.ones(8_000_000)}, data_state={})
  names = {path.name for path in tmp_path.iterdir()}
  assert names in ({'1', '3'}, {'1', '2', '3'})


@pytest.fixture
def tiny_disk(tmp_path):
  """A file system of 2 MB."""
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(tmp_path)]
  if not shutil.which('mount') or subprocess.run(mount).returncode:
    pytest.skip('cannot mount a file system here')
  yield tmp_path
  subprocess.run(['umount', '-l', str(tmp_path)], check=True)


def test_full_disk(tiny_disk, caplog):
  state = {'x': jax.random.normal(jax.random.key(0), (400_000,))}
  saver = checkpoint.Checkpointer(tiny_disk, keep=3)
  saver.save(1, state, data_state={})
  saver.wait()
  with pytest.raises(OSError) as error:
    saver.save(2, state, data_state={})
    saver.wait()
  assert error.value.errno == errno.ENOSPC
  assert f'The disk of {tiny_disk} is full' in str(error.value)
  assert 'Free some space' in str(error.value)
  assert 'Traceback' not in caplog.text  # of the threads of Orbax
  with checkpoint.Checkpointer(tiny_disk, keep=3) as saver:
    assert saver.restore_latest(state).step == 1


def test_full_disk_while_waiting(tmp_path, monkeypatch):
  saver = checkpoint.Checkpointer(tmp_path, keep=3)

  def fail():
    raise ValueError('RESOURCE_EXHAUSTED: ... No space left on device [28]')

  monkeypatch.setattr(saver._manager, 'wait_until_finished', fail)
  with pytest.raises(OSError, match='disk of .* is full') as error:
    saver.wait()
  assert error.value.errno == errno.ENOSPC


def test_an_error_of_the_run_is_not_hidden(tmp_path, monkeypatch):
  with pytest.raises(KeyError, match='the cause'):
    with checkpoint.Checkpointer(tmp_path, keep=3) as saver:

      def fail():
        raise ValueError('No space left on device')

      monkeypatch.setattr(saver._manager, 'close', fail)
      raise KeyError('the cause')


def test_a_part_is_restored_alone(directory):
  wanted = {'params': abstract(small_state(0))['params']}
  with checkpoint.Checkpointer(directory, keep=3) as saver:
    with pytest.raises(ValueError, match='does not fit the state'):
      saver.restore_latest(wanted)
    restored = saver.restore_latest(wanted, partly=True)
  assert restored.step == 6 and restored.data_state == {'next_index': 6}
  assert_identical(restored.state, {'params': small_state(6)['params']})


def test_damage_in_a_part_is_noticed(directory):
  truncate(directory / '6')
  wanted = {'params': abstract(small_state(0))['params']}
  with checkpoint.Checkpointer(directory, keep=3) as saver:
    restored = saver.restore_latest(wanted, partly=True)
    assert restored.step == 4
    bias = {'params': {'bias': jax.ShapeDtypeStruct((3,), jnp.float32)}}
    with pytest.raises(ValueError, match='params.bias: absent'):
      saver.restore_latest(bias, partly=True)
