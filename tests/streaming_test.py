"""Any pieces of a stream are the whole, and nothing sees the future."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import (
  FROZEN,
  STREAM_BAR,
  assert_same,
  call,
  embedding_sensitivity,
  inputs,
  jit,
  model_module,
  randomize,
  relative,
  titans,
)
import numpy as np
import pytest

from hope.feedforward.cms import CMSOptions, ContinuumMemory
from hope.memory import rule, stream
from hope.mixers.attention import AttentionOptions, CausalAttention

# ------------------------------------------------------------------- streaming


def titans_module(**options):
  options = {'chunk_size': 8, 'projection_chunk_size': 4} | options
  return titans(**options)


def cms_module(variant, **options):
  return randomize(
    ContinuumMemory(
      8,
      CMSOptions('in_context', variant, (2, 8), hidden_multiple=1.0, **options),
      rngs=nnx.Rngs(0),
    ),
    jnp.float32,
  )


def attention_module(max_context=32):
  return CausalAttention(8, 2, AttentionOptions(max_context), rngs=nnx.Rngs(0))


MODULES = {
  'titans': titans_module,
  'titans_zero': functools.partial(
    titans_module,
    chunk_size=4,
    projection_chunk_size=8,
    anchor='zero',
    read='chunk',
    q_memory=True,
    momentum=False,
    **FROZEN,
  ),
  'titans_static': functools.partial(
    titans_module,
    self_modifying=False,
    mix='none',
    hidden_multiple=0,
    **FROZEN,
  ),
  'titans_after': functools.partial(
    titans_module, momentum=True, target='mixed', read='after'
  ),
  'cms_sequential': functools.partial(cms_module, 'sequential'),
  'cms_independent': functools.partial(cms_module, 'independent'),
  'attention': functools.partial(attention_module, 5),
  'model': model_module,
}
SLOW = ('titans_after', 'titans_zero')
# Of 24 tokens, at chunks of 4 and 8: each token by itself, long pieces that
# begin and end within chunks, one that begins between chunks. Few lengths, for
# each is compiled.
SPLITS = (
  [1] * 24,
  [1] * 5 + [9, 9, 1],
  [1] * 8 + [9] + [1] * 7,
  [9, 9] + [1] * 6,
)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in MODULES
  ],
)
def test_pieces_are_the_whole(name):
  module = MODULES[name]()
  if name.startswith('model'):
    x = jax.random.randint(jax.random.key(3), (2, 24), 0, 64)
  else:
    x = inputs(2, 24, 8)
  run = call(module)
  y, state = run(x, None)
  for split in SPLITS:
    assert sum(split) == 24
    pieces, piece_state, done = [], module.init_state(2), 0
    for size in split:
      piece, piece_state = run(x[:, done : done + size], piece_state)
      pieces.append(piece)
      done += size
    assert relative(jnp.concatenate(pieces, axis=1), y) <= STREAM_BAR
    assert_same(piece_state, state, STREAM_BAR)


@pytest.mark.slow
@pytest.mark.parametrize(
  'options', [FROZEN, {'objective': 'delta', 'projection_target': 'slow'}]
)
def test_blocks_smaller_than_their_chunk(options, monkeypatch):
  """A chunk of 128 in blocks of 64, 32 and 128, whole and in pieces."""
  layer = titans(chunk_size=128, projection_chunk_size=128, **options)
  x = inputs(1, 200, 8)
  assert stream.block_size(128) == 64
  results = []
  for block in (64, 32, 128):
    monkeypatch.setattr(stream, 'MAX_BLOCK', block)
    results.append(call(layer)(x, None))
  for result in results[1:]:
    assert_same(result, results[0], STREAM_BAR)
  monkeypatch.setattr(stream, 'MAX_BLOCK', 64)
  run = call(layer)
  first, state = run(x[:, :100], None)
  second, state = run(x[:, 100:], state)
  joined = jnp.concatenate([first, second], axis=1)
  assert_same((joined, state), results[0], STREAM_BAR)


@pytest.mark.slow
@pytest.mark.parametrize('trace', [False, True])
def test_chunks_of_one_are_the_chunk_form(trace, x64, monkeypatch):
  """Without tables, in groups of tokens: values, states and gradients."""
  layer = titans(
    chunk_size=1,
    projection_chunk_size=1,
    objective='delta' if trace else 'l2',
    read='after' if trace else 'token',
    dtype=jnp.float64,
  )
  x = inputs(2, 70, 8, np.float64)
  starts = jnp.zeros((2, 70), bool).at[0, 40].set(True) if trace else None
  graph, params = nnx.split(layer)

  def run():
    @jax.jit
    def compute(params, x):
      def loss(params, x):
        y, state = nnx.merge(graph, params)(x, None, starts)
        return jnp.sum(y**2), (y, state)

      return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    return compute(params, x)

  expected = run()  # in groups of 32, and a rest
  for group in (100, 4) if trace else (100,):  # 100: every state is saved
    monkeypatch.setattr(stream, '_GROUP', group)
    assert_same(run(), expected, 1e-12)
  monkeypatch.setattr(rule, 'TOKEN', rule.XLA)
  assert_same(run(), expected, 1e-10)


# ------------------------------------------------------------------- causality


def sensitivity(function, x):
  """[t, b, t]: whether the output at t of the first sequence sees an input."""
  y, vjp = jax.vjp(function, x)
  tokens = y.shape[1]
  seeds = jnp.zeros((tokens, *y.shape))
  seeds = seeds.at[jnp.arange(tokens), 0, jnp.arange(tokens)].set(1.0)
  (gradients,) = jax.vmap(vjp)(seeds)
  return jnp.max(jnp.abs(gradients), axis=-1)


def assert_causal(seen):
  tokens = seen.shape[0]
  seen = np.asarray(seen)
  assert np.isfinite(seen).all()
  np.testing.assert_array_equal(seen[:, 1:], 0)
  later = np.triu(np.ones((tokens, tokens), bool), 1)
  np.testing.assert_array_equal(seen[:, 0][later], 0)
  assert (np.diag(seen[:, 0]) > 0).all()


@pytest.mark.parametrize(
  'name',
  [
    'titans',
    pytest.param('titans_zero', marks=pytest.mark.slow),
    'cms_independent',
  ],
)
def test_no_gradient_from_later_tokens(name):
  module = MODULES[name]()
  function = lambda x: module(x)[0]
  seen = jit(functools.partial(sensitivity, function))(inputs(2, 18, 8))
  assert_causal(seen)
  # Blocks of the CMS read at the start of their chunk, here of two tokens.
  assert (seen[-1, 0, :16] > 0).all()


def test_no_gradient_from_later_tokens_of_attention():
  module = attention_module(5)
  function = lambda x: module(x)[0]
  seen = jit(functools.partial(sensitivity, function))(inputs(2, 18, 8))
  assert_causal(seen)
  # It sees itself and the five tokens before it.
  np.testing.assert_array_equal(seen[-1, 0] > 0, np.arange(18) >= 12)


@pytest.mark.slow
def test_no_gradient_from_later_tokens_of_the_model():
  model = model_module()
  tokens = jnp.arange(36).reshape(2, 18)
  function, rows = embedding_sensitivity(model, tokens)
  seen = jit(lambda rows: sensitivity(lambda r: function(r)[..., None], rows))(
    rows
  )
  assert_causal(seen.reshape(18, 2, 18))
