"""Attention against NumPy, in blocks too, and what a length costs it."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import (
  BAR,
  call,
  inputs,
  jit,
  randomize,
  relative,
)
import numpy as np
import pytest
import reference

from hope.layers import blockwise, rotary
from hope.mixers.attention import AttentionOptions, CausalAttention
from hope.profiling.roofline import matmul_flops

WIDTH, HEADS, LENGTH = 8, 4, 21
OPTIONS = {
  'plain': AttentionOptions(LENGTH),
  'window': AttentionOptions(5),
  'grouped': AttentionOptions(LENGTH, num_kv_heads=2, head_dim=6),
  'llama3': AttentionOptions(
    9, num_kv_heads=1, rope_scaling='llama3', rope_original=32
  ),
  'persistent': AttentionOptions(5, num_kv_heads=2, num_persistent=3),
}


def build(options, dtype=jnp.float64):
  layer = CausalAttention(WIDTH, HEADS, options, dtype=dtype, rngs=nnx.Rngs(0))
  return randomize(layer, dtype)


def softmax_reads(q, k, v, first, always=None):
  """y [t, d] of one head; token t reads keys first[t] to t; may be complex.

  It also reads the keys and values of `always`.
  """
  more_k, more_v = (k[:0], v[:0]) if always is None else always
  ys = []
  for t in range(len(q)):
    seen = slice(first[t], t + 1)
    scores = np.concatenate([more_k, k[seen]]) @ q[t] / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.real.max())
    values = np.concatenate([more_v, v[seen]])
    ys.append(weights @ values / weights.sum())
  return np.stack(ys)


def frequency(o, half):
  """Radians per token; Llama 3's scaling as its authors' code has it."""
  found = []
  for j in range(half):
    f = o.rope_theta ** (-j / half)
    length = 2 * np.pi / f
    if o.rope_scaling == 'llama3':
      low = o.rope_original / o.rope_low_factor
      high = o.rope_original / o.rope_high_factor
      if length > low:
        f = f / o.rope_factor
      elif length > high:
        smooth = (o.rope_original / length - o.rope_low_factor) / (
          o.rope_high_factor - o.rope_low_factor
        )
        f = (1 - smooth) * f / o.rope_factor + smooth * f
    found.append(f)
  return np.array(found)


def turned(x, o):
  """x [t, 2 half], each pair of row t turned as a complex number."""
  half = x.shape[1] // 2
  place = np.arange(len(x))[:, None]
  z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * place * frequency(o, half))
  return np.concatenate([z.real, z.imag], axis=1)


def oracle(layer, options, x, heads=HEADS):
  """The layer on one document x [t, width]."""
  p = {
    '/'.join(path).removesuffix('/kernel'): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))
  }
  kv_heads = options.num_kv_heads or heads
  d = options.head_dim or WIDTH // heads
  if kv_heads == heads:
    q, k, v = np.moveaxis((x @ p['qkv']).reshape(len(x), heads, 3, d), 2, 0)
  else:
    q = (x @ p['query']).reshape(len(x), heads, d)
    kv = (x @ p['key_value']).reshape(len(x), kv_heads, 2, d)
    k, v = kv[:, :, 0], kv[:, :, 1]
  first = [max(t - options.max_context, 0) for t in range(len(x))]
  ys = []
  for h in range(heads):
    of = h // (heads // kv_heads)
    query, key = turned(q[:, h], options), turned(k[:, of], options)
    always = None
    if options.num_persistent:
      always = p['persistent/k'][of], p['persistent/v'][of]
    ys.append(softmax_reads(query, key, v[:, of], first, always))
  return np.concatenate(ys, axis=1) @ p['output']


@pytest.fixture(params=[256, 4])
def block(request, monkeypatch):
  """A sequence in one block, and in six with a remainder."""
  monkeypatch.setattr(blockwise, 'MAX_BLOCK', request.param)


@pytest.mark.parametrize('name', OPTIONS)
def test_the_layer_is_the_oracle(name, block, x64):
  """Documents in a row, and a second piece that reads the first one's keys."""
  options = OPTIONS[name]
  layer, x = build(options), inputs(2, LENGTH, WIDTH, np.float64)
  starts = np.zeros((2, LENGTH), bool)
  starts[:, 0] = starts[0, 13] = True
  graph, params = nnx.split(layer)
  run = jit(lambda *args: nnx.merge(graph, params)(*args))
  whole, _ = run(x, None, starts)
  here, state = run(x[:, :8], None, starts[:, :8])
  later, _ = run(x[:, 8:], state, starts[:, 8:])
  for y in (whole, jnp.concatenate([here, later], axis=1)):
    for row, first, last in ((0, 0, 13), (0, 13, LENGTH), (1, 0, LENGTH)):
      expected = oracle(layer, options, np.asarray(x[row, first:last]))
      assert relative(y[row, first:last], expected) <= BAR


@pytest.mark.parametrize('reach', [3, 9])
def test_gradients_are_the_oracles(reach, block, x64):
  """Of queries, keys, values and those always seen; two heads share keys."""
  t, s = 9, 11
  rng = np.random.default_rng(0)
  many, few, shared = (1, t, 2, 4), (1, s, 1, 4), (1, 3, 4)
  q, k, v, more_k, more_v, probe = map(
    rng.standard_normal, (many, few, few, shared, shared, many)
  )
  first = np.maximum(np.arange(s - t, s) - reach, 0)
  first[6:] = np.maximum(first[6:], 7)  # a document starts

  def loss(q, k, v, *always):
    y = blockwise.attend(q, k, v, jnp.asarray(first), reach, always)
    return jnp.sum(probe * y)

  def expected(q, k, v, *always):
    total, always = 0, [x[0] for x in always]
    for h in range(2):
      queries = np.concatenate([np.zeros((s - t, 4)), q[0, :, h]])
      seen = [0] * (s - t) + list(first)
      y = softmax_reads(queries, k[0, :, 0], v[0, :, 0], seen, always)[s - t :]
      total = total + np.sum(probe[0, :, h] * y)
    return total

  args = [q, k, v, more_k, more_v]
  gradients = jit(jax.grad(loss, range(5)))(*args)
  for i, gradient in enumerate(gradients):
    along = lambda z, i=i: expected(*args[:i], z, *args[i + 1 :])
    assert relative(gradient, reference.complex_step(along, args[i])) <= BAR


def test_bfloat16_in_blocks(monkeypatch):
  monkeypatch.setattr(blockwise, 'MAX_BLOCK', 4)
  rng = np.random.default_rng(0)
  q, k, v, probe = rng.standard_normal((4, 2, LENGTH, 2, 8)).astype(np.float32)
  first = jnp.maximum(jnp.arange(LENGTH) - 6, 0)

  def run(dtype):
    def loss(q, k, v):
      y = blockwise.attend(q, k, v, first, 6)
      assert y.dtype == dtype
      return jnp.sum(probe * y), y

    typed = (jnp.asarray(z, dtype) for z in (q, k, v))
    return jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*typed)

  results, expected = map(
    jax.tree.leaves, (run(jnp.bfloat16), run(jnp.float32))
  )
  for a, e in zip(results, expected, strict=True):
    assert a.dtype == jnp.bfloat16
    assert np.linalg.norm(a.astype(np.float32) - e) <= 0.02 * np.linalg.norm(e)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_window(value, monkeypatch):
  monkeypatch.setattr(blockwise, 'MAX_BLOCK', 4)
  run, x = call(build(OPTIONS['window'], jnp.float32)), inputs(2, LENGTH, WIDTH)
  expected, _ = run(x, None)
  y, _ = run(x.at[0, 9, 3].set(value), None)
  np.testing.assert_array_equal(y[1], expected[1])
  np.testing.assert_array_equal(y[0, :9], expected[0, :9])
  assert np.isnan(y[0, 9:15]).all()
  np.testing.assert_array_equal(y[0, 15:], expected[0, 15:])


# -------------------------------------------------------------------- its cost


def gradients(options, tokens):
  """(function, its argument) of a step of a layer in float32."""
  module = CausalAttention(WIDTH, 1, options, rngs=nnx.Rngs(0))
  function = jax.grad(lambda x: jnp.sum(module(x)[0] ** 2))
  return function, jax.ShapeDtypeStruct((1, tokens, WIDTH), jnp.float32)


def test_memory_grows_with_the_length_alone():
  def scratch(tokens):
    function, x = gradients(AttentionOptions(tokens), tokens)
    program = jit(function).lower(x).compile()
    return program.memory_analysis().temp_size_in_bytes

  # The scores of 4,096 tokens would be 64 MiB.
  assert scratch(4096) <= 4 * scratch(1024)
  assert scratch(4096) <= 2**23


def operations(options, tokens):
  function, x = gradients(options, tokens)
  linear = 6 * 4 * WIDTH * WIDTH * tokens  # of the projections
  return matmul_flops(jax.make_jaxpr(function)(x).jaxpr) - linear


def test_a_window_costs_time_linear_in_the_length():
  costs = [operations(AttentionOptions(256), t) for t in (2048, 4096)]
  assert costs[1] <= 2.1 * costs[0]
  # Seven products: two of the forward pass, five of the backward pass.
  assert costs[0] <= 7 * 2 * WIDTH * 2048 * 512


def test_a_causal_sequence_costs_half_of_the_square():
  cost = operations(AttentionOptions(4096), 4096)
  assert cost <= 0.54 * 7 * 2 * WIDTH * 4096**2


# ---------------------------------------------------------------- long streams


@pytest.mark.parametrize('piece', [1, 30])
def test_a_stream_goes_on_for_ten_million_tokens(piece):
  window = 10
  layer = build(AttentionOptions(window, head_dim=64), jnp.float32)
  run, x = call(layer), inputs(2, 30, WIDTH)

  def stream(position):
    state = layer.init_state(2)._replace(position=jnp.int32(position))
    ys = []
    for i in range(0, 30, piece):
      y, state = run(x[:, i : i + piece], state)
      ys.append(y)
    return jnp.concatenate(ys, axis=1)[:, window:]  # whose windows are full

  assert relative(stream(10_000_000), stream(0)) <= 1e-5


@pytest.mark.parametrize('position', [0, 1_234_567, 10_000_000, 2**31 - 101])
@pytest.mark.parametrize(
  ('dtype', 'bar'), [('float32', 1e-6), ('float64', 1e-14)]
)
def test_angles_between_places_are_exact_anywhere(position, dtype, bar):
  frequencies = rotary.frequencies(32, 5e5)
  with jax.enable_x64(dtype == 'float64'):
    x = jnp.asarray(
      np.random.default_rng(0).standard_normal((1, 1, 1, 64)), dtype
    )
    places = jnp.int32(position) + jnp.arange(0, 101, 10, dtype=jnp.int32)
    rotate = functools.partial(rotary.rotate, frequency=frequencies)
    z = rotate(jnp.broadcast_to(x, (1, 11, 1, 64)), places)[0, :, 0]
    z = np.asarray(z, np.float64)
  z = z[:, :32] + 1j * z[:, 32:]
  angles = np.arange(0, 101, 10)[:, None] * frequencies
  expected = np.abs(z[0]) ** 2 * np.exp(1j * angles)
  assert np.abs(z * z[0].conj() - expected).max() <= bar * np.abs(z).max() ** 2
