"""RULER's needles: prompts word by word, their length, and their scores."""

import builtins
import re
import tracemalloc

import numpy as np
import pytest

from hope.tasks import TEXT_TASKS, TextExample, TextOptions, needles

_SOURCE = tuple(f'This is essay sentence number {i}.' for i in range(30))
_NAMES = ('s1', 's2', 's3_uuid', 'mk1', 'mv', 'mq')


def _example(name: str, seed: int, **options) -> TextExample:
  rng = np.random.default_rng((seed, 0))
  stated = {'size': 400, 'sentences': _SOURCE, **options}
  return TEXT_TASKS[name].generate(rng, TextOptions(**stated))


@pytest.mark.parametrize('name', _NAMES)
def test_the_solver_is_right(name):
  task = TEXT_TASKS[name]
  for seed in range(1000):
    example = _example(name, seed, size=300)
    output = task.solve(''.join(example.pieces()))
    assert sorted(output.split(', ')) == sorted(example.answers)
    assert task.score(output, example) == 1
  assert 0 <= task.chance < 1e-6


def test_a_prompt_of_one_value_reads_as_stated():
  example = _example('s1', 0, size=128 + 107)
  (value,) = example.answers
  assert re.fullmatch(r'[1-9]\d{6}', value)
  text = ''.join(example.pieces())
  (key,) = re.findall(r'numbers for (\S+) is: ', text)
  noise = (
    'The grass is green. The sky is blue. The sun is yellow. Here we go. '
    'There and back again.'
  )
  needle = f'One of the special magic numbers for {key} is: {value}.'
  lines = text.split('\n')
  assert lines[0] == (
    'A special magic number is hidden within the following text. Make sure to '
    'memorize it. I will quiz you about the number afterwards.'
  )
  assert sorted(lines[1:-1]) == sorted([noise, noise, needle])
  assert lines[-1] == (
    f'What is the special magic number for {key} mentioned in the provided '
    f'text? The special magic number for {key} mentioned in the provided text '
    'is'
  )
  assert example.question + ' The special' in text


def test_a_prompt_of_many_values_reads_as_stated():
  example = _example('mq', 0)
  text = ''.join(example.pieces())
  pairs = re.findall(
    r'One of the special magic numbers for (\S+) is: (\d+)\.', text
  )
  values = dict(pairs)
  a, b, c, d = (
    next(k for k in values if values[k] == x) for x in example.answers
  )
  first, haystack, last = text.split('\n')
  assert first == (
    'Some special magic numbers are hidden within the following text. Make '
    'sure to memorize it. I will quiz you about the numbers afterwards.'
  )
  asked = f'numbers for {a}, {b}, {c}, and {d} mentioned in the provided text'
  assert last == (
    f'What are all the special magic {asked}? The special magic {asked} are'
  )
  assert haystack.count('This is essay sentence number 0.') >= 1


@pytest.mark.parametrize('name', ['s2', 's3_uuid', 'mk1', 'mv', 'mq'])
def test_needles_stand_at_their_depths(name):
  example = _example(name, 1)
  haystack = ''.join(example.pieces()).split('\n')[1]
  sentences = re.findall(r'This is .*?\.|One of .*?\.', haystack)
  assert ' '.join(sentences) == haystack
  found = np.array([x.startswith('One of') for x in sentences])
  number = (~found).sum()
  assert number > 10
  expected = [int(x * number) for x in example.depths]
  assert np.cumsum(~found)[found].tolist() == expected
  assert found.sum() == (1 if name in ('s2', 's3_uuid') else 4)
  assert len(set(example.depths)) == found.sum()
  assert np.isin(np.round(np.array(example.depths) * 39, 9), range(40)).all()


def test_a_needle_stands_at_every_boundary_of_noise():
  places = []
  for seed in range(400):
    example = _example('s1', seed, size=128 + 107)
    lines = ''.join(example.pieces()).split('\n')
    places.append(next(i for i, x in enumerate(lines) if 'One of' in x))
  _, counts = np.unique(places, return_counts=True)
  assert counts.size == 3
  assert np.abs(counts / 400 - 1 / 3).max() < 4 * 0.0236


@pytest.mark.parametrize('name', _NAMES)
@pytest.mark.parametrize('count', [len, lambda x: len(x.split())])
def test_the_haystack_is_the_largest_that_fits(name, count):
  for size in range(1900, 1905):
    example = _example(name, 2, size=size, count=count)
    tokens = count(''.join(example.pieces())) + 128
    line = needles._NOISE[0] if name == 's1' else max(_SOURCE, key=len)
    assert size - count(' ' + line) < tokens <= size


@pytest.mark.parametrize('name', _NAMES)
def test_an_example_is_a_function_of_its_seed(name):
  first, again, other = (_example(name, x) for x in (5, 5, 6))
  assert list(first.pieces()) == list(first.pieces()) == list(again.pieces())
  assert list(first.pieces()) != list(other.pieces())


def test_a_drawn_prompt_streams_in_constant_memory():
  example = _example('mq', 0, size=20_000)
  tracemalloc.start()
  try:
    words = sum(len(x.split()) for x in example.pieces())
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert 20_000 - 128 - 7 < words <= 20_000 - 128
  # Far below the prompt itself: six characters a word.
  assert peak < 60_000


def test_sizes_and_sources_that_hold_no_prompt_are_refused():
  with pytest.raises(ValueError, match='128 tokens of an answer'):
    _example('s2', 0, size=150)
  for sentences in ((), (' ',)):
    with pytest.raises(ValueError, match='Give TextOptions.sentences'):
      _example('s2', 0, sentences=sentences)
  with pytest.raises(ValueError, match='Give a prompt of the task'):
    TEXT_TASKS['s1'].solve('What is this?')


def test_words_that_are_not_installed_are_named(monkeypatch):
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name == 'wonderwords':
      raise ImportError(name)
    return real(name, *args, **kwargs)

  needles._words.cache_clear()
  monkeypatch.setattr(builtins, '__import__', without)
  with pytest.raises(ImportError, match=r"pip install 'hope-jax\[tasks\]'"):
    _example('s1', 0)


@pytest.mark.parametrize(
  'output,expected',
  [
    ('1234567 and ABCD-1', 1),
    ('abcd-1', 0.5),
    (' 91234567.', 0.5),
    ('123456 7', 0),
    ('', 0),
  ],
)
def test_the_share_of_references_is_scored(output, expected):
  answers = ('1234567', 'aBcd-1')
  example = TextExample(lambda: iter(()), '', answers, ())
  assert TEXT_TASKS['mv'].score(output, example) == expected
