"""Greedy outputs after streamed prompts, against one pass for each token."""

from evaluation_likelihood_test import logits_of, tiny_model
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hope import fast_state
from hope.data import streaming
from hope.data.tokenization import BpeTokenizer, ByteTokenizer, NumberTokenizer
from hope.evaluation import generation
from hope.evaluation.generation import Ending, Keeper
from hope.tasks import TextExample

WORDS = 'the memory learns slowly and the kernel forgets what it read '
# GPT-4's expression: numbers of at most three digits, lines, contractions.
CL100K = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


@pytest.fixture(scope='module')
def model():
  """A byte model."""
  return tiny_model()


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
  """Prompts of these tests have several pieces, outputs several blocks."""
  for module in (fast_state, generation):
    monkeypatch.setattr(module, 'PIECE', 16)
  monkeypatch.setattr(generation, 'BLOCK', 5)


def example(text):
  """An example whose prompt comes in pieces of seven letters."""
  pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
  return TextExample(lambda: iter(pieces), '', (), ())


def by_hand(model, prompt, count):
  """The most likely tokens after a prompt, each from a pass over all."""
  tokens = list(prompt.encode())
  start = len(tokens)
  for _ in range(count):
    row = jnp.zeros((1, 80), jnp.int32).at[0, : len(tokens)].set(tokens)
    logits = logits_of(model.graph, model.params, row)[0, len(tokens) - 1]
    tokens.append(int(np.argmax(logits)))
  return tokens[start:]


def outputs(model, prompts, ending, batch=4):
  """Outputs in the order of the prompts."""
  examples = [example(x) for x in prompts]
  found = {}
  for group in generation.side_by_side(model.tokenizer, examples, batch):
    texts = generation.write(model, [examples[i] for i in group], ending, batch)
    found |= dict(zip(group, texts, strict=True))
  return [found[i] for i in range(len(prompts))]


def test_outputs_are_the_most_likely_tokens(model):
  prompts = [WORDS[:n] for n in (1, 5, 15, 16, 17, 18, 30, 40, 41, 59)]
  prompts.append(WORDS[7:33])
  found = outputs(model, prompts, Ending(12, ()))
  for prompt, output in zip(prompts, found, strict=True):
    expected = model.tokenizer.decode(by_hand(model, prompt, 12))
    assert output == expected, prompt
  assert found[2:4] == [
    outputs(model, [x], Ending(12, ()), 1)[0] for x in prompts[2:4]
  ]


class Scripted(ByteTokenizer):
  """Decodes tokens to letters in turn, so that a test knows an output."""

  def __init__(self, text):
    self.text = text

  def decode(self, ids):
    """The first letters."""
    return self.text[: len(list(ids))]


@pytest.mark.parametrize(
  ('text', 'stop', 'output'),
  [
    ('a garden. He', ('.', '!'), 'a garden'),
    ('a garden! He.', ('.', '!'), 'a garden'),
    ('a ~~ b ~~ c', ('~~',), 'a '),
    ('.', ('.',), ''),
    ('abcdefghijklmnop', ('p',), 'abcdefghijkl'),
  ],
)
def test_the_first_stop_ends_an_output(model, text, stop, output):
  scripted = model._replace(tokenizer=Scripted(text))
  ending = Ending(12, stop)
  assert outputs(scripted, [WORDS[:20]], ending) == [output]


def test_the_separator_ends_an_output(model):
  tokens = by_hand(model, WORDS[:20], 8)
  end = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])

  class Ends(ByteTokenizer):
    document_separator = tokens[end]

  found = outputs(model._replace(tokenizer=Ends()), [WORDS[:20]], Ending(8, ()))
  assert found == [model.tokenizer.decode(tokens[:end])]


def test_reading_stops_early_where_all_outputs_have_ended(model, monkeypatch):
  calls = []
  original = generation._feed

  def counting(*args):
    calls.append(args)
    return original(*args)

  monkeypatch.setattr(generation, '_feed', counting)
  scripted = model._replace(tokenizer=Scripted('a. ' * 99))
  outputs(scripted, [WORDS[:32]], Ending(90, ('.',)))
  assert len(calls) == 1


def test_a_kept_reading_goes_on(model):
  text, ending = WORDS[:55], Ending(6, ())
  kept = []

  def save(state, pieces):
    kept.append((fast_state.copied(state), pieces))

  first = generation.write(
    model, [example(text)], ending, keeper=Keeper(lambda: None, save)
  )
  assert [pieces for _, pieces in kept] == [1, 2, 3]
  seen = []
  again = generation.write(
    model,
    [example(text)],
    ending,
    keeper=Keeper(lambda: kept[1], lambda state, pieces: seen.append(pieces)),
  )
  assert again == first and seen == [3]


def test_an_empty_prompt_is_refused(model):
  with pytest.raises(ValueError, match='A prompt is empty'):
    outputs(model, [''], Ending(3, ()))


# --------------------------------------------------------------------- streams


def trained(pre_tokenizer):
  """A byte-level encoding of 400 tokens."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizer
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=['</s>'],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = [WORDS, "we're they've it's 1234 12.5", 'a  b\n\n  c', 'à la garçon']
  tokenizer.train_from_iterator(texts * 9, trainer)
  return BpeTokenizer(tokenizer.to_str())


def byte_level(**options):
  return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern):
  import tokenizers

  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
      byte_level(use_regex=False),
    ]
  )


STREAMED = {
  'gpt2': byte_level(),
  'cl100k': split(CL100K),
}


@pytest.mark.parametrize('name', [*STREAMED, 'bytes', 'numbers'])
def test_pieces_have_the_tokens_of_the_whole(name, monkeypatch):
  monkeypatch.setattr(streaming, '_LETTERS', 10)
  rng = np.random.default_rng(0)
  words = [*WORDS.split(), "we're", "they've", '1234', '12.5', 'à', 'garçon']
  words += ['  ', '\n\n', ' \n ', '...', '中文', "'", '. ', '\t']
  if name == 'numbers':
    tokenizer, words = NumberTokenizer(9999), ['1', '22', '333']
  elif name == 'bytes':
    tokenizer = ByteTokenizer()
  else:
    tokenizer = trained(STREAMED[name])
  for _ in range(100):
    joint = ' ' if name == 'numbers' or rng.random() < 0.8 else ''
    text = joint.join(rng.choice(words, 60))
    cuts = np.sort(rng.integers(0, len(text) + 1, 30))
    ends = [0, *cuts.tolist(), len(text)]
    parts = [text[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    pieces = list(streaming.tokens_in_pieces(tokenizer, parts, 16))
    assert {len(x) for x in pieces[:-1]} <= {16} and len(pieces[-1]) < 16
    np.testing.assert_array_equal(
      np.concatenate(pieces), tokenizer.encode(text)
    )
    assert tokenizer.cut(text) > len(text) / 2 or not joint


@pytest.mark.parametrize(
  'pre_tokenizer',
  [
    pre_tokenizers.ByteLevel(add_prefix_space=True),
    split(r'(?<=a)b'),
    pre_tokenizers.Sequence(
      [pre_tokenizers.Digits(individual_digits=False), byte_level()]
    ),
  ],
  ids=['prefix', 'look behind', 'two steps'],
)
def test_other_encodings_are_not_cut(pre_tokenizer):
  assert trained(pre_tokenizer).cut(WORDS) == 0
