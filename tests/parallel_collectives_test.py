"""The collectives of a training step on a mesh, by layer."""

import json

from conftest import run_program
import pytest

LAYERS = 2
PROGRAM = """
import json, sys
import jax, numpy as np
from hope.config import base_config, resolve
from hope.layers import blockwise
from hope.profiling.hlo import Program
from hope.parallel import mesh as mesh_lib
from hope.training import step as step_lib

blockwise.MAX_BLOCK = 8  # attention is in four blocks
config = base_config()
model = config.model
model.num_layers, model.width, model.num_heads = 2, 32, 4
model.titans.chunk_size = model.titans.projection_chunk_size = 8
model.cms.periods = (1,)
config.data.seq_len, config.data.batch_size = 32, 8
model.pattern = sys.argv[1]
for axis, size in json.loads(sys.argv[2]).items():
  config.mesh[axis] = size
config = resolve(config, 16)
mesh = mesh_lib.make_mesh(config)
graph, state = step_lib.abstract_state(config, mesh)
batch = {
  name: jax.ShapeDtypeStruct(
    (8, 32), dtype, sharding=mesh_lib.batch_sharding(mesh))
  for name, dtype in (
    ('inputs', np.int32), ('targets', np.int32), ('weights', np.float32))
}
step = step_lib.train_step(graph, config, state)
text = step.lower(state, batch).compile().as_text()
leaves = jax.tree.leaves_with_path(state.params)
print(json.dumps({
  'collectives': [c._asdict() for c in Program(text).collectives()],
  'split': [
    leaf.size * 4 // 2
    for path, leaf in leaves
    if 'blocks' in jax.tree_util.keystr(path)
    and 'fsdp' in leaf.sharding.spec
  ],
  'gradients': sum(
    leaf.size * 4 // 2
    for path, leaf in leaves
    if 'blocks' in jax.tree_util.keystr(path)
  ),
}))
"""


def compiled(mixer='titans', **axes):
  return run_program(PROGRAM, f'{mixer}+cms', json.dumps(axes), devices=8)


def test_fsdp_gathers_the_parameters_of_a_layer_and_sums_their_gradients():
  found = compiled(fsdp=8)
  in_layers = [c for c in found['collectives'] if c['times'] == LAYERS]
  # Parameters: for the forward pass, and anew for the backward pass.
  gathered = sorted(c['nbytes'] for c in in_layers if c['kind'] == 'all-gather')
  assert gathered == sorted(2 * found['split'])
  # Gradients of all of them, in one sum; nothing else.
  sums = [c for c in in_layers if c['kind'] != 'all-gather']
  assert [c['kind'] for c in sums] == ['all-reduce']
  assert sums[0]['nbytes'] == found['gradients']
  # Outside: the embedding, sums of gradients and metrics.
  outside = [c for c in found['collectives'] if c['times'] == 1]
  assert len(outside) + len(in_layers) == len(found['collectives'])
  assert {c['kind'] for c in outside} <= {'all-gather', 'all-reduce'}
  assert len(outside) <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
  ('mixer', 'axes'),
  [
    ('titans', {'fsdp': 2, 'seq': 2, 'tensor': 2}),
    ('titans', {'seq': 4}),
    ('titans', {'tensor': 4}),
    ('attention', {'seq': 4}),
    ('attention', {'fsdp': 2, 'seq': 2, 'tensor': 2}),
  ],
)
def test_no_collective_within_the_scan_over_chunks(mixer, axes):
  """Each runs at most once a layer and pass: none gathers fast weights."""
  assert_outside_of_scans(compiled(mixer, **axes)['collectives'])


@pytest.mark.slow
@pytest.mark.parametrize('mixer', ['lstm', 'srwm', 'mamba'])
def test_no_collective_within_the_scan_over_tokens(mixer):
  found = compiled(mixer, fsdp=2, seq=2, tensor=2)
  assert_outside_of_scans(found['collectives'])


def assert_outside_of_scans(found):
  assert found
  for collective in found:
    assert collective['times'] in (1, LAYERS), collective
    inner = collective['op_name'].split('/while/body', 1)[-1]
    assert '/while/body' not in inner.replace('jit(dynamic', ''), collective
