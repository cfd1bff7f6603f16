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
  inputs,
  jit,
  randomize,
  relative,
)
import numpy as np
import pytest

from hope.mixers import MIXERS
from hope.parts import Sizes

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
