"""The Pallas kernel against the XLA form, interpreted; compiled for TPU."""

import functools
import os
import pathlib
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import assert_same, inputs, jit, small_config, titans
import numpy as np
import pytest

from hope.memory import pallas, rule, solve

HERE = pathlib.Path(__file__).parent
BAR = 1e-5  # float32
BAR64 = 1e-10


# ------------------------------------------------------- the parts of the rule


def value_and_gradients(function, *args, seed=3):
  """The outputs, and the gradients of a random linear functional of them."""
  outputs = function(*args)
  rng = np.random.default_rng(seed)
  weights = jax.tree.map(lambda x: rng.standard_normal(x.shape), outputs)

  def total(*args):
    products = jax.tree.map(lambda w, x: jnp.sum(w * x), weights, function(*args))
    return sum(jax.tree.leaves(products))

  return outputs, jax.grad(total, argnums=tuple(range(len(args))))(*args)


@pytest.mark.parametrize('momentum', [True, False])
@pytest.mark.parametrize('tokens', [8, 24, 64])
def test_decays(x64, tokens, momentum):
  rng = np.random.default_rng(0)
  alpha = jnp.asarray(rng.uniform(0.1, 1.0, (tokens, 1)))
  alpha = alpha.at[3].set(1.0)
  beta = jnp.asarray(rng.uniform(0.0, 0.95, (tokens, 1)))
  args = (alpha, beta) if momentum else (alpha,)
  of = lambda decays: value_and_gradients(
    lambda *args: decays(args[0], args[1] if momentum else None), *args
  )
  assert_same(of(pallas.decays), of(rule.decays), BAR64)


def test_decays_of_zero_are_zero(x64):
  alpha = jnp.full((16, 1), 0.9).at[5].set(0.0).at[9].set(0.0)
  assert_same(
    pallas.decays(alpha, alpha), rule.decays(alpha, alpha), 1e-12
  )


@pytest.mark.parametrize('shape', [(8, 8), (16, 16), (2, 24, 24), (64, 64)])
def test_solve(x64, shape):
  rng = np.random.default_rng(0)
  lower = jnp.asarray(np.tril(rng.standard_normal(shape), -1)) / 4
  rhs = jnp.asarray(rng.standard_normal((*shape[:-1], 5)))
  np.testing.assert_allclose(
    pallas.invert_unit_lower(lower), solve.invert_unit_lower(lower), atol=BAR64
  )
  assert_same(
    value_and_gradients(pallas.solve_unit_lower, lower, rhs),
    value_and_gradients(solve.solve_unit_lower, lower, rhs),
    BAR64,
  )


def test_solve_of_identical_keys_in_float32():
  # The sum of powers is wrong by 4e2 here.
  lower = jnp.tril(jnp.full((64, 64), 0.5), -1)
  inverse = np.asarray(pallas.invert_unit_lower(lower))
  exact = np.linalg.inv(np.eye(64) + np.asarray(lower, np.float64))
  assert np.abs(inverse - exact).max() < 1e-5


# ------------------------------------------------------------------- the layer


def run(kernel, x, state_is_given=False, **options):
  """(y, state) and gradients, by parameters and input, of a whole layer."""
  layer = titans(x.shape[-1], kernel=kernel, dtype=x.dtype, **options)
  graph, params = nnx.split(layer)

  @jit
  def compute(params, x):
    def total(params, x):
      layer = nnx.merge(graph, params)
      y, state = layer(x)
      # Weights that tell tokens and states apart.
      leaves = jax.tree.leaves((y, state.memory.now, state.projections))
      waves = [jnp.sum(a * jnp.sin(jnp.arange(a.size)).reshape(a.shape))
               for a in leaves]
      return sum(waves), (y, state)

    return jax.grad(total, argnums=(0, 1), has_aux=True)(params, x)

  return compute(params, x)


def assert_forms_agree(x, bar, **options):
  assert_same(run('pallas', x, **options), run('xla', x, **options), bar)


CASES = {
  'default': {},
  'plain': {'momentum': False, 'erase': False, 'retention': False},
  'zero': {'anchor': 'zero', 'momentum': False},
  'dot': {'objective': 'dot', 'erase': False, 'eta_max': 0.05},
  'linear': {'hidden_multiple': 0},
  'chunk_read': {'read': 'chunk', 'self_target': False, 'hidden_multiple': 2},
  'q_memory': {'q_memory': True, 'target_max': None, 'error_max': None},
  'static': {'self_modifying': False, 'mix': 'none'},
}
QUICK = ('default', 'plain', 'linear')


def cases():
  slow = lambda name: () if name in QUICK else (pytest.mark.slow,)
  return [pytest.param(name, marks=slow(name)) for name in CASES]


@pytest.mark.parametrize('case', cases())
def test_layer(x64, case):
  options = {'chunk_size': 16, 'projection_chunk_size': 8} | CASES[case]
  assert_forms_agree(inputs(2, 32, 8, np.float64), BAR64, **options)


@pytest.mark.parametrize('chunk', [16, pytest.param(64, marks=pytest.mark.slow)])
def test_layer_in_float32(chunk):
  x = inputs(1, 2 * chunk, 16)
  options = {'chunk_size': chunk, 'projection_chunk_size': chunk}
  assert_forms_agree(x, BAR, **options)


@pytest.mark.slow
def test_chunks_of_several_blocks(x64):
  options = {'chunk_size': 128, 'projection_chunk_size': 64}
  assert_forms_agree(inputs(1, 256, 4, np.float64), BAR64, **options)


def test_pieces_of_a_stream(x64):
  # Two whole chunks, the rest of the piece, then pieces within a chunk.
  x = inputs(1, 27, 8, np.float64)
  results = []
  for kernel in ('xla', 'pallas'):
    layer = titans(
      8,
      dtype=jnp.float64,
      kernel=kernel,
      chunk_size=8,
      projection_chunk_size=8,
    )
    graph, params = nnx.split(layer)
    call = jit(lambda p, x, s, graph=graph: nnx.merge(graph, p)(x, s))
    first, state = call(params, x[:, :21], None)
    second, state = call(params, x[:, 21:26], state)
    third, state = call(params, x[:, 26:], state)
    results.append((first, second, third, state))
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
    'model.titans.kernel': 'pallas',
    'model.titans.chunk_size': 16,
    'model.titans.projection_chunk_size': 64,
  }
  small_config(**fields, **{'data.seq_len': 128})
  with pytest.raises(ValueError, match='data.seq_len=80 .* of 64; try 128'):
    small_config(**fields, **{'data.seq_len': 80})
  with pytest.raises(ValueError, match='model.titans.kernel=.*xla, pallas'):
    small_config(**{'model.titans.kernel': 'cuda'})


# ------------------------------------------------------------------- platforms


def test_devices_keep_their_sequences():
  devices = jax.devices()
  if len(devices) < 2:
    pytest.fail('This needs two devices; see conftest.')


def test_lowers_for_tpu():
  layer = titans(32, kernel='pallas', chunk_size=16, projection_chunk_size=16)
  graph, params = nnx.split(layer)
  total = lambda params, x: jnp.sum(nnx.merge(graph, params)(x)[0])
  traced = jax.jit(jax.grad(total)).trace(params, inputs(1, 32, 32))
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 4  # twice forward, twice backward
