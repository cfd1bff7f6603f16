"""The layer of hope.mixers.delta against the published recurrences in NumPy."""

import dataclasses

from flax import nnx
import jax.numpy as jnp
from layer_cases import (
  BAR,
  assert_gradients_are_differences,
  inputs,
  jit,
  randomize,
  relative,
)
import numpy as np
import pytest

from hope.mixers.delta import PART, RULES, DeltaLayer, DeltaOptions
from hope.parts import Sizes

WIDTH, HEADS, LENGTH = 12, 3, 21
SIZES = Sizes(
  width=WIDTH, num_heads=HEADS, seq_len=LENGTH, dtype=jnp.float64, kernel='xla'
)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def rotated(x, position):
  """x [2 half]: pairs (j, j + half) turned by position 10^(-4 j / half)."""
  half = len(x) // 2
  turned = np.zeros_like(x)
  for j in range(half):
    angle = position * 10_000.0 ** (-j / half)
    a, b = x[j], x[j + half]
    turned[j] = a * np.cos(angle) - b * np.sin(angle)
    turned[j + half] = a * np.sin(angle) + b * np.cos(angle)
  return turned


def reads(rule, q, k, v, beta, alpha, gamma, feedback=1.0, correction=0.0):
  """Outputs y_t and the last S of one head: q, k [t, i], v [t, o]."""
  state, total, ys = np.zeros((v.shape[1], k.shape[1])), 0.0, []
  for t in range(len(q)):
    if rule == 'linear_attention':
      key, query = (np.where(z > 0, z + 1, np.exp(z)) for z in (k[t], q[t]))
      state = state + np.outer(v[t], key)
      total = total + key
      ys.append(state @ query / (total @ query))
    elif rule == 'retnet':
      key, query = rotated(k[t], t), rotated(q[t], t)
      state = gamma * state + np.outer(v[t], key)
      ys.append(state @ query / np.sqrt(len(query)))
    elif rule == 'comba':
      key, query = (z / np.linalg.norm(z) for z in (k[t], q[t]))
      taken = feedback * beta[t] * np.outer(key, key)
      state = state @ (alpha[t] * np.eye(len(key)) - taken)
      state = state + beta[t] * np.outer(v[t], key)
      ys.append(state @ (query - correction * key))
    else:
      key, query = (z / np.linalg.norm(z) for z in (k[t], q[t]))
      kept = np.eye(len(key)) - beta[t] * np.outer(key, key)
      state = alpha[t] * state @ kept + beta[t] * np.outer(v[t], key)
      ys.append(state @ query)
  return np.stack(ys), state


def oracle(layer, rule, twice, x):
  """The layer without convolution and gate, of x [t, width]: y, each S^T."""
  p = {
    '/'.join(map(str, path)): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))
  }
  d = WIDTH // HEADS
  qkv = (x @ p['qkv/kernel']).reshape(len(x), HEADS, 3, d)
  beta = np.ones((len(x), HEADS))
  alpha = np.ones((len(x), HEADS))
  if rule in ('deltanet', 'gated_deltanet', 'comba'):
    beta = (1 + twice) * sigmoid(x @ p['beta/kernel'])
  if rule in ('gated_deltanet', 'comba'):
    step = np.log1p(np.exp(x @ p['alpha/kernel'] + p['alpha_bias']))
    alpha = np.exp(-np.exp(p['alpha_log']) * step)
  ys, states = [], []
  for head in range(HEADS):
    q, k, v = np.moveaxis(qkv[:, head], 1, 0)
    gamma = 1 - 2.0 ** (-5 - head)
    of_comba = {}
    if rule == 'comba':
      of_comba['feedback'] = sigmoid(p['feedback'][head])
      of_comba['correction'] = p['correction'][head]
    y, state = reads(
      rule, q, k, v, beta[:, head], alpha[:, head], gamma, **of_comba
    )
    states.append(state.T)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6)
    ys.append(y * p['norm/scale'])
  return np.concatenate(ys, axis=-1) @ p['output/kernel'], np.stack(states)


@pytest.mark.parametrize('chunk', [1, 4, 64])
@pytest.mark.parametrize(
  ('rule', 'twice'),
  [*((rule, False) for rule in RULES), *((x, True) for x in RULES[2:4])],
)
def test_it_is_the_published_recurrence(rule, twice, chunk, x64):
  options = DeltaOptions(
    rule=rule,
    chunk_size=chunk,
    conv_width=0,
    output_gate=False,
    negative_eigenvalues=twice,
  )
  layer = DeltaLayer(SIZES, options, rngs=nnx.Rngs(0))
  layer = randomize(layer, jnp.float64)
  x = np.random.default_rng(3).standard_normal((2, LENGTH, WIDTH))
  y, end = jit(lambda x: layer(x, None, None))(jnp.asarray(x))
  for row in range(2):
    expected, states = oracle(layer, rule, twice, x[row])
    assert relative(y[row], expected) <= BAR
    if rule != 'linear_attention':  # which keeps its normaliser there as well
      assert relative(end.memory.now[row], states) <= BAR


def test_gradients_of_comba_are_finite_differences(x64):
  options = DeltaOptions(rule='comba', chunk_size=4)
  layer = randomize(DeltaLayer(SIZES, options, rngs=nnx.Rngs(0)), jnp.float64)
  assert_gradients_are_differences(layer, inputs(1, 9, WIDTH, np.float64))


def test_comba_has_no_step_to_two():
  options = DeltaOptions(rule='comba', negative_eigenvalues=True)
  with pytest.raises(ValueError, match='would reach -2; set negative'):
    PART.check(SIZES, options)


@pytest.mark.parametrize('rule', ['gated_deltanet', 'comba'])
def test_bfloat16_is_near_float32(rule):
  options = DeltaOptions(rule=rule, chunk_size=8)
  sizes = dataclasses.replace(SIZES, dtype=jnp.bfloat16)
  x = np.random.default_rng(6).standard_normal((2, LENGTH, WIDTH))
  ys = []
  for of in (dataclasses.replace(SIZES, dtype=jnp.float32), sizes):
    layer = DeltaLayer(of, options, rngs=nnx.Rngs(0))
    ys.append(jit(lambda x, of=layer: of(x, None, None)[0])(x.astype(of.dtype)))
  exact, rounded = (np.asarray(y, np.float32) for y in ys)
  assert np.linalg.norm(rounded - exact) <= 0.02 * np.linalg.norm(exact)


def test_the_gate_and_the_convolution_are_around_it(x64):
  """y = (norm(reads) * silu(x W)) @ output, q, k, v = silu(conv(x W))."""
  options = DeltaOptions(chunk_size=4)
  layer = randomize(DeltaLayer(SIZES, options, rngs=nnx.Rngs(0)), jnp.float64)
  x = jnp.asarray(np.random.default_rng(4).standard_normal((1, 6, WIDTH)))
  y, _ = layer(x, None, None)
  params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
  mixed = np.asarray(x[0] @ params['qkv']['kernel'])
  kernel = np.asarray(params['conv']['kernel'])
  padded = np.concatenate([np.zeros((3, mixed.shape[1])), mixed])
  mixed = sum(padded[j : j + 6] * kernel[j] for j in range(4))
  mixed = mixed * sigmoid(mixed)
  gate = np.asarray(x[0] @ params['gate']['kernel'])
  qkv = mixed.reshape(6, HEADS, 3, -1)
  step = np.log1p(
    np.exp(x[0] @ params['alpha']['kernel'] + params['alpha_bias'])
  )
  alpha = np.exp(-np.exp(params['alpha_log']) * step)
  beta = sigmoid(np.asarray(x[0] @ params['beta']['kernel']))
  heads = []
  for head in range(HEADS):
    q, k, v = np.moveaxis(qkv[:, head], 1, 0)
    read, _ = reads(
      'gated_deltanet', q, k, v, beta[:, head], np.asarray(alpha)[:, head], 0
    )
    read /= np.sqrt(np.mean(read**2, axis=-1, keepdims=True) + 1e-6)
    heads.append(read * np.asarray(params['norm']['scale']))
  read = np.concatenate(heads, axis=-1) * gate * sigmoid(gate)
  assert relative(y[0], read @ np.asarray(params['output']['kernel'])) <= BAR
