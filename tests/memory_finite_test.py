"""A token that is not finite spoils itself and what comes after it, no more."""

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import FROZEN, call, inputs, jit, titans
import numpy as np
import pytest

from hope.feedforward.cms import CMSOptions, ContinuumMemory
from hope.mixers.attention import AttentionOptions, CausalAttention

WIDTH, TOKENS, BAD = 8, 21, 13


def in_context():
  return ContinuumMemory(
    WIDTH,
    CMSOptions(mode='in_context', periods=(8, 16), hidden_multiple=1.0),
    rngs=nnx.Rngs(0),
  )


LAYERS = {
  'titans': lambda: titans(chunk_size=16, projection_chunk_size=8),
  'frozen': lambda: titans(chunk_size=8, projection_chunk_size=16, **FROZEN),
  'no momentum': lambda: titans(
    chunk_size=8,
    projection_chunk_size=16,
    momentum=False,
    anchor='zero',
    **FROZEN,
  ),
  'one chunk': lambda: titans(
    chunk_size=64, projection_chunk_size=64, **FROZEN
  ),
  'delta': lambda: titans(
    chunk_size=16,
    projection_chunk_size=8,
    objective='delta',
    step='relative',
    target='mixed',
    output_gate=True,
  ),
  'in context': in_context,
  'attention': lambda: CausalAttention(
    WIDTH, 2, AttentionOptions(64), rngs=nnx.Rngs(0)
  ),
}


@pytest.mark.parametrize(
  'value', [jnp.nan, pytest.param(jnp.inf, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('name', LAYERS)
def test_earlier_tokens_and_other_rows_are_untouched(name, value):
  run, x = call(LAYERS[name]()), inputs(2, TOKENS, WIDTH)
  bad = x.at[0, BAD, 3].set(value)
  expected, _ = run(x, None)
  y, state = run(bad, None)
  np.testing.assert_array_equal(y[0, :BAD], expected[0, :BAD])
  np.testing.assert_array_equal(y[1], expected[1])
  assert not jnp.isfinite(y[0, BAD:]).all(axis=-1).any()
  # The state remembers.
  y, _ = run(x, state)
  assert not jnp.isfinite(y[0]).all(axis=-1).any()
  assert jnp.isfinite(y[1]).all()


def test_a_kernel_for_tpus_too():
  layer = titans(chunk_size=8, projection_chunk_size=8, kernel='pallas')
  run, x = call(layer, jit=jax.jit), inputs(1, 16, WIDTH)
  y, _ = run(x.at[0, 5].set(jnp.nan), None)
  expected, _ = run(x, None)
  np.testing.assert_array_equal(y[0, :5], expected[0, :5])
  assert jnp.isnan(y[0, 5:]).all()


@pytest.mark.parametrize('name', LAYERS)
def test_the_next_document_is_untouched(name):
  graph, params = nnx.split(LAYERS[name]())
  run = jit(lambda x, starts: nnx.merge(graph, params)(x, None, starts)[0])
  x, start = inputs(2, 32, WIDTH), 16
  starts = jnp.zeros((2, 32), bool).at[:, 0].set(True).at[0, start].set(True)
  expected, y = run(x, starts), run(x.at[0, BAD].set(jnp.nan), starts)
  np.testing.assert_array_equal(y[0, :BAD], expected[0, :BAD])
  np.testing.assert_array_equal(y[0, start:], expected[0, start:])
  assert not jnp.isfinite(y[0, BAD:start]).all(axis=-1).any()
