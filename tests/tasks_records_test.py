"""Questions on several records: solvable, without leaks, of the stated size."""

import re

import numpy as np
import pytest

from hope.tasks import TEXT_TASKS, ChoiceExample, TextOptions, records

_SOURCE = tuple(f'This is background sentence number {i}.' for i in range(30))
_NAMES = ('patients1', 'patients2', 'papers1', 'papers2')
SEEDS = 1000


def _example(name: str, seed: int, **options) -> ChoiceExample:
  rng = np.random.default_rng((seed, 0))
  stated = {'size': 700, 'sentences': _SOURCE, **options}
  return TEXT_TASKS[name].generate(rng, TextOptions(**stated))


def _count(text: str, value: str) -> int:
  return len(re.findall(rf'(?<![\w-]){re.escape(value)}(?![\w-])', text))


@pytest.mark.parametrize('name', _NAMES)
def test_examples_of_1000_seeds(name):
  """The solver is right, and no choice is more in the text than another."""
  task, answers, places = TEXT_TASKS[name], [], []
  for seed in range(SEEDS):
    example = _example(name, seed)
    (context,) = {request.context for request in example.requests}
    choices = [request.continuation for request in example.requests]
    assert len(set(choices)) == len(choices) == 5
    right = choices[example.answer]
    assert task.solve(context) == right
    for choice in choices:
      assert choice[0] == ' ' and _count(context, choice[1:]) == 1
    lines = context.split('\n')
    told = [x for x in lines[:-1] if x not in _SOURCE]
    assert len(told) == 8
    places.append(next(i for i, x in enumerate(told) if _count(x, right[1:])))
    answers.append(example.answer)
  # Neither where the right one is among the choices nor where its record is
  # among the records says anything; 4 deviations.
  for found, number in ((answers, 5), (places, 8)):
    shares = np.bincount(found, minlength=number) / SEEDS
    deviation = np.sqrt((1 - 1 / number) / number / SEEDS)
    assert np.abs(shares - 1 / number).max() < 4 * deviation
  assert task.chance == 1 / 5 and task.score is None


@pytest.mark.parametrize('name', ['patients2', 'papers2'])
def test_two_records_are_needed(name):
  """The question names two, and both their values are among the choices.

  Either is the right one as often, also where it is named first.
  """
  firsts = 0
  for seed in range(SEEDS):
    example = _example(name, seed)
    context, right = example.requests[example.answer]
    *lines, question = context.split('\n')
    one, two = re.findall(r'the one of (\w+ \w+) and (\w+ \w+) that', question)[
      0
    ]
    of_each = [
      next(x for x in lines if re.match(rf'\w.* {y}\.', x)) for y in (one, two)
    ]
    shown = [
      sum(_count(line, x.continuation[1:]) for x in example.requests)
      for line in of_each
    ]
    assert shown == [1, 1]
    firsts += _count(of_each[0], right[1:])
  assert abs(firsts / SEEDS - 0.5) < 4 * 0.0159


def test_questions_worked_out_by_hand():
  text = (
    'Report on Anna Lund. The diagnosis is gout. Body weight on arrival was '
    '101 kilograms.\n'
    'A sentence between them. The diagnosis is none.\n'
    'Report on Hugo Lund. Body weight on arrival was 99 kilograms. The '
    'diagnosis is sepsis.\n'
  )
  solve = TEXT_TASKS['patients1'].solve
  assert solve(text + 'Which diagnosis does Hugo Lund have?') == ' sepsis'
  assert solve(text + 'How many kilograms did Anna Lund weigh?') == ' 101'
  pair = 'the one of Anna Lund and Hugo Lund that weighed'
  assert solve(text + f'Which diagnosis does {pair} more have?') == ' gout'
  assert solve(text + f'Which diagnosis does {pair} less have?') == ' sepsis'


def test_text_without_a_question_is_refused():
  with pytest.raises(ValueError, match='Give a context of the task'):
    TEXT_TASKS['papers1'].solve(
      'Paper: Joint Tagging. The baseline is a cache.'
    )


def test_every_field_is_asked_and_every_order():
  for world, name in (
    (records._PATIENTS, 'patients2'),
    (records._PAPERS, 'papers2'),
  ):
    asked = [
      _example(name, i).requests[0].context.split('\n')[-1] for i in range(300)
    ]
    for field in world.fields:
      start = field.question.split('{}')[0]
      assert any(x.startswith(start) for x in asked)
      for said in field.orders:
        assert any(said in x for x in asked)


@pytest.mark.parametrize('name', _NAMES)
@pytest.mark.parametrize('count', [len, lambda x: len(x.split())])
def test_as_many_sentences_as_fit(name, count):
  for size in range(4000, 4005):
    example = _example(name, 2, size=size, count=count)
    whole = max(count(''.join(request)) for request in example.requests)
    assert size - count(f'\n{_SOURCE[-1]}') < whole <= size


def test_background_stands_at_every_place():
  """Before, between and behind the records, in its order, read round."""
  ends = []
  for seed in range(200):
    *lines, _ = _example('papers1', seed).requests[0].context.split('\n')
    numbers = [int(x.split()[-1][:-1]) for x in lines if x in _SOURCE]
    assert np.all(np.diff(numbers) % len(_SOURCE) == 1)
    told = [x not in _SOURCE for x in lines]
    assert '.' in ''.join('.R'[x] for x in told).strip('.')
    ends.append([told[0], told[-1]])
  shares = np.mean(ends, axis=0)
  assert 0 < shares.min() and shares.max() < 0.5


@pytest.mark.parametrize('name', _NAMES)
def test_an_example_is_a_function_of_its_seed(name):
  first, again, other = (_example(name, x) for x in (5, 5, 6))
  assert first == again != other


def test_records_without_background_stand_alone():
  example = _example('patients1', 3, sentences=(), size=10_000)
  lines = example.requests[0].context.split('\n')
  assert len(lines) == 9 and all('Report on' in x for x in lines[:-1])


@pytest.mark.parametrize('sentences', [(), _SOURCE])
def test_sizes_that_hold_no_records_are_refused(sentences):
  with pytest.raises(ValueError, match='100 tokens cannot hold 8 records'):
    _example('papers2', 0, size=100, sentences=sentences)
