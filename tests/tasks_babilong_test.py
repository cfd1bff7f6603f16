"""BABILong: stories, prompts that are streamed, and how an output scores."""

import tracemalloc

import numpy as np
import pytest

from hope.tasks import TEXT_TASKS, TextExample, TextOptions

_LONG = tuple(
  f'Sentence {i} of the background has ten words at the least, and no facts.'
  for i in range(50)
)
_SOURCE = ('Too short a sentence.', *_LONG)
_NAMES = ('qa1', 'qa2')


def _example(name: str, seed: int, size: int = 300) -> TextExample:
  rng = np.random.default_rng((seed, 0))
  return TEXT_TASKS[name].generate(rng, TextOptions(size, _SOURCE))


@pytest.mark.parametrize('name', _NAMES)
def test_the_solver_is_right(name):
  task = TEXT_TASKS[name]
  answers = []
  for seed in range(1000):
    example = _example(name, seed)
    output = task.solve(''.join(example.pieces()))
    assert (output,) == example.answers
    assert task.score(output, example) == 1
    answers.append(output)
  # The answers are even, so a constant one scores the chance; 4 deviations.
  _, counts = np.unique(answers, return_counts=True)
  assert counts.size == 6
  assert np.abs(counts / 1000 - task.chance).max() < 4 * 0.0118


def test_a_story_worked_out_by_hand():
  text = (
    'Mary went to the garden. Mary got the milk there. John moved to the '
    'office. Mary travelled to the kitchen. Mary left the milk. Mary went back '
    'to the bathroom. Where is '
  )
  assert TEXT_TASKS['qa1'].solve(text + 'Mary?') == 'bathroom'
  assert TEXT_TASKS['qa1'].solve(text + 'John?') == 'office'
  assert TEXT_TASKS['qa2'].solve(text + 'the milk?') == 'kitchen'


def test_text_without_a_question_is_refused():
  with pytest.raises(ValueError, match='Give a prompt of the task'):
    TEXT_TASKS['qa1'].solve('Mary went to the garden.')


@pytest.mark.parametrize('name', _NAMES)
def test_a_prompt_fits_and_ends_in_its_question(name):
  example = _example(name, 3)
  pieces = list(example.pieces())
  words = len(''.join(pieces).split())
  longest = max(len(x.split()) for x in _SOURCE)
  assert 300 - longest < words <= 300
  assert pieces[-1] == example.question
  assert not any('Too short' in x for x in pieces)
  # The facts are in order, where the depths say.
  background = [x.strip() in _LONG for x in pieces[:-1]]
  before = np.cumsum(background)[~np.array(background)]
  assert example.depths == tuple(before / sum(background))
  assert list(example.depths) == sorted(example.depths)


@pytest.mark.parametrize('name', _NAMES)
def test_an_example_is_a_function_of_its_seed(name):
  first, again, other = (_example(name, x) for x in (5, 5, 6))
  assert list(first.pieces()) == list(first.pieces()) == list(again.pieces())
  assert list(first.pieces()) != list(other.pieces())


def test_a_story_that_fills_the_prompt_stands_alone():
  options = TextOptions(5000, _SOURCE)
  example = TEXT_TASKS['qa1'].generate(np.random.default_rng(0), options)
  facts = [x for x in example.pieces() if x.strip() not in _LONG]
  words = len(''.join(facts).split())
  alone = TEXT_TASKS['qa1'].generate(
    np.random.default_rng(0), TextOptions(words)
  )
  assert list(alone.pieces()) == facts
  assert set(alone.depths) == {0}


def test_sizes_and_sources_that_hold_no_prompt_are_refused():
  with pytest.raises(ValueError, match='A prompt of 5 tokens cannot hold'):
    _example('qa1', 0, size=5)
  options = TextOptions(300, ('Too short a sentence.',))
  with pytest.raises(ValueError, match='None of the 1 background sentences'):
    TEXT_TASKS['qa1'].generate(np.random.default_rng(0), options)


@pytest.mark.parametrize(
  'size', [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)]
)
def test_a_long_prompt_takes_constant_memory(size):
  tracemalloc.start()
  try:
    example = _example('qa2', 0, size=size)
    words = sum(len(x.split()) for x in example.pieces())
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert size - 20 < words <= size
  # Far below the prompt itself: six characters a word.
  assert peak < 60_000


@pytest.mark.parametrize(
  'output,expected',
  [
    ('garden', 1),
    (' The Garden. Or the office.', 1),
    ('\ngarden\noffice', 1),
    ('The garden or the office.', 0),
    ('The office. The garden.', 0),
    ('The gardener', 0),
    ('Mary is in the garden with the milk', 1),
    ('', 0),
  ],
)
def test_the_first_sentence_is_scored(output, expected):
  example = TextExample(lambda: iter(()), 'Where is Mary?', ('garden',), ())
  assert TEXT_TASKS['qa1'].score(output, example) == expected


def test_places_that_the_question_names_do_not_count():
  question = 'Where was Mary before the kitchen?'
  example = TextExample(lambda: iter(()), question, ('garden',), ())
  output = 'Before the kitchen she was in the garden.'
  assert TEXT_TASKS['qa1'].score(output, example) == 1
  assert TEXT_TASKS['qa1'].score('The kitchen.', example) == 0
