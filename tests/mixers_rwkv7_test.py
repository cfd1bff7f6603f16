"""The layer of hope.mixers.rwkv7 against RWKV-7 in NumPy, token by token."""

import dataclasses

from flax import nnx
import jax.numpy as jnp
from layer_cases import (
  BAR,
  STREAM_BAR,
  assert_gradients_are_differences,
  call,
  inputs,
  jit,
  randomize,
  relative,
)
import numpy as np
import pytest
import reference

from hope.mixers.rwkv7 import PART, RWKV7, RWKV7Options
from hope.parts import InnerLosses, Sizes

WIDTH, HEADS, LENGTH = 12, 3, 21
SIZES = Sizes(
  width=WIDTH, num_heads=HEADS, seq_len=LENGTH, dtype=jnp.float64, kernel='xla'
)


# Of `test_public_code_gives_the_same`.
PUBLIC = (
  *(-0.8162573222759, -0.3380757898653, -1.078909755353, 0.6912377414547),
  *(-0.6947369082188, -1.065071843116, -0.2833440929117, 0.6071470019636),
  *(3.884431518186, -2.107835603881, 0.1253398006673, -6.365188347396),
  *(5.946250974395, -0.3090284620633, 0.07721693822048, 8.056452729813),
)


def build(dtype=jnp.float64, **options):
  options = {'chunk_size': 4, 'decay_rank': 5, 'gate_rank': 3} | options
  sizes = dataclasses.replace(SIZES, dtype=dtype)
  return RWKV7(sizes, RWKV7Options(**options), rngs=nnx.Rngs(0))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def rates(x, before, p):
  """r, w, k, v, a, g of a token, [width] each, from its input and the last."""
  r, w, k, v, a, g = (x + (before - x) * mu for mu in p['shift'])
  d = p['decay_bias'] + (
    np.tanh(w @ p['decay/down/kernel']) @ p['decay/up/kernel']
  )
  a = p['rate_bias'] + a @ p['rate/down/kernel'] @ p['rate/up/kernel']
  return (
    r @ p['receptance/kernel'],
    np.exp(-np.exp(-0.5) * sigmoid(d)),
    k @ p['key/kernel'],
    v @ p['value/kernel'],
    sigmoid(a),
    sigmoid(g @ p['gate/down/kernel']) @ p['gate/up/kernel'],
  )


def oracle(layer, x):
  """Of x [t, width]: outputs, last S^T by head, and the mean inner loss."""
  p = {
    '/'.join(map(str, path)): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))
  }
  d = WIDTH // HEADS
  states = np.zeros((HEADS, d, d))
  before, ys, losses = np.zeros(WIDTH), [], []
  for token in x:
    r, w, k, v, a, g = rates(token, before, p)
    before = token
    y, loss = np.zeros(WIDTH), 0.0
    for head in range(HEADS):
      at = slice(head * d, (head + 1) * d)
      removed = k[at] * p['key_scale'][at]
      removed = removed / np.linalg.norm(removed)
      # lerp(1, a, alpha)
      key = k[at] * (1 - p['key_rate'][at] + p['key_rate'][at] * a[at])
      loss += 0.5 * np.sum((states[head] @ removed - v[at]) ** 2) / HEADS
      states[head] = reference.rwkv7(
        states[head],
        w[None, at],
        removed[None],
        a[None, at],
        key[None],
        v[None, at],
      )[-1]
      read = states[head] @ r[at]
      read = (read - read.mean()) / np.sqrt(read.var() + 64e-5)
      read = read * p['norm_scale'][at] + p['norm_bias'][at]
      y[at] = read + np.sum(r[at] * p['bonus'][at] * key) * v[at]
    ys.append((y * g) @ p['output/kernel'])
    losses.append(loss)
  return np.stack(ys), np.swapaxes(states, 1, 2), np.stack(losses)


def drawn():
  """A layer of width 8, its parameters from NumPy in the order of their names.

  They are the same with any version of jax and flax.
  """
  sizes = dataclasses.replace(SIZES, width=8, num_heads=2)
  options = RWKV7Options(chunk_size=4, decay_rank=3, rate_rank=3, gate_rank=3)
  layer = RWKV7(sizes, options, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(7)
  params = nnx.state(layer, nnx.Param)
  found = sorted(nnx.to_flat_state(params), key=lambda leaf: leaf[0])
  filled = [
    (path, leaf.replace(jnp.asarray(0.5 * rng.standard_normal(leaf.shape))))
    for path, leaf in found
  ]
  nnx.update(layer, nnx.from_flat_state(filled))
  return layer


def drawn_inputs():
  return jnp.asarray(np.random.default_rng(8).standard_normal((5, 8)))


@pytest.mark.parametrize('chunk', [1, 4, 64])
def test_it_is_the_published_layer(chunk, x64):
  layer = randomize(build(chunk_size=chunk), jnp.float64)
  x = inputs(2, LENGTH, WIDTH, np.float64)
  y, end = jit(lambda x: layer(x, None, None))(x)
  for row in range(2):
    expected, states, _ = oracle(layer, np.asarray(x[row]))
    assert relative(y[row], expected) <= BAR
    assert relative(end.memory.now[row], states) <= BAR
  np.testing.assert_array_equal(end.last, x[:, -1])


def test_its_inner_loss_is_of_the_key_that_is_removed(x64):
  layer = randomize(build(), jnp.float64)
  layer.set_attributes(measures=True)
  x = inputs(1, LENGTH, WIDTH, np.float64)

  graph, params = nnx.split(layer)

  def measured(params):
    module = nnx.merge(graph, params)
    module(x)
    return nnx.to_pure_dict(nnx.pop(module, InnerLosses))['inner_losses']

  _, _, expected = oracle(layer, np.asarray(x[0]))
  assert relative(jit(measured)(params)['memory'][0], expected) <= BAR


def test_gradients_are_finite_differences(x64):
  layer = randomize(build(), jnp.float64)
  assert_gradients_are_differences(layer, inputs(1, 9, WIDTH, np.float64))


def test_pieces_are_the_whole_in_float32():
  layer = randomize(build(jnp.float32, chunk_size=8), jnp.float32)
  x = inputs(2, 20, WIDTH)
  run = jit(lambda x, state: layer(x, state, None))
  whole, _ = run(x, layer.init_state(2))
  state, ys = layer.init_state(2), []
  for piece in (x[:, :10], x[:, 10:]):
    y, state = run(piece, state)
    ys.append(y)
  assert relative(jnp.concatenate(ys, axis=1), whole) <= STREAM_BAR


def test_bfloat16_is_near_float32():
  x, ys = inputs(2, LENGTH, WIDTH), []
  for dtype in (jnp.float32, jnp.bfloat16):
    layer = randomize(build(dtype, chunk_size=8), jnp.float32)
    y, _ = jit(lambda x, layer=layer: layer(x, None, None))(x.astype(dtype))
    ys.append(np.asarray(y, np.float32))
  exact, rounded = ys
  assert np.linalg.norm(rounded - exact) <= 0.02 * np.linalg.norm(exact)


def test_initial_values_are_those_published():
  """Of the middle layer, at a width of 128 in two heads of 64."""
  sizes = dataclasses.replace(SIZES, width=128, num_heads=2, dtype=jnp.float32)
  layer = RWKV7(sizes, RWKV7Options(), rngs=nnx.Rngs(0))
  get = lambda name: np.asarray(getattr(layer, name)[...])
  for n in (0, 40, 63, 64, 127):
    line, bend = n / 127 - 0.5, (n % 64 - 31.5) / 31.5
    bend *= abs(bend)
    decay = -6 + 6 * (n / 127) ** (1 + 0.5**0.3) + 0.5 + 2.5 * bend
    assert get('decay_bias')[n] == pytest.approx(decay, abs=1e-5)
    rate = -0.19 + 0.3 * bend + 0.4 * line
    assert get('rate_bias')[n] == pytest.approx(rate, abs=1e-6)
    assert get('key_scale')[n] == pytest.approx(0.71 - 0.1 * line, abs=1e-6)
    shifts = [1 - (n / 128) ** (p / 2) for p in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)]
    np.testing.assert_allclose(get('shift')[:, n], shifts, atol=1e-6)
  assert np.abs(layer.key.kernel[...]).max() <= 0.05 / 128**0.5
  assert 0.4 < np.abs(layer.value.kernel[...]).max() * 128**0.5 <= 0.5
  assert not layer.output.kernel[...].any()
  up = np.asarray(layer.gate.up.kernel[...])
  assert up.shape == (64, 128)
  np.testing.assert_allclose(up @ up.T, 0.01 * np.eye(64), atol=1e-6)


@pytest.mark.parametrize(
  ('width', 'ranks'),
  [(128, (32, 32, 64)), (768, (64, 64, 128)), (2048, (128, 128, 224))],
)
def test_ranks_are_published_or_given(width, ranks):
  names = ('decay', 'rate', 'gate')
  assert tuple(RWKV7Options().rank(n, width) for n in names) == ranks
  assert RWKV7Options(rate_rank=7).rank('rate', width) == 7


def test_pallas_is_refused():
  sizes = dataclasses.replace(SIZES, kernel='pallas')
  with pytest.raises(ValueError, match="pallas' has one decay.*kernel='xla'"):
    PART.check(sizes, RWKV7Options())


def test_public_code_gives_the_same(x64):
  """The last two of five outputs of the authors' NumPy code, made once.

  It is `time_mixing` of RWKV-v7/rwkv_v7_numpy.py in github.com/BlinkDL/RWKV-LM
  (Apache-2.0), as the first layer: without the values of an earlier one.
  """
  layer, x = drawn(), drawn_inputs()
  y, _ = call(layer)(x[None], None)
  assert relative(y[0, -2:], np.reshape(PUBLIC, (2, 8))) <= BAR
