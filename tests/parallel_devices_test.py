"""A batch split over the cores of one machine."""

import re

from conftest import run_program
import numpy as np
import pytest

PROGRAM = """
import json, re, sys
from hope.parallel import devices
devices.use_all_cores()
import jax, numpy as np
from hope.config import base_config, resolve
from hope.parallel import mesh as mesh_lib
from hope.training import step as step_lib

config = base_config()
config.model.num_layers, config.model.width, config.model.num_heads = 2, 16, 1
config.model.titans.chunk_size = config.model.titans.projection_chunk_size = 8
config.data.seq_len, config.data.batch_size = 32, 8
config.train.accumulate = int(sys.argv[1])
config = resolve(config, 16)
mesh = mesh_lib.make_mesh(config)
tokens = np.random.default_rng(0).integers(16, size=(3, 8, 33), dtype=np.int32)
graph, abstract = step_lib.abstract_state(config, mesh)
state = step_lib.init_state(config, abstract)
step = step_lib.train_step(graph, config, abstract)
losses = []
for batch in tokens:
  batch = {
    'inputs': batch[:, :-1],
    'targets': batch[:, 1:],
    'weights': np.ones((8, 32), np.float32),
  }
  batch = mesh_lib.put_batch(batch, mesh)
  if not losses:
    text = step.lower(state, batch).compile().as_text()
  state, metrics = step(state, batch)
  losses.append(float(metrics['loss']))
reduced = [l for l in text.splitlines() if re.search(r' all-reduce[^ ]*[(]', l)]
print(json.dumps({
  'devices': mesh.size,
  'losses': losses,
  'programs': step._cache_size(),
  'sum': float(sum(abs(x).sum() for x in jax.tree.leaves(state.params))),
  'reduced': reduced,
}))
"""


def run(devices, accumulate):
  return run_program(PROGRAM, accumulate, devices=devices)


@pytest.fixture(scope='module')
def alone():
  return run(1, 1)


@pytest.mark.xdist_group('devices')
@pytest.mark.slow  # meshes of one process and of several are tested by default
@pytest.mark.parametrize(('devices', 'accumulate'), [(2, 1), (3, 2)])
def test_devices_change_nothing_but_rounding(alone, devices, accumulate):
  shared = run(devices, accumulate)
  assert alone['devices'] == 1 and alone['reduced'] == []
  # Of three devices two take part: three do not divide four rows.
  assert shared['devices'] == 2
  np.testing.assert_allclose(shared['losses'], alone['losses'], rtol=1e-5)
  assert shared['sum'] == pytest.approx(alone['sum'], rel=1e-5)
  assert alone['programs'] == shared['programs'] == 1
  # Gradients are summed over devices, but never at every chunk: the scan over
  # chunks is a loop within the loop over layers (within that over parts).
  outer = 1 if accumulate == 1 else 2
  assert shared['reduced']
  for line in shared['reduced']:
    name = re.search(r'op_name="([^"]*)"', line)[1]
    assert name.count('while/body') <= outer, line
