"""The mixers against public code: goldens/make.py says how it was run.

What was computed in float32 is held to 1e-5, what was in float64 to 1e-10.
RWKV-7's is in mixers_rwkv7_test.py.
"""

import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import BAR, call, jit, relative
import numpy as np
import pytest

from hope.memory import mlp, rule
from hope.mixers.attention import AttentionOptions, CausalAttention
from hope.mixers.delta import DeltaLayer, DeltaOptions
from hope.mixers.lstm import LSTMLayer, LSTMOptions
from hope.mixers.mamba import MambaLayer, MambaOptions
from hope.mixers.srwm import SRWMLayer, SRWMOptions
from hope.mixers.ttt import TTTLayer, TTTOptions
from hope.parts import Sizes

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
FLOAT32_BAR = 1e-5
WIDTH, HEADS, HEAD, LENGTH = 16, 2, 8, 24
SIZES = Sizes(
  width=WIDTH, num_heads=HEADS, seq_len=LENGTH, dtype=jnp.float64, kernel='xla'
)


def load(name):
  with np.load(GOLDENS / f'{name}.npz') as file:
    golden = {key: file[key] for key in file if key != 'source'}
  # Both compute with the same numbers; only the public code rounds.
  return jax.tree.map(lambda x: x.astype(np.float64), golden)


def fill(layer, weights):
  """Sets all parameters of a layer, by their paths."""
  params = nnx.to_flat_state(nnx.state(layer, nnx.Param))
  assert {'.'.join(map(str, path)) for path, _ in params} == set(weights)
  filled = []
  for path, leaf in params:
    value = weights['.'.join(map(str, path))]
    assert value.shape == leaf.shape
    filled.append((path, leaf.replace(jnp.asarray(value))))
  nnx.update(layer, nnx.from_flat_state(filled))
  return layer


def join_heads(*kernels):
  """One kernel [i, heads len(kernels) d] of several [heads d, i]: by head."""
  rows = [kernel.reshape(-1, HEADS, HEAD) for kernel in kernels]
  return np.stack(rows, axis=2).reshape(len(kernels[0]), -1)


def test_lstm_is_that_of_torch(x64):
  golden = load('lstm')
  layer = fill(
    LSTMLayer(SIZES, LSTMOptions(), rngs=nnx.Rngs(0)),
    {
      'input.kernel': golden['weight_ih_l0'].T,
      'recurrent': golden['weight_hh_l0'].T,
      'bias': golden['bias_ih_l0'] + golden['bias_hh_l0'],
    },
  )
  y, state = call(layer)(golden['x'], None)
  assert relative(y, golden['y']) <= BAR
  assert relative(state.cell, golden['state']) <= BAR


LLAMA3 = {
  'rope_scaling': 'llama3',
  'rope_factor': 4.0,
  'rope_low_factor': 1.0,
  'rope_high_factor': 4.0,
  'rope_original': 32,
}


@pytest.mark.parametrize(
  ('name', 'scaling'), [('attention', {}), ('attention_llama3', LLAMA3)]
)
def test_attention_is_that_of_llama(name, scaling, x64):
  """With grouped queries."""
  golden = load(name)
  options = AttentionOptions(
    max_context=LENGTH, num_kv_heads=2, rope_theta=100.0, **scaling
  )
  layer = CausalAttention(
    WIDTH, 4, options, dtype=jnp.float64, rngs=nnx.Rngs(0)
  )
  # By head, and within a head k, v.
  kv = np.stack(
    [golden[f'{x}_proj.weight'].T.reshape(WIDTH, 2, 4) for x in 'kv'], axis=2
  )
  fill(
    layer,
    {
      'query.kernel': golden['q_proj.weight'].T,
      'key_value.kernel': kv.reshape(WIDTH, -1),
      'output.kernel': golden['o_proj.weight'].T,
    },
  )
  y, _ = call(layer)(golden['x'], None)
  assert relative(y, golden['y']) <= FLOAT32_BAR


def test_mamba_is_that_of_transformers(x64):
  golden = load('mamba')
  x, gate = np.split(golden['in_proj.weight'].T, 2, axis=1)
  layer = fill(
    MambaLayer(SIZES, MambaOptions(state_size=4), rngs=nnx.Rngs(0)),
    {
      'input.kernel': x,
      'gate.kernel': gate,
      'conv.kernel': golden['conv1d.weight'][:, 0].T,
      'conv_bias': golden['conv1d.bias'],
      'selection.kernel': golden['x_proj.weight'].T,
      'step.kernel': golden['dt_proj.weight'].T,
      'step_bias': golden['dt_proj.bias'],
      'a_log': golden['A_log'],
      'skip': golden['D'],
      'output.kernel': golden['out_proj.weight'].T,
    },
  )
  y, state = call(layer)(golden['x'], None)
  assert relative(y, golden['y']) <= FLOAT32_BAR
  memory = state.memory.reshape(golden['state'].shape)
  assert relative(memory, golden['state']) <= FLOAT32_BAR


def test_gated_deltanet_is_that_of_qwen3_next(x64):
  golden = load('gated_deltanet')
  # There by head q, k, v, gate, and beta, alpha; here q, k, v in each head.
  qkvz = golden['in_proj_qkvz.weight'].T.reshape(WIDTH, HEADS, 4, HEAD)
  rates = golden['in_proj_ba.weight'].T.reshape(WIDTH, HEADS, 2)
  taps = golden['conv1d.weight'][:, 0].T.reshape(4, 3, HEADS, HEAD)
  options = DeltaOptions(rule='gated_deltanet', chunk_size=8)
  layer = fill(
    DeltaLayer(SIZES, options, rngs=nnx.Rngs(0)),
    {
      'qkv.kernel': qkvz[:, :, :3].reshape(WIDTH, -1),
      'gate.kernel': qkvz[:, :, 3].reshape(WIDTH, -1),
      'conv.kernel': taps.swapaxes(1, 2).reshape(4, -1),
      'beta.kernel': rates[:, :, 0],
      'alpha.kernel': rates[:, :, 1],
      'alpha_log': golden['A_log'],
      'alpha_bias': golden['dt_bias'],
      'norm.scale': golden['norm.weight'],
      'output.kernel': golden['out_proj.weight'].T,
    },
  )
  # There what is read is divided by the root of HEAD before it is normalised.
  layer.norm.eps *= HEAD
  y, state = call(layer)(golden['x'], None)
  assert relative(state.memory.now, golden['state']) <= FLOAT32_BAR
  assert relative(y, golden['y']) <= FLOAT32_BAR


@pytest.mark.parametrize(
  ('name', 'scale'),
  # fla divides what deltanet and comba read by the root of a head's width.
  [
    ('retnet', 1),
    ('linear_attention', 1),
    ('deltanet', HEAD**0.5),
    ('comba', HEAD**0.5),
  ],
)
def test_recurrences_are_those_of_fla(name, scale, x64):
  """Within the layer, whose output is here what each head reads, normalised."""
  golden = load(name)
  x, y = golden.pop('x'), scale * golden.pop('y')
  state = golden.pop('state', None)
  options = DeltaOptions(
    rule=name, chunk_size=8, conv_width=0, output_gate=False
  )
  others = {'norm.scale': np.ones(HEAD), 'output.kernel': np.eye(WIDTH)}
  layer = DeltaLayer(SIZES, options, rngs=nnx.Rngs(0))
  reads, end = call(fill(layer, golden | others))(x, None)
  expected = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6)
  assert relative(reads.reshape(y.shape), expected) <= FLOAT32_BAR
  if state is not None:
    assert relative(end.memory.now, state) <= FLOAT32_BAR


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_memory_of_titans_is_that_of_titans_pytorch(x64):
  golden = load('titans')
  x = golden['x']

  def project(name):
    return x @ golden[f'{name}.weight'].T + golden.get(f'{name}.bias', 0)

  q, k, v = map(project, ('queries', 'keys', 'values'))
  q, k, v = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (q, k, v))
  eta = 0.2 * sigmoid(project('adaptive_step'))
  # There alpha is what is forgotten.
  alpha = 1 - sigmoid(project('decay_factor'))
  beta = sigmoid(project('momentum'))

  @jit
  def learn(now, trace, q, k, v, eta, alpha, beta):
    # The eta whose proximal step, ours alone, is the one given; |k| = 1.
    square = jnp.sum(jax.nn.silu(k @ now.up) ** 2, axis=-1, keepdims=True)
    rates = mlp.Rates(
      up=eta / (1 - eta),
      down=eta / (1 - eta * square),
      decay=rule.XLA.decays(alpha, beta, None, True),
      erase=False,
      error_max=None,
    )
    how = {'rates': rates, 'objective': 'l2', 'queries': q}
    return mlp.learn(None, now, now, trace, k=k, targets=(v[:, None],), **how)

  now = mlp.Kernels(golden['up'][None], (golden['down'][None, None],))
  now = jax.tree.map(lambda z: np.repeat(z, len(x), axis=0), now)
  trace, ys = jax.tree.map(np.zeros_like, now), []
  for first in range(0, LENGTH, 8):
    piece = (z[:, first : first + 8] for z in (q, k, v, eta, alpha, beta))
    now, trace, (y,) = learn(now, trace, *piece)
    ys.append(y[:, 0])
  assert relative(jnp.concatenate(ys, axis=1), golden['y']) <= BAR
  assert relative(now.up, golden['end.up']) <= BAR
  assert relative(now.down[0][:, 0], golden['end.down']) <= BAR


def test_srwm_is_that_of_its_authors(x64):
  golden = load('srwm')
  weights = {x: golden[f'W_{x}'] for x in 'yqk'}
  weights |= {'beta': golden['w_b'], 'output.kernel': np.eye(WIDTH)}
  layer = SRWMLayer(SIZES, SRWMOptions(), rngs=nnx.Rngs(0))
  y, _ = call(fill(layer, weights))(golden['x'], None)
  assert relative(y, golden['y']) <= BAR


@pytest.mark.parametrize('model', ['linear', 'mlp'])
def test_ttt_is_that_of_its_authors(model, x64):
  """Whose rotation, in float32, is of neighbours (2 j, 2 j + 1)."""
  golden = load(f'ttt_{model}')
  order = np.r_[0:HEAD:2, 1:HEAD:2]
  wide = np.concatenate([order, HEAD + order])
  taps = (golden[f'conv_{x}'][:, 0].T[:, wide] for x in 'qk')
  weights = {
    'qk.kernel': golden['q_proj'].T[:, wide],
    'v.kernel': golden['v_proj'].T[:, wide],
    'gate.kernel': golden['g_proj'].T[:, wide],
    'conv.kernel': join_heads(*taps),
    'rate.kernel': golden['learnable_ttt_lr_weight'][:, 0].T,
    'rate.bias': golden['learnable_ttt_lr_bias'][:, 0],
    'tau': golden['learnable_token_idx'],
    'inner_scale': golden['ttt_norm_weight'][:, None, order],
    'inner_bias': golden['ttt_norm_bias'][:, None, order],
    'w0': golden['W1'][:, order],
    'b0': golden['b1'],
    'norm.scale': golden['post_norm_weight'][wide],
    'norm.bias': golden['post_norm_bias'][wide],
    'output.kernel': golden['o_proj'].T[wide],
  }
  if model == 'mlp':
    weights |= {'w1': golden['W2'], 'b1': golden['b2']}
  last = max(name for name in weights if name in ('w0', 'w1'))
  for name in (last, last.replace('w', 'b')):
    weights[name] = weights[name][..., order]
  options = TTTOptions(model=model, chunk_size=8)
  layer = fill(TTTLayer(SIZES, options, rngs=nnx.Rngs(0)), weights)
  y, _ = call(layer)(golden['x'], None)
  assert relative(y, golden['y']) <= FLOAT32_BAR
