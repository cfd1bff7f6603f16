"""Recurrent mixers against their published recurrences, in NumPy and float64.

An oracle maps (p, x, state) to (y, state) of one row, token by token: p are the
layer's parameters by path, x is [t, width], a state is a dict of arrays, None
before the first token. Oracles also compute with complex numbers, so that
derivatives along a direction are exact to rounding: Im f(x + i h d) / h.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import (
  BAR,
  STREAM_BAR,
  assert_same,
  call,
  inputs,
  jit,
  model_module,
  randomize,
  relative,
  small_config,
)
import numpy as np
import pytest

from hope import blocks
from hope.config import base_config, resolve
from hope.mixers import MIXERS
from hope.model import Block, Hope
from hope.parts import InnerLosses, Sizes

WIDTH, HEADS, LENGTH = 12, 3, 21
SIZES = Sizes(
  width=WIDTH, num_heads=HEADS, seq_len=LENGTH, dtype=jnp.float64, kernel='xla'
)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def lstm(p, x, state):
  h = np.zeros(WIDTH) if state is None else state['output']
  c = np.zeros(WIDTH) if state is None else state['cell']
  w = np.split(p['input/kernel'], 4, axis=1)
  r = np.split(p['recurrent'], 4, axis=1)
  b = np.split(p['bias'], 4)
  ys = []
  for token in x:
    i, f, g, o = (token @ w[j] + h @ r[j] + b[j] for j in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    ys.append(h)
  return np.stack(ys), {'output': h, 'cell': c}


def softmax(x):
  z = np.exp(x - np.max(x.real))
  return z / np.sum(z)


def srwm(p, x, state, features=softmax):
  d = WIDTH // HEADS
  if state is None:
    parts = [p[name] for name in ('y', 'q', 'k', 'beta')]
    w = np.concatenate(parts, axis=2).swapaxes(1, 2)
  else:
    w = state['memory'].swapaxes(1, 2)
  ends, ys = [], []
  for head in range(HEADS):
    # The four parts of W, each changed by its own rate.
    parts = list(np.split(w[head], [d, 2 * d, 3 * d]))
    reads = []
    for token in x[:, head * d : (head + 1) * d]:
      y, q, k, beta = (part @ features(token) for part in parts)
      for j in range(4):
        error = parts[j] @ softmax(q) - parts[j] @ softmax(k)
        parts[j] = parts[j] + sigmoid(beta[j]) * np.outer(error, softmax(k))
      reads.append(y)
    ys.append(np.stack(reads))
    ends.append(np.concatenate(parts).T)
  ys = np.concatenate(ys, axis=1) @ p['output/kernel']
  return ys, {'memory': np.stack(ends)}


def silu(x):
  return x * sigmoid(x)


def mamba(p, x, state):
  channels, n = p['a_log'].shape
  rank, taps = len(p['step/kernel']), p['conv/kernel']
  last = np.zeros((len(taps) - 1, channels)) if state is None else state['conv']
  h = np.zeros((channels, n))
  if state is not None:
    h = state['memory'].reshape(channels, n)
  ys = []
  for token in x:
    seen = np.concatenate([last, [token @ p['input/kernel']]])
    last = seen[1:]
    u = silu(np.sum(seen * taps, axis=0) + p['conv_bias'])
    selected = u @ p['selection/kernel']
    step, write, read = np.split(selected, [rank, rank + n])
    step = np.log(1 + np.exp(step @ p['step/kernel'] + p['step_bias']))
    y = p['skip'] * u
    for c in range(channels):
      decay = np.exp(-step[c] * np.exp(p['a_log'][c]))
      new = decay * h[c] + step[c] * write * u[c]
      h = np.concatenate([h[:c], [new], h[c + 1 :]])
      y = y + np.eye(channels)[c] * (new @ read)
    ys.append(y * silu(token @ p['gate/kernel']) @ p['output/kernel'])
  return np.stack(ys), {'conv': last, 'memory': h.reshape(HEADS, -1, n)}


class Case(NamedTuple):
  """A mixer with options, and its oracle."""

  name: str
  options: dict[str, Any]
  oracle: Any


CASES = {
  'lstm': Case('lstm', {}, lstm),
  'srwm': Case('srwm', {}, srwm),
  'srwm of inputs': Case(
    'srwm',
    {'input_softmax': False},
    functools.partial(srwm, features=np.asarray),
  ),
  'mamba': Case('mamba', {}, mamba),
  'mamba narrow': Case(
    'mamba', {'state_size': 3, 'expand': 1, 'conv_width': 2}, mamba
  ),
}
over_cases = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def build(case, dtype=jnp.float64, **sizes):
  part = MIXERS[case.name]
  sizes = dataclasses.replace(SIZES, dtype=dtype, **sizes)
  module = part.build(sizes, part.options(**case.options), rngs=nnx.Rngs(0))
  return randomize(module, jnp.promote_types(dtype, jnp.float32))


def flat(tree):
  """Arrays by their paths, with '/' between the names."""
  leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(tree))
  return {
    '/'.join(str(k.key) for k in path): np.asarray(leaf)
    for path, leaf in leaves
  }


def row(state, index):
  """One row of a state, as oracles have it."""
  return {name: np.asarray(x[index]) for name, x in state._asdict().items()}


@over_cases
def test_it_is_the_published_recurrence(case, x64):
  """Outputs and final states; the second piece continues the first."""
  module = build(case)
  p = flat(nnx.state(module, nnx.Param))
  x = inputs(2, 2 * LENGTH, WIDTH, np.float64)
  run = jit(lambda x, state: module(x, state, None))
  first, middle = run(x[:, :LENGTH], module.init_state(2))
  second, end = run(x[:, LENGTH:], middle)
  for index in range(2):
    ys, expected = case.oracle(p, np.asarray(x[index]), None)
    assert relative(first[index], ys[:LENGTH]) <= BAR
    assert relative(second[index], ys[LENGTH:]) <= BAR
    _, halfway = case.oracle(p, np.asarray(x[index, :LENGTH]), None)
    for state, found in ((middle, halfway), (end, expected)):
      state = row(state, index)
      assert state.keys() == found.keys()
      for name, value in found.items():
        assert relative(state[name], value) <= BAR


@over_cases
def test_gradients_are_the_derivatives_of_the_recurrence(case, x64):
  """Of parameters, inputs and initial state, along random directions.

  The row holds two documents, the first of which continues a stream.
  """
  module, half = build(case), LENGTH // 2
  graph, params = nnx.split(module)
  rng = np.random.default_rng(5)
  normal = lambda tree: jax.tree.map(
    lambda x: rng.standard_normal(x.shape), tree
  )
  x, probe = normal((np.zeros((LENGTH, WIDTH)),) * 2)
  state = normal(module.init_state(1))
  ends = normal(state)
  starts = np.arange(LENGTH)[None] == half

  def loss(params, x, state):
    y, end = nnx.merge(graph, params)(x[None], state, starts)
    reads = jax.tree.map(lambda a, b: jnp.sum(a * b), ends, end)
    return jnp.sum(probe * y) + sum(jax.tree.leaves(reads))

  found = jit(jax.grad(loss, argnums=(0, 1, 2)))(params, jnp.asarray(x), state)
  found = jax.tree.map(np.asarray, (flat(found[0]), *found[1:]))
  p = flat(params)
  for only in (*p, 'inputs', 'state'):
    directions = (
      {name: d * (name == only) for name, d in normal(p).items()},
      normal(x) * (only == 'inputs'),
      normal(state) if only == 'state' else jax.tree.map(np.zeros_like, state),
    )
    moved_p, moved_x, moved_state = jax.tree.map(
      lambda a, d: np.asarray(a) + 1e-30j * d, (p, x, state), directions
    )
    y_1, _ = case.oracle(moved_p, moved_x[:half], row(moved_state, 0))
    y_2, end = case.oracle(moved_p, moved_x[half:], None)
    value = np.sum(probe * np.concatenate([y_1, y_2]))
    value += sum(np.sum(row(ends, 0)[name] * x) for name, x in end.items())
    expected = value.imag / 1e-30
    products = jax.tree.map(lambda g, d: np.sum(g * d), found, directions)
    actual = sum(jax.tree.leaves(products))
    assert abs(actual - expected) <= BAR * max(1, abs(expected)), only
    assert abs(expected) > 1e-6, only


@over_cases
def test_pieces_equal_the_whole_in_float32(case):
  module = build(case, jnp.float32)
  run = jit(lambda x, state: module(x, state, None))
  x = inputs(2, 67, WIDTH)
  state, ys = module.init_state(2), []
  whole = run(x, state)
  for piece in (x[:, :1], x[:, 1:34], x[:, 34:]):
    y, state = run(piece, state)
    ys.append(y)
  assert_same((jnp.concatenate(ys, axis=1), state), whole, STREAM_BAR)


@over_cases
def test_bfloat16_changes_little(case):
  x = inputs(2, 32, 48).astype(jnp.bfloat16)
  half, full = (
    jit(build(case, dtype, width=48))(x.astype(dtype))[0].astype(jnp.float32)
    for dtype in (jnp.bfloat16, jnp.float32)
  )
  error = np.linalg.norm(half - full) / np.linalg.norm(full)
  assert 0 < error <= 0.02


@over_cases
def test_a_document_starts_anywhere_and_after_a_token_that_is_not_finite(case):
  """Nothing of an earlier document is seen, not even NaN."""
  module = build(case, jnp.float32)
  run = jit(lambda x, state, starts: module(x, state, starts))
  x = inputs(1, 9, WIDTH)
  expected = run(x[:, 5:], None, None)
  starts = np.arange(9)[None] == 5
  spoiled = x.at[0, 2].set(jnp.nan)
  y, state = run(spoiled, None, starts)
  assert_same((y[:, 5:], state), expected, 1e-5)
  assert np.isnan(y[:, 2:5]).all() and np.isfinite(y[:, :2]).all()
  _, state = run(spoiled[:, :5], None, None)
  for first in (np.ones((1, 1), bool), np.ones((1, 4), bool)):
    first[:, 1:] = False
    length = first.shape[1]
    y, _ = run(x[:, 5 : 5 + length], state, first)
    assert relative(y, expected[0][:, :length]) <= 1e-5
  y, _ = run(x[:, 5:], state, None)
  assert np.isnan(y).all()


def test_lstm_is_flax_lstm(x64):
  """With the parameters copied into Flax's cell."""
  module = build(CASES['lstm'])
  cell = nnx.OptimizedLSTMCell(
    WIDTH, WIDTH, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
  )
  cell.dense_i.kernel[...] = module.input.kernel[...]
  cell.dense_h.kernel[...] = module.recurrent[...]
  cell.dense_h.bias[...] = module.bias[...]
  x = inputs(2, 4, WIDTH, np.float64)
  y, state = jit(lambda x: module(x, None, None))(x)
  carry = (jnp.zeros((2, WIDTH)),) * 2
  for t in range(4):
    carry, output = cell(carry, x[:, t])
    assert relative(y[:, t], output) <= BAR
  assert_same((state.cell, state.output), carry, BAR)


def test_lstm_as_drawn():
  """R is orthogonal for each gate; the forget gate's bias is 1."""
  part = MIXERS['lstm']
  module = part.build(
    dataclasses.replace(SIZES, dtype=jnp.float32),
    part.options(),
    rngs=nnx.Rngs(0),
  )
  for gate in np.split(np.asarray(module.recurrent[...]), 4, axis=1):
    assert np.abs(gate.T @ gate - np.eye(WIDTH)).max() < 1e-5
  np.testing.assert_array_equal(
    module.bias[...].reshape(4, WIDTH)[:, 0], [0, 1, 0, 0]
  )


def test_mamba_as_drawn():
  """A = -1, ..., -N; steps from 1e-3 to 1e-1; the skip is 1."""
  part = MIXERS['mamba']
  sizes = dataclasses.replace(SIZES, width=48, dtype=jnp.float32)
  module = part.build(sizes, part.options(), rngs=nnx.Rngs(0))
  a = -np.exp(module.a_log[...])
  np.testing.assert_allclose(a, np.tile(-np.arange(1, 17), (96, 1)), rtol=1e-6)
  steps = np.sort(jax.nn.softplus(module.step_bias[...]))
  assert 9e-4 < steps[0] < 2e-3 < 5e-2 < steps[-1] < 1.1e-1
  assert 5e-3 < np.median(steps) < 2e-2
  np.testing.assert_array_equal(module.skip[...], 1)
  np.testing.assert_array_equal(module.conv_bias[...], 0)
  kernel = module.step.kernel[...]
  assert kernel.shape == (3, 96) and 0.5 < abs(kernel).max() <= 3**-0.5


@pytest.mark.parametrize('name', ['srwm', 'mamba'])
def test_the_backward_pass_keeps_no_state_per_token(name):
  """Temporary memory of the gradient, by 1,024 states of one row."""
  case = CASES[name]
  if name == 'mamba':
    case = case._replace(options={'state_size': 128})
  module = build(case, jnp.float32, width=48)
  graph, params = nnx.split(module)

  def loss(params, x):
    return jnp.sum(jnp.square(nnx.merge(graph, params)(x, None, None)[0]))

  x = jax.ShapeDtypeStruct((1, 1024, 48), jnp.float32)
  compiled = jit(jax.grad(loss)).lower(params, x).compile()
  per_token = 4 * module.init_state(1).memory.size
  used = compiled.memory_analysis().temp_size_in_bytes
  assert used < 1024 * per_token / 2


SAMBA = 'mamba+swiglu, attention(max_context=8)+swiglu'


def test_samba_is_a_pattern():
  config = small_config(**{'model.pattern': SAMBA, 'model.vocab_size': 64})
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  kinds = [type(block.mixer).__name__ for block in model.blocks]
  assert kinds == ['MambaLayer', 'CausalAttention']
  logits, state = nnx.eval_shape(
    lambda model: model(jnp.zeros((2, 20), jnp.int32)), model
  )
  assert logits.shape == (2, 20, 64)
  assert state[0][0].memory.shape == (1, 2, 2, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize('pattern', [SAMBA, 'lstm+cms, srwm+cms'])
def test_a_model_of_them_reads_in_pieces(pattern):
  model = model_module(**{'model.pattern': pattern})
  run = call(model)
  tokens = np.random.default_rng(0).integers(0, 64, (2, 20))
  whole, end = run(tokens, model.init_state(2))
  state, logits = model.init_state(2), []
  for piece in (tokens[:, :10], tokens[:, 10:]):
    found, state = run(piece, state)
    logits.append(found)
  logits = jnp.concatenate(logits, axis=1)
  assert_same((logits, state), (whole, end), STREAM_BAR)


@pytest.mark.parametrize('mixer', ['lstm', 'srwm', 'mamba'])
def test_blocks_have_the_parameters_of_other_blocks(mixer):
  """At the paper's size: 12.5 width^2, within 2%."""
  config = base_config()
  config.model.preset, config.model.pattern = '760m', f'{mixer}+cms'
  (spec,) = blocks.pattern(resolve(config, 64))
  block = nnx.eval_shape(lambda: Block(spec, rngs=nnx.Rngs(0)))
  count = sum(x.size for x in jax.tree.leaves(nnx.state(block, nnx.Param)))
  assert abs(count / (12.5 * 1536**2) - 1) <= 0.02


def test_srwm_measures_its_objective(x64):
  """1/2 |W f(k) - W f(q)|^2 at the matrix before the write, mean over heads."""
  module = build(CASES['srwm'])
  module.set_attributes(measures=True)

  def measure(module, x):
    _, state = module(x[:, :2])
    module(x[:, 2:], state)
    found = nnx.to_pure_dict(nnx.pop(module, InnerLosses))
    return state, found['inner_losses']['memory']

  x = inputs(1, 3, WIDTH, np.float64)
  state, losses = nnx.jit(measure)(module, x)
  d, expected = WIDTH // HEADS, 0.0
  for head in range(HEADS):
    w = np.asarray(state.memory[0, head]).T
    read = w @ softmax(np.asarray(x[0, 2, head * d : (head + 1) * d]))
    query, key = (softmax(read[j * d : (j + 1) * d]) for j in (1, 2))
    expected += np.sum(np.square(w @ key - w @ query)) / 2 / HEADS
  assert losses.shape == (1, 1)
  assert relative(losses[0, 0], expected) <= BAR
