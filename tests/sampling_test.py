"""Drawing tokens: what the options mean, and what they cost."""

from collections.abc import Iterator
from typing import Any

from flax import nnx
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from hope import config as config_lib
from hope import sampling
from hope.training import step as step_lib

VOCAB, LENGTH = 29, 13
PROMPT = np.arange(LENGTH, dtype=np.int32)[None] * 2


@pytest.fixture(scope='module')
def model():
  """(structure, parameters) of a small Hope-Attention."""
  config = config_lib.base_config()
  config.model.pattern = 'attention+cms'
  config.model.num_layers, config.model.width = 1, 8
  config.model.cms.periods = (1,)
  config.data.seq_len = 32
  resolved = config_lib.resolve(config, VOCAB)
  return jax.jit(lambda: step_lib.build_model(resolved))()


def generate(model, prompt=PROMPT, tokens=5, **options):
  """`sampling.generate` with that model."""
  graph, params = model
  return sampling.generate(graph, params, prompt, tokens, **options)


def draws(logits, temperature, top_k, count=20_000):
  """How often each token is drawn, as shares."""
  keys = jax.random.split(jax.random.key(0), count)
  draw = lambda key: sampling.sample(logits[None], key, temperature, top_k)[0]
  tokens = jax.jit(jax.vmap(draw))(keys)
  return np.bincount(tokens, minlength=len(logits)) / count


LOGITS = np.array([0.5, 2.0, -1.0, 1.5, 3.0, 0.0], np.float32)


@pytest.mark.parametrize('temperature', [0.7, 1.0, 3.0, 1e38])
@pytest.mark.parametrize('top_k', [0, 1, 3, 6, 10**9])
def test_shares_are_those_of_the_softmax(temperature, top_k):
  logits = LOGITS.astype(np.float64) / temperature
  ranks = np.argsort(np.argsort(-logits))
  p = np.exp(logits - logits.max()) * (ranks < (top_k or len(logits)))
  p /= p.sum()
  found = draws(jnp.asarray(LOGITS), temperature, top_k)
  assert (found[p == 0] == 0).all()
  np.testing.assert_array_less(
    np.abs(found - p), 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-12
  )


@pytest.mark.parametrize('temperature', [0.0, 1e-45, 1e-38, 2e-38, 1e-30])
def test_a_tiny_temperature_is_greedy(temperature):
  assert draws(jnp.asarray(LOGITS), temperature, 0, 100)[4] == 1
  # Large logits over a small temperature are not finite.
  assert draws(jnp.asarray(1e20 * LOGITS), temperature, 3, 100)[4] == 1


def test_temperature_and_top_k_need_no_compilation(model):
  generate(model)
  decode: Any = sampling.decode
  before = decode._cache_size()
  for temperature, top_k in ((0.0, 0), (0.3, 40), (2, 3), (1.5, 10**6)):
    generate(model, temperature=temperature, top_k=top_k, seed=7)
  assert decode._cache_size() == before


@pytest.fixture(
  scope='module',
  params=['attention', pytest.param('titans', marks=pytest.mark.slow)],
)
def small(request):
  """(structure, parameters) of two layers with a mixer."""
  config = config_lib.base_config()
  config.model.pattern = f'{request.param}+cms'
  config.model.num_layers, config.model.width = 2, 16
  config.model.num_heads, config.data.seq_len = 2, 32
  config.model.titans.chunk_size = config.model.titans.projection_chunk_size = 8
  resolved = config_lib.resolve(config, VOCAB)
  return jax.jit(lambda: step_lib.build_model(resolved))()


def test_two_programs_serve_every_length(small, monkeypatch):
  monkeypatch.setattr(sampling, 'PIECE', 8)
  graph, params = small
  merge, traced = nnx.merge, []
  whole = jax.jit(lambda params, x: merge(graph, params)(x)[0])

  def counted(structure, *rest):
    traced.append(structure)
    return merge(structure, *rest)

  monkeypatch.setattr(nnx, 'merge', counted)
  rng = np.random.default_rng(0)
  for length, tokens in ((3, 14), (8, 1), (20, 5), (7, 9), (16, 8)):
    prompt = rng.integers(VOCAB, size=(2, length), dtype=np.int32)
    new = sampling.generate(graph, params, prompt, tokens, temperature=0.0)
    text = np.concatenate([prompt, new], axis=1)
    padded = np.pad(text, ((0, 0), (0, 25 - text.shape[1])))
    logits = whole(params, padded)[:, length - 1 : text.shape[1] - 1]
    np.testing.assert_array_equal(new, np.argmax(logits, axis=-1))
  assert sum(x is graph for x in traced) == 3  # start, prefill, decode


def test_a_longer_text_begins_as_a_shorter_one(small, monkeypatch):
  monkeypatch.setattr(sampling, 'PIECE', 8)
  long, short = (
    sampling.generate(*small, PROMPT, tokens, temperature=2.0, seed=1)
    for tokens in (21, 4)
  )
  np.testing.assert_array_equal(long[:, :4], short)
  assert len(np.unique(long)) > 5


def shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
  """Shapes of all that a program computes, inner programs included."""
  for equation in jaxpr.eqns:
    for x in equation.outvars:
      yield x.aval.shape
    for value in equation.params.values():
      for part in value if isinstance(value, tuple | list) else [value]:
        part = getattr(part, 'jaxpr', part)
        if isinstance(part, core.Jaxpr):
          yield from shapes(part)


def test_a_prompt_has_the_logits_of_its_last_place_alone(model):
  graph, params = model
  program = jax.make_jaxpr(lambda p, x: sampling.prefill(graph, p, x))
  found = set(shapes(program(params, PROMPT).jaxpr))
  assert (1, 1, VOCAB) in found  # the search finds logits
  assert not [s for s in found if LENGTH in s and VOCAB in s]
  logits, _ = sampling.prefill(graph, params, PROMPT)
  whole, _ = sampling.nnx.merge(graph, params)(PROMPT)
  np.testing.assert_allclose(logits, whole[:, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'temperature': float('nan')}, 'temperature=nan must be a finite number'),
    ({'temperature': float('inf')}, 'temperature=inf must be a finite number'),
    ({'temperature': -1.0}, 'temperature=-1.0 must not be negative'),
    ({'top_k': -1}, 'top_k=-1 must not be negative'),
    ({'top_k': 2**31}, 'top_k=2147483648 must be at most'),
    ({'seed': 2**64}, 'seed=18446744073709551616 must be at most'),
    ({'seed': -1}, 'seed=-1 must not be negative'),
    ({'tokens': 0}, 'tokens=0 must be at least 1'),
    ({'tokens': 10**12}, 'tokens=1000000000000 must be at most'),
  ],
)
def test_options_out_of_range(model, options, message):
  with pytest.raises(ValueError, match=message):
    generate(model, **options)


@pytest.mark.parametrize('token', [-1, VOCAB, 2**31 - 1])
def test_a_token_outside_the_vocabulary(model, token):
  prompt = PROMPT.copy()
  prompt[0, 3] = token
  with pytest.raises(ValueError, match=f'token {token}, .* of {VOCAB}; give'):
    generate(model, prompt)


def test_an_empty_prompt(model):
  with pytest.raises(ValueError, match='is empty'):
    generate(model, PROMPT[:, :0])
