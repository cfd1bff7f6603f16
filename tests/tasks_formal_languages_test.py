"""Formal languages: strings, answers, bins of lengths, whole-string metric."""

import functools
import json
import re

from conftest import ROOT
from flax import nnx
import jax
import numpy as np
import pytest

import hope
from hope.config import base_config, resolve
from hope.data import generated, open_data
from hope.evaluation import heldout
from hope.parallel.mesh import one_device
from hope.tasks import TASKS, chomsky, formal_languages
from hope.tasks.formal_languages import LANGUAGES
from hope.training import loop
from hope.training import step as step_lib


def make_config(language, low=2, high=50, **fields):
  config = base_config()
  config.data.source = f'synthetic:{language}'
  config.data.task.min_length, config.data.task.max_length = low, high
  config.data.seq_len = TASKS[language].least(config.data.task).seq_len
  config.update_from_flattened_dict(fields)
  return config


def decode(language, example):
  """The string of an example, and its answers, '' where none counts."""
  inputs, targets, weights = (
    example[name] for name in ('inputs', 'targets', 'weights')
  )
  length = np.count_nonzero(inputs)
  assert inputs[:length].all() and not weights[length:].any()
  string = ''.join(LANGUAGES[language].symbols[i - 1] for i in inputs[:length])
  answers = [
    LANGUAGES[language].classes[targets[i]] if weights[i] else ''
    for i in range(length)
  ]
  return string, answers


def strings(language, split='train', count=1000, **options):
  source = generated.TaskSource(make_config(language, **options), split)
  return [decode(language, source[i]) for i in range(count)]


# ------------------------------------------- strings and answers, as published


@pytest.mark.parametrize(
  ('language', 'string', 'answers'),
  [
    ('parity', '11', '0 1'),
    ('parity', '0110', '1 0 1 1'),
    ('parity', '10110001', '0 0 1 0 0 0 0 1'),
    ('aa_star', 'aa', '0 1'),
    ('aa_star', 'aaaaaa', '0 1 0 1 0 1'),
    ('abab_star', 'abab', '0 0 0 1'),
    ('abab_star', 'abababab', '0 0 0 1 0 0 0 1'),
    ('anbn', 'ab', 'X T'),
    ('anbn', 'aaabbb', 'X X X b b T'),
    ('anbncn', 'abc', 'X c T'),
    ('anbncn', 'aaabbbccc', 'X X X b b c c c T'),
    ('shuffle2', '()', '10 00'),
    ('shuffle2', '([)]', '10 11 01 00'),
    ('shuffle2', '[([])]', '01 11 11 11 01 00'),
  ],
)
def test_answers_equal_the_published_ones(language, string, answers):
  example = formal_languages.encode(LANGUAGES[language], string, 12)
  assert decode(language, example._asdict()) == (string, answers.split())
  assert not example.inputs[len(string) :].any()


# The languages once more, each from its definition alone.
EXPRESSIONS = {
  'parity': '(0*10*1)*0*',
  'aa_star': '(aa)*',
  'abab_star': '(abab)*',
  'parity_of_string': r'[01]+\?',
}


@functools.cache
def powers(symbols):
  return [''.join(x * n for x in symbols) for n in range(1, 52)]


@functools.cache
def followers(symbols, prefix):
  """What may follow a prefix, from a list of the language's strings."""
  longer = [x + 'T' for x in powers(symbols) if x.startswith(prefix)]
  return {x[len(prefix)] for x in longer}


def is_member(language, string):
  if language in EXPRESSIONS:
    return bool(re.fullmatch(EXPRESSIONS[language], string))
  if language == 'shuffle2':
    # Each kind of brackets, alone, vanishes pair by pair.
    for pair in ('()', '[]'):
      alone = ''.join(x for x in string if x in pair)
      while pair in alone:
        alone = alone.replace(pair, '')
      if alone:
        return False
    return True
  return string in powers({'anbn': 'ab', 'anbncn': 'abc'}[language])


def answer(language, string, end):
  """What is asked behind the first `end` symbols."""
  prefix = string[:end]
  if language == 'parity_of_string':
    if end < len(string):
      return ''
    return '0' if re.fullmatch(EXPRESSIONS['parity'], string[:-1]) else '1'
  if language in EXPRESSIONS:
    return str(int(is_member(language, prefix)))
  if language == 'shuffle2':
    pairs = ('()', '[]')
    return ''.join(
      str(int(prefix.count(left) != prefix.count(right)))
      for left, right in pairs
    )
  symbols = {'anbn': 'ab', 'anbncn': 'abc'}[language]
  found = followers(symbols, prefix)
  return 'X' if found == {'a', 'b'} else ''.join(found)


@pytest.mark.parametrize('language', list(LANGUAGES))
def test_strings_and_answers_follow_from_the_definition(language):
  drawn = strings(language)
  for string, answers in drawn:
    assert is_member(language, string), string
    expected = [answer(language, string, i) for i in range(1, len(string) + 1)]
    assert answers == expected, string
  # Every class is asked for, and lengths are drawn from the whole range.
  assert {x for _, answers in drawn for x in answers} - {''} == set(
    LANGUAGES[language].classes
  )
  assert len({len(string) for string, _ in drawn}) >= 12


@pytest.mark.parametrize('language', list(LANGUAGES))
@pytest.mark.parametrize(
  ('low', 'high'), [(2, 50), (51, 100), (8, 8), (5, 9), (100, 128)]
)
def test_lengths(language, low, high):
  of_string = {'anbn': 2, 'anbncn': 3}.get(language, 1)
  marks = language == 'parity_of_string'
  drawn = strings(language, count=50, low=low, high=high)
  lengths = {(len(string) - marks) / of_string for string, _ in drawn}
  assert low <= min(lengths) and max(lengths) <= high
  assert all(length == int(length) for length in lengths)


def test_a_string_is_a_function_of_seed_and_index():
  for language in LANGUAGES:
    one, two = strings(language, count=30), strings(language, count=30)
    assert one == two
    assert one != strings(language, count=30, seed=1)
    wide = make_config(language)
    wide.data.seq_len = 200
    source = generated.TaskSource(wide, 'train')
    if not TASKS[language].disjoint:
      assert decode(language, source[17]) == one[17]


@pytest.mark.parametrize(
  'language', [name for name, task in TASKS.items() if task.disjoint]
)
def test_what_is_held_out_is_never_trained_on(language):
  assert language in ('parity', 'shuffle2')
  train = {x for x, _ in strings(language, count=3000)}
  other = {x for x, _ in strings(language, count=3000, seed=1)}
  held = {x for x, _ in strings(language, 'heldout')}
  assert len(train & other) > 100  # short strings recur
  assert not held & (train | other)
  assert len(held) > 300


def test_lengths_of_parity_are_those_of_the_published_generator():
  """Compares with its loop, symbol by symbol, over the same options."""
  rng = np.random.default_rng(0)
  stop = 1 / 27  # L = (2 + 50) // 2
  lengths = []
  while len(lengths) < 20_000:
    string = ''
    while len(string) < 50 and rng.random() >= stop:
      string += '01'[rng.integers(2)]
    if len(string) < 2:
      continue
    string += '1' if string.count('1') % 2 else ''
    if len(string) <= 50:
      lengths.append(len(string))
  draw = LANGUAGES['parity'].draw
  ours = [len(draw(rng, 2, 50)) for _ in range(20_000)]
  bins = np.arange(2, 52)
  expected = np.histogram(lengths, bins)[0]
  found = np.histogram(ours, bins)[0]
  # Chi squared of 49 classes: above 100 once in 30,000 draws.
  both = expected + found
  assert np.sum((expected - found)[both > 0] ** 2 / both[both > 0]) < 100


# ------------------------------------------------------------- bins of lengths


@pytest.mark.parametrize('language', list(LANGUAGES))
def test_bins_of_longer_strings(language):
  config = make_config(language, **{'evals.batches': 2})
  config.evals.longer = (60, 101)
  data = open_data(resolve(config))
  found = data.longer_batches()
  assert list(found) == ['51-60', '61-101']
  of_string = {'anbn': 2, 'anbncn': 3}.get(language, 1)
  for (low, high), batches in zip(
    [(51, 60), (61, 101)], found.values(), strict=True
  ):
    assert len(batches) == 2
    for batch in batches:
      assert batch['inputs'].shape[1] % config.data.seq_len == 0
      lengths = np.count_nonzero(batch['inputs'], axis=1)
      lengths = (lengths - (language == 'parity_of_string')) / of_string
      assert low <= lengths.min() and lengths.max() <= high
  # The first bin is what it is without others.
  config.evals.longer = ()
  alone = open_data(resolve(config))
  assert not alone.longer_batches()
  jax.tree.map(
    np.testing.assert_array_equal, alone.eval_batches(), data.eval_batches()
  )


@pytest.mark.parametrize(
  ('language', 'fields', 'message'),
  [
    ('parity', {'evals.longer': (50,)}, r'\(50,\): 50 must be above 50'),
    ('parity', {'evals.longer': (99, 60)}, '60 must be above 99'),
    (
      'mqar',
      {'evals.longer': (99,)},
      'synthetic:mqar are of one length',
    ),
    ('parity', {'data.task.min_length': 51}, 'give a max_length of 51 or more'),
    ('parity', {'data.task.max_length': 7}, 'give a max_length of 8 or more'),
    ('parity', {'data.task.max_length': 51}, 'at least 51'),
    ('parity', {'data.task.max_length': 0}, 'max_length=0: give at least 1'),
    ('parity', {'data.task.vocab_size': 2}, 'max_length=50; give at least 3'),
    ('abab_star', {'data.task.min_length': 49}, 'give a max_length of 52'),
    ('anbncn', {'data.seq_len': 149}, 'give at least 150'),
    ('parity_of_string', {'data.seq_len': 50}, 'give at least 51'),
  ],
)
def test_errors(language, fields, message):
  config = make_config('parity', **fields)
  config.data.source = f'synthetic:{language}'
  if language != 'mqar' and 'data.seq_len' not in fields:
    config.data.seq_len = 50
  with pytest.raises(ValueError, match=message):
    data = open_data(config)
    data.eval_batches()
    data.longer_batches()


def test_texts_have_no_bins():
  config = base_config()
  config.evals.longer = (100,)
  with pytest.raises(ValueError, match='data.source=stdlib are of one length'):
    open_data(config).longer_batches()


# --------------------------------------------------------- whole-string metric


def tiny(language='parity', **fields):
  """The experiment of a language, so small that it runs in seconds."""
  config = hope.experiment(
    f'{ROOT}/experiments/formal_languages.py:'
    f'language={language},mixer=attention,steps=3'
  )
  config.update_from_flattened_dict(
    {
      'model.num_layers': 1,
      'model.cms.periods': (1,),
      'model.width': 8,
      'data.batch_size': 4,
      'evals.batches': 2,
      'mesh.data': 1,
    }
    | fields
  )
  return config


def test_metrics_are_those_of_numpy():
  """Counts string by string what a model predicts of two bins."""
  config = tiny(**{'data.task.max_length': 8, 'evals.longer': (10,)})
  config.data.seq_len, config.data.batch_size = 8, 64
  data = open_data(resolve(config))
  config = resolve(config, data.vocab_size)
  graph, params = step_lib.build_model(config)
  predict = jax.jit(
    lambda tokens: jax.numpy.argmax(nnx.merge(graph, params)(tokens)[0], -1)
  )
  rng = np.random.default_rng(0)

  def made_of_guesses(batch):
    """A batch with answers that the model gives, but for one in eight."""
    guess = np.asarray(predict(batch['inputs']))
    wrong = rng.random(guess.shape) < 1 / 8
    return batch | {'targets': np.where(wrong, (guess + 1) % 3, guess)}, ~wrong

  bins = {'': data.eval_batches()} | data.longer_batches()
  made = {name: [made_of_guesses(x) for x in bins[name]] for name in bins}
  batches, longer = (
    {name: [batch for batch, _ in made[name]] for name in names}
    for names in ([''], ['9-10'])
  )
  step = step_lib.eval_step(graph, one_device())
  values, _ = heldout.evaluate(step, params, batches[''], None, longer)
  metrics = {'loss', 'accuracy', 'exact_match'}
  assert values.keys() == metrics | {f'{name}/9-10' for name in metrics}
  for suffix, name in (('', ''), ('/9-10', '9-10')):
    rows = [
      hit[i][batch['weights'][i] > 0]
      for batch, hit in made[name]
      for i in range(64)
    ]
    whole = np.mean([all(row) for row in rows])
    assert 0.1 < whole < 0.7
    np.testing.assert_allclose(values[f'exact_match{suffix}'], whole)
    hits = np.mean(np.concatenate(rows))
    np.testing.assert_allclose(values[f'accuracy{suffix}'], hits, rtol=1e-6)


def test_a_run_reports_both_bins(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
  loop.run(tiny('anbn'), str(tmp_path))
  shown = capsys.readouterr().out
  result = json.loads((tmp_path / 'results.json').read_text())['heldout']
  names = ('loss', 'accuracy', 'exact_match')
  assert list(result) == [*names, *(f'{name}/51-100' for name in names)]
  assert re.search(r'\n  accuracy [01]\.\d{4}  exact match [01]\.', shown)
  assert re.search(r'\n  lengths 51-100: accuracy 0\.\d{4}  exact match', shown)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  assert last['kind'] == 'eval' and result.items() <= last.items()


@pytest.mark.slow
def test_a_finished_run_is_measured_on_other_bins(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
  loop.run(tiny('anbn', **{'evals.longer': ()}), str(tmp_path))
  path = tmp_path / 'results.json'
  first = json.loads(path.read_text())['heldout']
  assert list(first) == ['loss', 'accuracy', 'exact_match']
  loop.run(tiny('anbn', **{'evals.longer': (60, 70)}), str(tmp_path))
  second = json.loads(path.read_text())['heldout']
  bins = [name for name in second if name.startswith('exact_match')]
  assert bins == ['exact_match', 'exact_match/51-60', 'exact_match/61-70']
  assert {name: second[name] for name in first} == first
  again = hope.load(tmp_path).evaluate()
  assert again.keys() == second.keys()
  for name, value in second.items():
    np.testing.assert_allclose(again[name], value, rtol=1e-5)


@pytest.mark.parametrize('language', [*LANGUAGES, *chomsky.LANGUAGES])
def test_the_experiment_of_every_language(language):
  config = resolve(
    hope.experiment(f'{ROOT}/experiments/formal_languages.py:{language=!s}')
  )
  data = open_data(config)
  batch = next(data.train_iterator())
  assert batch['inputs'].shape == (32, config.data.seq_len)
  assert batch['inputs'].max() < data.vocab_size
  (bin_,) = data.longer_batches()
  whole = language == 'parity_of_string' or language in chomsky.LANGUAGES
  assert bin_ == ('41-256' if whole else '51-100')
  longest = data.longer_batches()[bin_][0]['inputs']
  seen = np.count_nonzero(longest, axis=1).max()
  assert config.model.attention.max_context >= seen


@pytest.mark.slow
def test_a_memory_learns_one_repeated_word(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
  config = tiny('aa_star')
  # The experiment's memories, which learn M(v): of those that learn v, 14% of
  # the strings are right after 60 and 120 steps.
  file = f'{ROOT}/experiments/formal_languages.py:language=aa_star'
  config.model.pattern = hope.experiment(file).model.pattern
  config.train.steps = 60
  config.model.num_layers, config.model.width = 2, 32
  config.data.batch_size, config.optimizer.warmup_steps = 32, 20
  loop.run(config, str(tmp_path))
  result = json.loads((tmp_path / 'results.json').read_text())['heldout']
  assert result['exact_match'] == 1
