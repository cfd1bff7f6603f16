"""Likelihood of texts, against token by token sums of a whole forward pass."""

import functools
import json
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hope
from hope import fast_state
from hope.data.tokenization import BpeTokenizer, ByteTokenizer, NumberTokenizer
from hope.evaluation import language_model, likelihood
from hope.evaluation.language_model import LanguageModel
from hope.mixers import MIXERS
from hope.tasks import ChoiceExample, Request
from hope.training.step import build_model

WORDS = 'the memory learns slowly and the kernel forgets what it read '
# Pieces of a stream are the whole, up to rounding; sums of up to 40 tokens.
BAR = 1e-3


def tiny_model(mixer='delta', tokenizer=None, seed=0):
  """A byte model whose predictions are far from even."""
  tokenizer = tokenizer or ByteTokenizer()
  config = hope.base_config()
  config.model.pattern = f'{mixer}+cms'
  config.model.attention.max_context = 4096
  config.model.num_layers, config.model.width = 1, 16
  config.model.num_heads, config.seed = 1, seed
  config.model.tied_head, config.model.logit_scale = False, 3.0
  config.model.cms.periods = (1, 3)
  titans = config.model.titans
  titans.chunk_size = titans.projection_chunk_size = 8
  config = hope.resolve(config, tokenizer.vocab_size)
  return LanguageModel(*build_model(config), tokenizer)


@pytest.fixture(scope='module')
def model():
  """The model of most tests."""
  return tiny_model()


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
  """Rows of these tests have several pieces."""
  for module in (fast_state, likelihood):
    monkeypatch.setattr(module, 'PIECE', 16)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(graph, params, tokens):
  """[b, t, v], of one pass."""
  return nnx.merge(graph, params)(tokens)[0]


def by_hand(model, context: bytes, continuation: bytes):
  """(log-probability, greedy), from the logits of one pass, in float64."""
  tokens = [*context, *continuation] if context else [256, *continuation]
  whole = jnp.zeros((1, 72), jnp.int32).at[0, : len(tokens)].set(tokens)
  logits = np.asarray(logits_of(model.graph, model.params, whole)[0], float)
  total, greedy = 0.0, True
  for place in range(len(tokens) - len(continuation), len(tokens)):
    row, token = logits[place - 1], tokens[place]
    total += row[token] - row.max() - math.log(np.exp(row - row.max()).sum())
    greedy &= bool(row[token] == row.max())
  return total, greedy


def check(model, requests, batch=4):
  found = likelihood.log_likelihoods(model, requests, batch)
  assert len(found) == len(requests)
  for one, request in zip(found, requests, strict=True):
    context = request.context.rstrip()
    rest = (request.context + request.continuation)[len(context) :]
    total, greedy = by_hand(model, context.encode(), rest.encode())
    assert one.log_probability == pytest.approx(total, abs=BAR)
    assert one.greedy == greedy


def test_rows_of_all_lengths_are_token_by_token_sums(model):
  lengths = (1, 15, 16, 17, 31, 33, 59)
  rows = [Request(WORDS[:n].rstrip(), WORDS[n : n + 7]) for n in lengths]
  check(model, [*rows, Request(WORDS[2:9], WORDS[9:44])])


@pytest.mark.parametrize('mixer', ['attention', 'titans', 'mamba'])
@pytest.mark.slow
def test_other_mixers(mixer):
  rows = [Request(WORDS[:n], ' ' + WORDS[:5]) for n in (3, 33, 50)]
  check(tiny_model(mixer), rows)


def test_an_empty_context_is_the_separator(model):
  check(model, [Request('', 'the'), Request(' ', 'memory')])


def test_white_space_at_the_end_counts_with_the_continuation(model):
  one, two = likelihood.log_likelihoods(
    model, [Request('the memory ', 'learns'), Request('the memory', ' learns')]
  )
  assert one == two


def test_a_shared_context_is_read_once(model, monkeypatch):
  rows = [Request(WORDS[:50], f' {x}') for x in ('it', 'what', 'kernel')]
  read = []
  original = fast_state.read

  def counting(graph, params, tokens, state):
    read.append(tokens.shape)
    return original(graph, params, tokens, state)

  monkeypatch.setattr(fast_state, 'read', counting)
  check(model, rows)
  assert (1, 48) in read and all(b == 1 or t == 0 for b, t in read)


def test_the_batch_changes_nothing(model):
  rows = [Request(WORDS[:n], WORDS[n : n + 5]) for n in range(4, 50, 3)]
  first, *others = (
    likelihood.log_likelihoods(model, rows, batch) for batch in (1, 3)
  )
  for found in others:
    for x, y in zip(first, found, strict=True):
      assert x.log_probability == pytest.approx(y.log_probability, abs=BAR)
      assert x.greedy == y.greedy


class Latin(ByteTokenizer):
  """Each byte is a letter, so that whatever a model writes is a text."""

  def encode(self, text, *, strict=True):
    """The letters' numbers."""
    return super().encode(text.encode('latin-1'), strict=strict)


def test_what_the_model_writes_is_greedy(model):
  """The likelihood of a text agrees with decoding, and with no other text."""
  prompt = model.tokenizer.encode('the memory')[None]
  new = hope.sampling.generate(
    model.graph, model.params, prompt, 4, temperature=0.0
  )[0]
  assert new.max() < 256
  text = bytes(new.tolist()).decode('latin-1')
  other = text[:-1] + chr(ord(text[-1]) ^ 1)
  found = likelihood.log_likelihoods(
    model._replace(tokenizer=Latin()),
    [Request('the memory', text), Request('the memory', other)],
  )
  assert [x.greedy for x in found] == [True, False]


@pytest.mark.parametrize(
  'texts', [(' a', ' learns slowly', ' forgets'), (' ééé', ' learns', ' it')]
)
def test_choices_are_scored_as_defined(model, texts):
  requests = tuple(Request('the memory', x) for x in texts)
  sums = [by_hand(model, b'the memory', x.encode())[0] for x in texts]
  letters = [len(x) - 1 for x in texts]
  sizes = [len(x.encode()) - 1 for x in texts]
  best = {
    'accuracy': np.argmax(sums),
    'accuracy_norm': np.argmax(np.divide(sums, letters)),
    'accuracy_bytes': np.argmax(np.divide(sums, sizes)),
  }
  assert len(set(best.values())) > 1  # else the test says little
  for answer in range(3):
    (scores,) = likelihood.answers(model, [ChoiceExample(requests, answer)])
    assert scores == {
      **{k: float(x == answer) for k, x in best.items()},
      'chosen': texts[best['accuracy']],
      'answer': texts[answer],
    }


def test_a_single_request_gives_its_likelihood(model):
  example = ChoiceExample((Request('the memory', ' learns'),), 0)
  (scores,) = likelihood.answers(model, [example])
  total, greedy = by_hand(model, b'the memory', b' learns')
  assert scores['log_likelihood'] == pytest.approx(total, abs=BAR)
  assert scores['accuracy'] == float(greedy)


def test_perplexity_is_by_example():
  assert likelihood.perplexity([-1.0, -3.0]) == pytest.approx(math.exp(2))
  assert likelihood.perplexity([-1e4]) == math.inf


def test_tokens_join_over_the_boundary_as_in_the_whole():
  """'ab' is a token: after 'a', the whole has no token of the 'b' alone."""
  spec = {
    'version': '1.0',
    'added_tokens': [],
    'pre_tokenizer': None,
    'normalizer': None,
    'post_processor': None,
    'decoder': {'type': 'Fuse'},
    'model': {
      'type': 'BPE',
      'vocab': {'a': 0, 'b': 1, 'ab': 2, 'c': 3},
      'merges': [['a', 'b']],
    },
  }
  tokenizer = BpeTokenizer(json.dumps(spec))
  tokens, begin = likelihood.encode(tokenizer, Request('ca', 'bc'))
  assert (tokens.tolist(), begin) == ([3, 2, 3], 2)
  with pytest.raises(ValueError, match='no token of its own'):
    likelihood.encode(tokenizer, Request('ca', 'b'))


def test_what_cannot_be_asked_is_refused():
  with pytest.raises(ValueError, match='has no token of its own'):
    likelihood.encode(ByteTokenizer(), Request('a', ''))
  with pytest.raises(ValueError, match='no separator of documents'):
    likelihood.encode(NumberTokenizer(9), Request('', '1 2'))
  with pytest.raises(ValueError, match='reads numbers, not text'):
    language_model.check_reads_text(NumberTokenizer(9))


@pytest.mark.parametrize('mixer', MIXERS)
def test_streams_of_every_mixer_can_be_taken(mixer):
  graph, params = jax.eval_shape(lambda: tiny_model(mixer)[:2])
  one, three = (
    jax.eval_shape(lambda p, b=b: fast_state.begin(graph, p, b), params)
    for b in (1, 3)
  )
  taken = jax.eval_shape(
    lambda s: fast_state.of_rows(s, np.zeros(3, np.int32)), one
  )
  shapes = [jax.tree.map(lambda x: x.shape, s) for s in (taken, three)]
  assert shapes[0] == shapes[1]


def test_streams_are_taken_with_what_they_have_read(model):
  texts = (WORDS[:21], WORDS[9:30])
  tokens = np.stack([model.tokenizer.encode(x) for x in texts])
  state = fast_state.begin(model.graph, model.params, 2)
  both = fast_state.read(model.graph, model.params, tokens, state)
  again = fast_state.of_rows(both, np.array([1, 0, 1]))
  np.testing.assert_array_equal(again.logits, both.logits[jnp.array([1, 0, 1])])

  def check_rows(x, y):
    expected = x if x.ndim == 1 else np.asarray(x)[:, [1, 0, 1]]
    np.testing.assert_array_equal(expected, y)

  jax.tree.map(check_rows, both.memories, again.memories)
