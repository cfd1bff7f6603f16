"""Titans' memory with attention (MAL, MAG, MAC) in NumPy, token by token."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import BAR, call, inputs, randomize, relative
import mixers_attention_test as attention
import mixers_titans_alone_test as alone
from mixers_titans_alone_test import sigmoid, unit
import numpy as np
import pytest
import reference

from hope.mixers import MIXERS
from hope.mixers.attention import AttentionOptions
from hope.parts import Sizes

WIDTH, HEADS, LENGTH, CHUNK = 8, 2, 9, 4
SIZES = Sizes(
  width=WIDTH, num_heads=HEADS, seq_len=12, dtype=jnp.float64, kernel='xla'
)


def normed(x, scale):
  return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def gate(p, y, read):
  """o = y (x) M."""
  read = reference.silu(normed(read, p['memory_norm/scale']))
  return normed(y, p['attention_norm/scale']) * read


def as_layer(layer, options, x):
  read, _ = alone.oracle(layer.memory, x, 'l2', options.chunk_size)
  read = normed(read, alone.parameters(layer)['memory_norm/scale'])
  return attention.oracle(layer.attention, window(options), read, HEADS)


def gated(layer, options, x):
  read, _ = alone.oracle(layer.memory, x, 'l2', options.chunk_size)
  y = attention.oracle(layer.attention, window(options), x, HEADS)
  return gate(alone.parameters(layer), y, read)


def window(options):
  return AttentionOptions(
    options.max_context, num_persistent=options.num_persistent
  )


def turned(x, place):
  """x [d], rotated by its place."""
  half = len(x) // 2
  angles = place * 1e4 ** (-np.arange(half) / half)
  z = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
  return np.concatenate([z.real, z.imag])


def as_context(layer, options, x):
  p = alone.parameters(layer)
  d = WIDTH // HEADS
  mixed = (x @ p['mix/kernel']).reshape(len(x), HEADS, 4, d)
  heads = [of_head(p, n, mixed[:, n], options) for n in range(HEADS)]
  return np.concatenate(heads, axis=1) @ p['output/kernel']


def of_head(p, n, mixed, options):
  """The gated outputs of one head, [t, d]."""
  d = mixed.shape[-1]
  now = [p['memory/up'][n], p['memory/down'][n]]
  surprise = [np.zeros_like(x) for x in now]
  layers = sigmoid(p['memory_rate'][:, n])
  gated = []
  for t, (q_memory, q, k, v) in enumerate(mixed):
    place = t % options.chunk_size
    if place == 0:
      start, keys, values = now, [], []
      if options.num_persistent:
        keys = list(p['persistent/k'][n])
        values = list(p['persistent/v'][n])
    h = alone.read(start, unit(reference.silu(q_memory)))
    h_k, h_v = np.split(d**0.5 * unit(h) @ p['context'][n], 2)
    keys += [turned(h_k, place), turned(k, place)]
    values += [h_v, v]
    weights = np.exp(np.stack(keys) @ turned(q, place) / d**0.5)
    y = weights @ np.stack(values) / weights.sum()
    k, v, q = map(unit, np.split(reference.silu(y @ p['write'][n]), 3))
    eta, alpha, beta = sigmoid(y @ p['gates'][n] + p['gate_bias'][n, 0])
    beta *= 0.95
    eta *= layers * (1 - beta) / options.chunk_size
    now, surprise = alone.write(
      start, now, surprise, k, v, (eta, alpha, beta), 'l2'
    )
    gated.append(gate(p, y, alone.read(now, q)))
  return np.stack(gated)


ORACLES = {'mal': as_layer, 'mag': gated, 'mac': as_context}
NARROW = {'mal': {'max_context': 3}, 'mag': {'max_context': 3}, 'mac': {}}


@pytest.mark.parametrize('chunk', [1, CHUNK])
@pytest.mark.parametrize('name', ORACLES)
def test_it_is_the_published_recurrence(name, chunk, x64):
  part = MIXERS[name]
  options = part.options(chunk_size=chunk, num_persistent=3, **NARROW[name])
  layer = part.build(SIZES, options, rngs=nnx.Rngs(0))
  layer = randomize(layer, jnp.float64)
  x = inputs(2, LENGTH, WIDTH, np.float64)
  y, _ = call(layer)(x, None)
  for row in range(2):
    expected = ORACLES[name](layer, options, np.asarray(x[row]))
    assert relative(y[row], expected) <= BAR


def test_a_segment_that_has_ended_is_not_held(x64):
  part = MIXERS['mac']
  layer = part.build(SIZES, part.options(chunk_size=CHUNK), rngs=nnx.Rngs(0))
  run, x = call(layer), inputs(2, CHUNK + 1, WIDTH, np.float64)
  state, held = layer.init_state(2), []
  for t in range(CHUNK + 1):
    _, state = run(x[:, t : t + 1], state)
    held.append(np.count_nonzero(state.segment.k[..., 0].any((0, 1, 2))))
  assert held == [1, 2, 3, 0, 1]


@pytest.mark.parametrize('name', ORACLES)
def test_blocks_are_of_the_usual_size(name):
  """12.5 width^2 with the feed-forward beside, but for what is of heads."""
  part = MIXERS[name]
  sizes = dataclasses.replace(SIZES, width=1024, num_heads=64)
  module = nnx.eval_shape(
    lambda: part.build(sizes, part.options(), rngs=nnx.Rngs(0))
  )
  leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
  count = sum(leaf.size for leaf in leaves) / 1024**2
  count += 8 * part.hidden_multiple(part.options())
  assert 12.5 < count < 12.5 * 1.05


def test_what_mac_cannot_run_is_refused():
  part = MIXERS['mac']
  part.check(SIZES, part.options())
  with pytest.raises(ValueError, match=r"has no form of mac.*kernel='xla'"):
    part.check(dataclasses.replace(SIZES, kernel='pallas'), part.options())
  with pytest.raises(ValueError, match='must be even'):
    part.check(dataclasses.replace(SIZES, width=10), part.options())


@pytest.mark.parametrize('name', ['mal', 'mag'])
def test_what_mal_and_mag_cannot_run_is_refused(name):
  part = MIXERS[name]
  sizes = dataclasses.replace(SIZES, kernel='pallas', seq_len=64)
  part.check(sizes, part.options())
  with pytest.raises(ValueError, match='have blocks of 5'):
    part.check(sizes, part.options(chunk_size=5))
  with pytest.raises(ValueError, match='must be even'):
    part.check(dataclasses.replace(SIZES, width=10), part.options())
