"""The mesh: its sizes, what lies where, and steps that are equal on any."""

import itertools
import json
import pathlib
import subprocess
import sys
import types

from conftest import USE_CACHE, cpu_devices
import jax
import numpy as np
import pytest

from hope.config import base_config, resolve
from hope.parallel import mesh as mesh_lib
from hope.parallel import placement
from hope.training import step as step_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Five steps on a mesh; run by itself or as one of several processes.
PROGRAM = """
import json, sys
from hope.parallel import multihost
options = json.loads(sys.argv[1])
multihost.start(options['distributed'])
import jax, numpy as np
from hope.config import base_config, resolve
from hope.layers import blockwise
from hope.parallel import mesh as mesh_lib
from hope.training import step as step_lib

blockwise.MAX_BLOCK = 16  # attention is in two blocks
config = base_config()
model = config.model
model.num_layers, model.width, model.num_heads = 2, 32, 4
model.titans.chunk_size = model.titans.projection_chunk_size = 8
model.titans.momentum = True  # traces are sharded as states are
model.cms.periods = (1, 2)
config.data.seq_len, config.data.batch_size = 32, 8
config.optimizer.warmup_steps = 2
config.optimizer.learning_rate = 3e-3
config.update_from_flattened_dict(options['config'])
config = resolve(config, 16)
devices = jax.devices()
devices = [devices[i] for i in options['order'] or range(len(devices))]
mesh = mesh_lib.make_mesh(config, devices)
mine = mesh_lib.rows(mesh, 8)
tokens = np.random.default_rng(0).integers(16, size=(5, 8, 33), dtype=np.int32)
graph, abstract = step_lib.abstract_state(config, mesh)
state = step_lib.init_state(config, abstract)
step = step_lib.train_step(graph, config, abstract)
losses = []
for batch in tokens:
  batch = batch[mine]
  batch = {
    'inputs': batch[:, :-1],
    'targets': batch[:, 1:],
    'weights': np.ones((len(mine), 32), np.float32),
  }
  if config.data.segments:
    starts = np.random.default_rng(len(losses)).random((8, 32))
    batch['starts'] = (starts < 0.4)[mine] & (np.arange(32) % 8 == 0)
  state, metrics = step(state, mesh_lib.put_batch(batch, mesh))
  losses.append(float(metrics['loss']))
whole = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(
  mesh, jax.sharding.PartitionSpec()))
params = {
  jax.tree_util.keystr(k): np.asarray(whole(x)).tolist()
  for k, x in jax.tree_util.tree_leaves_with_path(state.params)
}
for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract)):
  assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
if jax.process_index() == 0:
  print(json.dumps({
    'losses': losses,
    'params': params,
    'devices': jax.device_count(),
    'programs': step._cache_size(),
  }))
"""


def run(devices, processes=1, order=None, **config):
  """Losses and parameters of five steps; order is that of the devices."""
  from conftest import free_port

  address = f'127.0.0.1:{free_port()}'
  running = []
  for index in range(processes):
    distributed = f'{address},{processes},{index}' if processes > 1 else 'off'
    options = {'distributed': distributed, 'config': config, 'order': order}
    running.append(
      subprocess.Popen(
        [sys.executable, '-c', USE_CACHE + PROGRAM, json.dumps(options)],
        cwd=ROOT,
        env=cpu_devices(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  outputs = [process.communicate(timeout=400) for process in running]
  for process, (_, errors) in zip(running, outputs, strict=True):
    assert process.returncode == 0, errors
  result = json.loads(outputs[0][0].splitlines()[-1])
  assert result['devices'] == devices * processes
  assert result['programs'] == 1
  return result


def assert_equal(result, expected):
  """Finite, and within 1e-5, relative, leaf by leaf."""
  assert np.isfinite(expected['losses']).all()
  np.testing.assert_allclose(result['losses'], expected['losses'], rtol=1e-5)
  for name, value in expected['params'].items():
    value, other = np.array(value), np.array(result['params'][name])
    error = np.linalg.norm(other - value) / max(np.linalg.norm(value), 1e-30)
    assert error <= 1e-5, (name, error)


MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (2, 1, 2, 2)]


def axes(sizes):
  return {f'mesh.{a}': n for a, n in zip(mesh_lib.AXES, sizes, strict=True)}


@pytest.fixture(scope='module')
def alone():
  """Results on one device, by mixer and optimizer."""
  results = {}

  def find(mixer, name, **config):
    if (mixer, name) not in results:
      config |= {'model.pattern': f'{mixer}+cms', 'optimizer.name': name}
      results[mixer, name] = run(1, **config)
    return results[mixer, name]

  return find


@pytest.mark.xdist_group('mesh')
@pytest.mark.parametrize(
  ('processes', 'mixer', 'name', 'sizes'),
  [
    pytest.param(
      processes,
      mixer,
      name,
      sizes,
      marks=[]
      if (processes, mixer, name, sizes) == (1, 'titans', 'adamw', (2, 2, 1, 2))
      else pytest.mark.slow,
    )
    for processes in (1, 2)
    for mixer in ('titans', 'attention', 'lstm', 'srwm', 'mamba')
    for name in ('adamw', 'm3')
    for sizes in MESHES
  ],
)
def test_a_mesh_changes_nothing_but_rounding(
  alone, processes, mixer, name, sizes
):
  config = {'model.pattern': f'{mixer}+cms', 'optimizer.name': name}
  result = run(8 // processes, processes, **config, **axes(sizes))
  assert_equal(result, alone(mixer, name))


@pytest.mark.slow
@pytest.mark.xdist_group('mesh')
@pytest.mark.parametrize('sizes', [(1, 8, 1, 1), (2, 1, 2, 2)])
@pytest.mark.parametrize(
  'mixer',
  [
    'rwkv7(chunk_size=8)',
    "delta(rule='comba', chunk_size=8, correction=1.0)",
    'ttt(chunk_size=8)',
    "ttt(model='mlp', chunk_size=8)",
    'titans(lmm, chunk_size=8)',
    'mal(max_context=8, chunk_size=8)',
    'mag(max_context=8, chunk_size=8)',
    'mac(chunk_size=8)',
  ],
)
def test_recurrences_on_a_mesh(alone, mixer, sizes):
  """Rounding, and what Adam makes of it.

  Comba's d starts at 1: Adam's steps would be as large as 0.02 itself. RWKV-7's
  low ranks start at 0, so that all they are is Adam's steps; where a gradient
  is as small as its rounding, an eps of 1e-8 would keep the rounding's sign.
  """
  config = {'model.pattern': f'{mixer}+cms'}
  if mixer.startswith('rwkv7'):
    config['optimizer.eps'] = 1e-5
  result = run(8, 1, **config, **axes(sizes))
  assert_equal(result, alone(mixer, 'adamw', **config))


@pytest.mark.slow
@pytest.mark.xdist_group('mesh')
@pytest.mark.parametrize(
  'mixer', ['titans', 'attention', 'ttt(chunk_size=8)', 'lstm', 'srwm', 'mamba']
)
def test_documents_on_a_mesh(mixer):
  config = {
    'model.pattern': f'{mixer}+cms',
    'model.cms.mode': 'in_context',
    'model.cms.periods': (4, 8),
    'data.segments': True,
  }
  expected = run(1, **config)
  result = run(8, 1, **config, **axes((2, 1, 2, 2)))
  assert_equal(result, expected)
  plain = run(1, **(config | {'data.segments': False}))
  assert abs(plain['losses'][0] - expected['losses'][0]) > 1e-4


@pytest.mark.xdist_group('mesh')
@pytest.mark.parametrize(
  'sizes',
  [
    pytest.param(sizes, marks=pytest.mark.slow)
    for sizes in ((8, 1, 1, 1), (2, 2, 2, 1))
  ],
)
def test_a_process_whose_rows_are_no_neighbours(alone, sizes):
  """As on a TPU, whose hosts are blocks of the torus."""
  order = [0, 1, 4, 5, 2, 6, 3, 7]
  mixer = {'model.pattern': 'attention+cms'}
  result = run(4, 2, order, **mixer, **axes(sizes))
  assert_equal(result, alone('attention', 'adamw'))


class FakeTpu(types.SimpleNamespace):
  """A device of a slice, with its place in the torus."""

  def __hash__(self):
    return self.id


def torus(x, y, z, host):
  """The devices of a slice; `host` is the shape of a host's block."""
  wide = [n // h for n, h in zip((x, y, z), host, strict=True)]
  devices = []
  for place in itertools.product(range(x), range(y), range(z)):
    block = [p // h for p, h in zip(place, host, strict=True)]
    process = (block[2] * wide[1] + block[1]) * wide[0] + block[0]
    devices.append(
      FakeTpu(
        id=len(devices),
        process_index=process,
        platform='tpu',
        device_kind='TPU v5' if z > 1 else 'TPU v5 lite',
        coords=place,
        core_on_chip=0,
        slice_index=0,
      )
    )
  return devices


@pytest.mark.parametrize(
  ('shape', 'host', 'sizes'),
  [
    ((4, 4, 4), (2, 2, 1), (4, 16, 1, 1)),
    ((4, 4, 4), (2, 2, 1), (1, 16, 4, 1)),
    ((16, 16, 1), (2, 2, 1), (8, 16, 2, 1)),
    ((16, 16, 1), (2, 2, 1), (16, 16, 1, 1)),
    ((4, 4, 1), (2, 2, 1), (4, 2, 2, 1)),
    ((4, 4, 1), (2, 2, 1), (1, 1, 4, 4)),
  ],
)
def test_rows_of_the_hosts_of_a_tpu(monkeypatch, shape, host, sizes):
  """A host reads what its chips hold, and all hosts read all rows."""
  batch_size = 2 * sizes[0] * sizes[1]
  config = configured(**axes(sizes), **{'data.batch_size': batch_size})
  mesh = mesh_lib.make_mesh(config, torus(*shape, host))
  hosts = sorted({d.process_index for d in mesh.devices.flat})
  seen = set()
  for process in hosts:
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    rows = mesh_lib.rows(mesh, batch_size)
    held = {
      row
      for (data, fsdp, *_), device in np.ndenumerate(mesh.devices)
      if device.process_index == process
      for row in range(
        2 * (data * sizes[1] + fsdp), 2 * (data * sizes[1] + fsdp) + 2
      )
    }
    assert rows == sorted(held)
    seen |= held
  assert seen == set(range(batch_size))


@pytest.mark.xdist_group('mesh')
@pytest.mark.slow
@pytest.mark.parametrize('variant', ['sequential', 'independent'])
def test_in_context_levels_on_a_mesh(variant):
  config = {
    'model.cms.mode': 'in_context',
    'model.cms.variant': variant,
    'model.cms.periods': (8, 16),
    'model.titans.q_memory': True,
  }
  expected = run(1, **config)
  assert_equal(run(8, **config, **axes((1, 2, 2, 2))), expected)


@pytest.mark.xdist_group('mesh')
@pytest.mark.slow
def test_a_decoder_of_whole_sequences_on_a_mesh():
  """The last token of every row is on one of the devices along `seq`."""
  config = {
    'model.pattern': 'attention+swiglu',
    'model.tied_head': False,
    'model.decoder': True,
    'data.source': 'synthetic:compression',
  }
  expected = run(1, **config)
  assert_equal(run(8, **config, **axes((1, 2, 2, 2))), expected)


@pytest.mark.xdist_group('mesh')
@pytest.mark.slow
def test_processes_as_slices(alone):
  result = run(
    2,
    2,
    **{'model.pattern': 'attention+cms', 'mesh.slices': 2, 'mesh.fsdp': 2},
  )
  assert_equal(result, alone('attention', 'adamw'))


def test_slices_that_are_not_there():
  config = configured(**{'mesh.slices': 2, 'data.batch_size': 2})
  device = types.SimpleNamespace(platform='tpu', slice_index=0)
  with pytest.raises(ValueError, match='are in 1; try mesh.slices=1'):
    mesh_lib.make_mesh(config, [device, device])


def test_nodes_of_gpus_are_no_slices():
  config = configured(**{'mesh.fsdp': 2, 'data.batch_size': 2})
  devices = [
    FakeTpu(id=i, platform='gpu', device_kind='H100', slice_index=i)
    for i in range(2)
  ]
  assert mesh_lib.make_mesh(config, devices).shape['fsdp'] == 2


def test_a_kernel_that_the_devices_cannot_run():
  config = configured(**{'compute.kernel': 'pallas'})
  device = types.SimpleNamespace(platform='cuda')
  mesh = types.SimpleNamespace(devices=np.array([device]))
  with pytest.raises(ValueError, match="try compute.kernel='xla'"):
    step_lib.abstract_state(config, mesh)


def configured(**fields):
  config = base_config()
  config.update_from_flattened_dict(fields)
  return config


@pytest.mark.parametrize(
  ('fields', 'count', 'message'),
  [
    ({'mesh.data': 3}, 8, 'but there are 8; try mesh.data=8'),
    ({'mesh.fsdp': 3}, 8, 'does not divide the 8 devices; try mesh.fsdp=2'),
    (
      {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 4},
      8,
      '= 16 devices, but there are 8; try mesh.data=1',
    ),
    ({'mesh.slices': 3}, 8, 'does not divide mesh.data=8; try mesh.slices=2'),
    ({'mesh.seq': 0}, 8, 'mesh.seq=0 must be at least 1'),
    (
      {'data.batch_size': 12},
      8,
      'do not divide over mesh.data=8 x mesh.fsdp=1; try data.batch_size=8',
    ),
    (
      {'data.batch_size': 8, 'train.accumulate': 2, 'mesh.fsdp': 8},
      8,
      'in train.accumulate=2 parts has 4 sequences .* try data.batch_size=16',
    ),
  ],
)
def test_sizes_that_do_not_fit_the_devices(fields, count, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.shape(configured(**fields), count)


def test_a_run_alone_leaves_devices_out_that_do_not_divide_the_batch():
  config = configured(**{'data.batch_size': 4})
  assert mesh_lib.shape(config, 3, partly=True)['data'] == 2
  config.mesh.data = 3
  with pytest.raises(ValueError, match='do not divide over mesh.data=3'):
    mesh_lib.shape(config, 3, partly=True)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'mesh.tensor': 3},
      'mesh.tensor=3 x mesh.seq=1 does not divide model.num_heads=2; try '
      'mesh.tensor=2',
    ),
    ({'mesh.fsdp': 24}, 'does not divide model.width=128; try mesh.fsdp=16'),
    (
      {'mesh.fsdp': 128},
      'mesh.fsdp=128 does not divide the width of a head=64; try mesh.fsdp=64',
    ),
    (
      {'model.cms.hidden_multiple': 0.0078125, 'mesh.tensor': 2},
      'hidden width of a level=1; try mesh.tensor=1',
    ),
    (
      {'data.seq_len': 255, 'mesh.seq': 2},
      'does not divide data.seq_len=255; try mesh.seq=1',
    ),
  ],
)
def test_sizes_that_axes_do_not_divide(fields, message):
  with pytest.raises(ValueError, match=message):
    resolve(configured(**fields), 257)


def test_a_parameter_without_a_row_is_named():
  with pytest.raises(ValueError, match='the parameter blocks/new/gate'):
    placement.spec((), 'blocks/new/gate')
