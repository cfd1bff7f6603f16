"""The Pallas kernel against the XLA form, interpreted; compiled for TPU."""

import json
import os
import pathlib
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import (
  FROZEN,
  assert_same,
  inputs,
  jit,
  relative,
  small_config,
  titans,
)
import numpy as np
import pytest

from hope.memory import rule, solve, stream
from hope.memory.kernels import mosaic

HERE = pathlib.Path(__file__).parent
BAR = 1e-5  # float32
BAR64 = 1e-10


# ------------------------------------------------------- the parts of the rule


def value_and_gradients(function, *args, seed=3):
  """The outputs, and the gradients of a random linear functional of them."""
  rng = np.random.default_rng(seed)
  weights = jax.tree.map(
    lambda x: rng.standard_normal(x.shape), jax.eval_shape(function, *args)
  )

  def total(*args):
    outputs = function(*args)
    products = jax.tree.map(lambda w, x: jnp.sum(w * x), weights, outputs)
    return sum(jax.tree.leaves(products)), outputs

  every = tuple(range(len(args)))
  return jit(jax.grad(total, argnums=every, has_aux=True))(*args)


@pytest.mark.parametrize('read_after', [True, False])
@pytest.mark.parametrize('momentum', [True, False])
@pytest.mark.parametrize('tokens', [8, 16])
def test_decays(x64, tokens, momentum, read_after):
  rng = np.random.default_rng(0)
  alpha = jnp.asarray(rng.uniform(0.1, 1.0, (tokens, 1)))
  alpha = alpha.at[3].set(1.0)
  beta = jnp.asarray(rng.uniform(0.0, 0.95, (tokens, 1)))
  args = (alpha, beta) if momentum else (alpha,)
  of = lambda decays: value_and_gradients(
    lambda alpha, beta=None: decays(alpha, beta, read_after=read_after), *args
  )
  assert_same(of(mosaic.decays), of(rule.decays), BAR64)


def test_decays_of_zero_are_zero(x64):
  alpha = jnp.full((16, 1), 0.9).at[5].set(0.0).at[9].set(0.0)
  assert_same(mosaic.decays(alpha, alpha), rule.decays(alpha, alpha), 1e-12)


@pytest.mark.parametrize(
  'shape',
  [(2, 16, 16), pytest.param((64, 64), marks=pytest.mark.slow)],
)
def test_solve(x64, shape):
  rng = np.random.default_rng(0)
  lower = jnp.asarray(np.tril(rng.standard_normal(shape), -1)) / 4
  rhs = jnp.asarray(rng.standard_normal((*shape[:-1], 5)))
  np.testing.assert_allclose(
    mosaic.invert_unit_lower(lower), solve.invert_unit_lower(lower), atol=BAR64
  )
  assert_same(
    value_and_gradients(mosaic.solve_unit_lower, lower, rhs),
    value_and_gradients(solve.solve_unit_lower, lower, rhs),
    BAR64,
  )


def test_solve_of_identical_keys_in_float32():
  # The sum of powers is wrong by 4e2 here.
  lower = jnp.tril(jnp.full((64, 64), 0.5), -1)
  inverse = np.asarray(mosaic.invert_unit_lower(lower))
  exact = np.linalg.inv(np.eye(64) + np.asarray(lower, np.float64))
  assert np.abs(inverse - exact).max() < 1e-5


# ------------------------------------------------------------------- the layer


def run(kernel, x, params=None, starts=None, **options):
  """(gradients by parameters and input, (y, state)) of a whole layer."""
  layer = titans(x.shape[-1], kernel=kernel, dtype=x.dtype, **options)
  graph, own = nnx.split(layer)
  params = own if params is None else params

  @jit
  def compute(params, x):
    def total(params, x):
      layer = nnx.merge(graph, params)
      y, state = layer(x, None, starts)
      # Weights that tell tokens and states apart.
      leaves = jax.tree.leaves((y, state.memory.now, state.projections))
      waves = [
        jnp.sum(a * jnp.sin(jnp.arange(a.size)).reshape(a.shape))
        for a in leaves
      ]
      return sum(waves), (y, state)

    return jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)

  return compute(params, x)


def assert_forms_agree(x, bar, **options):
  assert_same(run('pallas', x, **options), run('xla', x, **options), bar)


CASES = {
  'default': {},
  'linear': {
    **FROZEN,
    'hidden_multiple': 0,
    'momentum': False,
    'erase': False,
  },
  'frozen': FROZEN,
  'zero': FROZEN | {'anchor': 'zero', 'momentum': False},
  'dot': {'objective': 'dot', 'erase': False, 'eta_max': 0.05},
  'chunk_read': {
    'objective': 'l2',
    'read': 'chunk',
    'target': 'slow',
    'hidden_multiple': 2,
  },
  'q_memory': {
    **FROZEN,
    'q_memory': True,
    'target_max': None,
    'error_max': None,
  },
  'delta_trace': {
    'objective': 'delta',
    'step': 'relative',
    'target': 'mixed',
    'projection_target': 'slow',
    'read': 'after',
  },
  'static': {
    **FROZEN,
    'self_modifying': False,
    'mix': 'none',
    'retention': False,
  },
}


def cases():
  slow = lambda name: () if name == 'default' else (pytest.mark.slow,)
  return [pytest.param(name, marks=slow(name)) for name in CASES]


@pytest.mark.parametrize('case', cases())
def test_layer(x64, case):
  options = {'chunk_size': 16, 'projection_chunk_size': 8} | CASES[case]
  assert_forms_agree(inputs(2, 32, 8, np.float64), BAR64, **options)


@pytest.mark.slow
def test_inner_losses(x64):
  x, found = inputs(2, 32, 8, np.float64), []
  for kernel in ('pallas', 'xla'):
    layer = titans(
      8,
      kernel=kernel,
      dtype=x.dtype,
      chunk_size=16,
      projection_chunk_size=8,
    )
    layer.set_attributes(measures=True)
    layer(x)
    found.append(layer.inner_losses.get_value())
  assert_same(*found, BAR64)


@pytest.mark.slow
@pytest.mark.parametrize('chunk', [16, 64])
def test_layer_in_float32(chunk):
  x = inputs(1, 2 * chunk, 16)
  options = {'chunk_size': chunk, 'projection_chunk_size': chunk}
  _, params = nnx.split(titans(16, **options))
  (*gradients,), (actual, expected) = zip(
    *(run(kernel, x, params, **options) for kernel in ('pallas', 'xla')),
    strict=True,
  )
  assert_same(actual, expected, BAR)
  # Gradients are as close to those in float64 as those of the XLA form.
  with jax.enable_x64(True):
    wide = lambda tree: jax.tree.map(
      lambda a: jnp.asarray(a, jnp.float64), tree
    )
    exact, _ = run('xla', wide(x), wide(params), **options)
  error, usual = (
    max(map(relative, jax.tree.leaves(g), jax.tree.leaves(exact)))
    for g in gradients
  )
  assert error <= 2 * usual


@pytest.mark.slow
def test_chunks_of_several_blocks(x64):
  options = {'chunk_size': 128, 'projection_chunk_size': 64}
  assert_forms_agree(inputs(1, 256, 4, np.float64), BAR64, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [
    {'anchor': 'zero', 'chunk_size': 8},
    {'momentum': False, 'target': 'slow'},
  ],
)
def test_documents_in_a_row(x64, monkeypatch, options):
  """Of one block, and of two, so that one starts within a chunk of the row."""
  monkeypatch.setattr(stream, 'MAX_BLOCK', 8)
  x = inputs(2, 32, 4, np.float64)
  starts = np.zeros((2, 32), bool)
  starts[0, [8, 24]] = starts[1, 16] = True
  options = {'chunk_size': 16, 'self_modifying': False} | options
  assert_forms_agree(x, BAR64, starts=starts, **options)


@pytest.mark.slow
def test_pieces_of_a_stream(x64):
  # Two whole chunks and the rest of the piece, then one within a chunk.
  x = inputs(1, 25, 8, np.float64)
  results = []
  for kernel in ('xla', 'pallas'):
    layer = titans(
      8,
      dtype=jnp.float64,
      kernel=kernel,
      chunk_size=8,
      projection_chunk_size=8,
      self_modifying=False,
    )
    graph, params = nnx.split(layer)
    call = jit(lambda p, x, s, graph=graph: nnx.merge(graph, p)(x, s))
    first, state = call(params, x[:, :21], None)
    results.append((first, *call(params, x[:, 21:], state)))
  assert_same(*results, BAR64)


# --------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'kernel': 'triton'}, 'kernel=.*triton.*choose one of xla, pallas'),
    ({'chunk_size': 4}, 'chunks of 4 tokens have blocks of 4. Try 64'),
    ({'projection_chunk_size': 100}, 'chunks of 100 .* blocks of 50'),
  ],
)
def test_errors(fields, message):
  fields = {'kernel': 'pallas', 'chunk_size': 8} | fields
  with pytest.raises(ValueError, match=message):
    titans(**fields)


def test_configuration():
  fields = {
    'compute.kernel': 'pallas',
    'model.titans.chunk_size': 16,
    'model.titans.projection_chunk_size': 64,
  }
  small_config(**fields, **{'data.seq_len': 128})
  with pytest.raises(ValueError, match='data.seq_len=80 .* of 64; try 128'):
    small_config(**fields, **{'data.seq_len': 80})
  with pytest.raises(ValueError, match='compute.kernel=.*xla, pallas'):
    small_config(**{'compute.kernel': 'cuda'})


# ------------------------------------------------------------------- platforms


def test_lowers_for_tpu():
  layer = titans(16, 1, kernel='pallas', chunk_size=8, projection_chunk_size=8)
  graph, params = nnx.split(layer)
  total = lambda params, x: jnp.sum(nnx.merge(graph, params)(x)[0])
  traced = jax.jit(jax.grad(total)).trace(params, inputs(1, 16, 16))
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 4  # twice forward, twice backward
  with pytest.raises(NotImplementedError, match='cuda'):
    traced.lower(lowering_platforms=('cuda',))

  def measure(params, x):
    layer = nnx.merge(graph, params)
    layer.set_attributes(measures=True)
    layer(x)
    return layer.inner_losses.get_value()

  traced = jax.jit(measure).trace(params, inputs(1, 16, 16))
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 2


def program(text, **environ):
  """Runs a program in a process of its own, and returns what it prints."""
  path = os.pathsep.join([str(HERE.parent), str(HERE), *sys.path])
  done = subprocess.run(
    [sys.executable, '-c', text],
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path} | environ,
    capture_output=True,
    text=True,
    check=False,
  )
  assert not done.returncode, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('sequences', [4, 3])
def test_devices_run_their_own_sequences(sequences):
  outcome = program(
    f"""
import json, jax, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from layer_cases import inputs, relative, titans

layer = titans(8, kernel='pallas', chunk_size=8, projection_chunk_size=8)
graph, params = nnx.split(layer)
x = inputs({sequences}, 16, 8)
total = lambda params, x: (nnx.merge(graph, params)(x)[0] ** 2).sum()
grad = jax.jit(jax.grad(total, argnums=(0, 1)))
one = grad(params, x)
mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Auto,))
put = lambda tree, *axes: jax.device_put(
  tree, NamedSharding(mesh, PartitionSpec(*axes))
)
axes = ('data',) if {sequences} % 2 == 0 else ()
args = put(params), put(x, *axes)
two = grad(*args)
pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
text = grad.lower(*args).compile().as_text()
print(json.dumps({{
  'error': max(float(relative(np.asarray(b), a)) for a, b in pairs),
  'gathers': text.count(' all-gather('),
}}))
""",
    JAX_NUM_CPU_DEVICES='2',
  )
  assert outcome['error'] < BAR
  assert outcome['gathers'] == 0


AOT = """
import json, sys, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from hope.mixers.titans import SelfReferentialTitans, TitansOptions

topology, width, options = sys.argv[1:]
width, options = int(width), json.loads(options)
documents = options.pop('documents', False)
devices = topologies.get_topology_desc(
  platform='tpu', topology_name=topology
).devices
mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
layer = nnx.eval_shape(
  lambda: SelfReferentialTitans(
    2 * width,
    2,
    TitansOptions(**options),
    kernel='pallas',
    rngs=nnx.Rngs(0),
  )
)
graph, params = nnx.split(layer)

def on(x, *axes):
  sharding = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

def total(params, x, starts):
  starts = starts if documents else None
  return jnp.sum(nnx.merge(graph, params)(x, None, starts)[0] ** 2)

starts = jax.ShapeDtypeStruct((len(devices), 256), bool)
x = jax.ShapeDtypeStruct((len(devices), 256, 2 * width), jnp.float32)
compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(
  jax.tree.map(on, params), on(x, 'data'), on(starts, 'data')
).compile()
text = compiled.as_text()
print(json.dumps({
  'kernels': text.count('custom_call_target="tpu_custom_call"'),
  'gathers': text.count(' all-gather('),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'topology, width, options',
  [
    ('v5e:2x2', 96, {}),
    ('v5e:2x2', 128, {'q_memory': True, 'projection_chunk_size': 128}),
    ('v5e:2x2', 128, {'hidden_multiple': 0, 'momentum': False}),
    ('v5p:2x2x1', 128, {}),
    ('v5e:2x2', 128, {'documents': True}),
    (
      'v5e:2x2',
      64,
      {'documents': True, 'anchor': 'zero', 'chunk_size': 128},
    ),
    ('v6e:2x2', 64, {'chunk_size': 16, 'erase': False, 'read': 'chunk'}),
  ],
)
def test_compiles_for_tpu(libtpu, topology, width, options):
  outcome = program(
    f'import sys; sys.argv[1:] = {[topology, str(width), json.dumps(options)]}'
    f'; sys.path.append({str(libtpu)!r})\n{AOT}',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
  )
  assert outcome == {'kernels': 4, 'gathers': 0}


LINEAR_AOT = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from hope.memory import linear

devices = topologies.get_topology_desc(
  platform='tpu', topology_name='v5e:2x2'
).devices
mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec('data'))

def total(inputs, starts):
  y, state, *_ = linear.remember(
    linear.init_state(4, 2, 64, 64), None, **inputs, starts=starts,
    erase={erase}, kernel='pallas',
  )
  return jnp.sum(y ** 2) + jnp.sum(state.now)

def like(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct((4, 256, *shape), dtype, sharding=sharding)

inputs = dict.fromkeys('qkv', like(2, 64))
inputs |= dict.fromkeys(('alpha', 'beta'), like(2, 1))
lowered = jax.jit(jax.grad(total)).lower(inputs, like(dtype=bool))
text = lowered.compile().as_text()
print(json.dumps({{
  'kernels': text.count('custom_call_target="tpu_custom_call"'),
  'gathers': text.count(' all-gather('),
}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize('erase', [False, True])
def test_linear_memories_compile_for_tpu(libtpu, erase):
  outcome = program(
    f'import sys; sys.path.append({str(libtpu)!r})\n'
    + LINEAR_AOT.format(erase=erase),
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
  )
  assert outcome == {'kernels': 2, 'gathers': 0}
