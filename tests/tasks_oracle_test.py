"""Every task can be solved from what is read, and by chance as it states."""

import itertools
import re

from conftest import ROOT
import numpy as np
import pytest

from hope.tasks import TASKS, TEXT_TASKS, Example, Least, chomsky, recall
from hope.tasks import __main__ as table

SEEDS = 1000


def drawn(name, kind):
  """Options, and examples of 1,000 seeds: what is trained on, or held out."""
  task = TASKS[name]
  options, seq_len = table.sizes(task)
  generate = task.heldout if kind == 'heldout' else task.generate
  rngs = (np.random.default_rng((2, i)) for i in range(SEEDS))
  return options, seq_len, [generate(rng, seq_len, options) for rng in rngs]


KINDS = [(name, 'generate') for name in TASKS] + [
  (name, 'heldout') for name, task in TASKS.items() if task.heldout
]


@pytest.mark.parametrize(('name', 'kind'), KINDS)
def test_examples_of_1000_seeds(name, kind):
  """Lengths and values, and the answers of the oracle."""
  task = TASKS[name]
  options, seq_len, examples = drawn(name, kind)
  solved = task.solve and (kind == 'heldout' or task.heldout is None)
  for example in examples:
    inputs, targets, weights = example
    assert inputs.shape == targets.shape == weights.shape == (seq_len,)
    assert 0 <= min(inputs.min(), targets.min())
    assert max(inputs.max(), targets.max()) < options.vocab_size
    counts = weights == 1
    assert counts.any() and not weights[~counts].any()
    if solved:
      answers = task.solve(inputs, options)
      assert answers.shape == (seq_len,)
      assert np.array_equal(answers[counts], targets[counts])


@pytest.mark.parametrize(
  'name', [name for name, task in TASKS.items() if task.solve]
)
def test_no_answer_needs_what_comes_behind_it(name):
  """The oracle answers the same where all that is behind is gone."""
  task = TASKS[name]
  kind = 'heldout' if task.heldout else 'generate'
  options, _, examples = drawn(name, kind)
  rng = np.random.default_rng(0)
  for inputs, targets, weights in examples[:100]:
    place = int(rng.choice(np.flatnonzero(weights)))
    seen = inputs.copy()
    seen[place + 1 :] = 0
    assert task.solve(seen, options)[place] == targets[place]


@pytest.mark.parametrize('name', list(TASKS))
def test_scores_are_those_that_are_stated(name):
  task = TASKS[name]
  oracle, constant, chance = table.scores(task)
  assert oracle == (None if name == 'symbols' else 1)
  if task.metric == 'class_accuracy':  # all classes are there
    assert constant == pytest.approx(chance, rel=1e-12)
  else:
    # Of 1,000 independent examples.
    assert abs(constant - chance) <= 4 * np.sqrt(chance * (1 - chance) / SEEDS)


@pytest.mark.parametrize('name', list(TEXT_TASKS))
def test_scores_of_tasks_of_text_are_those_that_are_stated(name):
  oracle, constant, chance = table.text_scores(TEXT_TASKS[name])
  assert oracle == 1
  deviation = np.sqrt(chance * (1 - chance) / table._TEXT_EXAMPLES)
  assert abs(constant - chance) <= 4 * deviation


def test_every_name_is_of_one_task():
  assert not TASKS.keys() & TEXT_TASKS.keys()


def test_only_symbols_has_no_oracle():
  """Its next token is not what its first 31 tell."""
  assert [name for name, task in TASKS.items() if not task.solve] == ['symbols']


@pytest.mark.parametrize('lengths', [(1, 1), (1, 6), (2, 5), (4, 4)])
@pytest.mark.parametrize('name', list(chomsky.LANGUAGES))
def test_chances_of_chomsky_by_counting(name, lengths):
  """Every string of each length once: the share of those with answer 0."""
  language = chomsky.LANGUAGES[name]
  shares = []
  for length in range(lengths[0], lengths[1] + 1):
    sets = ['01', '012'][name == 'cycle_navigation']
    every = itertools.product(sets, repeat=length)
    if name == 'modular_arithmetic':
      odd = length - (length % 2 == 0)
      every = itertools.product(*(('01234', '+-*')[i % 2] for i in range(odd)))
    zeros = [language.answers(''.join(x) + '?')[-1] == '0' for x in every]
    shares.append(np.mean(zeros))
  options = table.sizes(TASKS[name])[0]
  options.min_length, options.max_length = lengths
  assert TASKS[name].chance(options) == pytest.approx(np.mean(shares), rel=1e-9)


@pytest.mark.parametrize(
  ('name', 'string', 'answer'),
  [
    ('even_pairs', '001110', 0),
    ('even_pairs', '0101001', 1),
    ('even_pairs', '1', 0),
    ('cycle_navigation', '20100', 3),  # 1 -1 0 -1 -1
    ('cycle_navigation', '2220', 2),
    ('modular_arithmetic', '1+2*3', 2),
    ('modular_arithmetic', '1-1-1', 4),
    ('modular_arithmetic', '0*1+4*3-2', 0),
    ('modular_arithmetic', '3', 3),
  ],
)
def test_answers_of_chomsky_equal_the_published_ones(name, string, answer):
  language = chomsky.LANGUAGES[name]
  assert language.answers(string + '?') == [''] * len(string) + [str(answer)]
  assert list(language.machine(string + '?')) == language.answers(string + '?')


def test_lengths_of_chomsky():
  for name in chomsky.LANGUAGES:
    options, _, _ = drawn(name, 'generate')
    options.min_length, options.max_length = 1, 40
    lengths = set()
    for i in range(SEEDS):
      rng = np.random.default_rng(i)
      inputs, _, weights = TASKS[name].generate(rng, 41, options)
      (mark,) = np.flatnonzero(weights)
      assert inputs[mark] == len(chomsky.LANGUAGES[name].symbols)
      assert inputs[:mark].all() and not inputs[mark + 1 :].any()
      lengths.add(int(mark))
    odd = name == 'modular_arithmetic'
    assert lengths == set(range(1, 41, 1 + odd))


@pytest.mark.parametrize('name', ['in_context_recall', 'noisy_recall'])
def test_recall_is_held_out_on_what_came_before(name):
  """The same sequences; in training every next token counts."""
  _, seq_len, trained = drawn(name, 'generate')
  _, _, held = drawn(name, 'heldout')
  for one, two in zip(trained, held, strict=True):
    assert np.array_equal(one.inputs, two.inputs)
    assert one.weights.tolist() == [1] * (seq_len - 1) + [0]
    assert np.array_equal(one.targets[: seq_len - 2], one.inputs[1:-1])
    counts = two.weights == 1
    assert np.array_equal(two.targets[counts], one.targets[counts])
    keys = one.inputs[0:-1:2].tolist()
    again = [key in keys[:i] for i, key in enumerate(keys)]
    if name == 'in_context_recall':
      assert counts[:-1:2].tolist() == again
    assert counts[seq_len - 2] and not counts[1::2].any()


def test_noise_is_its_share_of_the_pairs():
  task = TASKS['noisy_recall']
  options, seq_len, examples = drawn('noisy_recall', 'generate')
  first = options.vocab_size - recall.NOISE
  pairs = seq_len // 2 - 1
  noise = np.stack([x.inputs[: 2 * pairs] >= first for x in examples])
  assert np.array_equal(noise[:, ::2], noise[:, 1::2])
  # One of the places, the last included, is never noise.
  expected = options.noise * pairs / (pairs + 1)
  assert noise.mean() == pytest.approx(expected, abs=0.01)
  options.noise = 0.95  # it never takes the place of all pairs
  for i in range(SEEDS):
    rng = np.random.default_rng(i)
    example = task.heldout(rng, 4, options)
    assert example.inputs[:2].max() < first and example.weights[2] == 1


def test_fuzzy_recall_is_held_out_with_keys_of_three_tokens():
  for kind, sizes in (('generate', {1, 2, 3}), ('heldout', {3})):
    options, seq_len, examples = drawn('fuzzy_recall', kind)
    padding = options.vocab_size - 1
    found = {'k': set(), 'v': set()}
    for inputs, _, weights in examples:
      text = ''.join(
        ' ' if x == padding else 'k' if x < padding // 2 else 'v'
        for x in inputs.tolist()
      )
      assert re.fullmatch(' *(k+v+)*k+v*', text)
      for run in re.findall('k+|v+', text)[:-1]:
        found[run[0]].add(len(run))
      if kind == 'generate':
        assert weights.all()
      else:
        assert {text[i] for i in np.flatnonzero(weights)} <= {'k', 'v'}
    assert found == {'k': sizes, 'v': {1, 2, 3}}
    assert seq_len == 32


def test_memorization_shows_no_value():
  options, _, examples = drawn('memorization', 'generate')
  keys = (options.vocab_size - 1) // 2
  for inputs, targets, weights in examples:
    assert inputs[::2].max() < keys <= targets[weights == 1].min()
    assert set(inputs[1::2].tolist()) == {options.vocab_size - 1}


def test_the_table_has_a_row_for_each_task(capsys, monkeypatch):
  monkeypatch.setattr(table, '_EXAMPLES', 20)
  monkeypatch.setattr(table, '_TEXT_EXAMPLES', 20)
  table.main()
  shown = capsys.readouterr().out
  for name, task in (TASKS | TEXT_TASKS).items():
    (row,) = (line for line in shown.splitlines() if f' {name} ' in line)
    assert ('none' if task.solve is None else '100.0%') in row
  assert len(shown.splitlines()) == len(TASKS) + len(TEXT_TASKS) + 4


def test_the_task_of_the_page():
  """`docs/tasks.md`: one file of at most 60 lines, with all that is asked."""
  page = (ROOT / 'docs/tasks.md').read_text()
  (program,) = re.findall(r'^```python\n(.*?)^```$', page, re.M | re.S)
  assert program.count('\n') <= 60
  space = {}
  exec(program, space)
  task = space['TASK']
  options, seq_len = table.sizes(task)
  inputs, targets, weights = table.draw(task, seed=3)
  assert weights.sum() == SEEDS * options.num_pairs
  oracle, constant, chance = table.scores(task)
  assert oracle == 1 and constant == pytest.approx(chance, abs=0.01)
  assert task.least(options) == Least(2, 2 * options.num_pairs)
  example = Example(inputs[0], targets[0], weights[0])
  num = options.num_pairs
  assert (
    example.targets[num : 2 * num].tolist() == inputs[0, :num][::-1].tolist()
  )
  assert inputs.shape == (SEEDS, seq_len)
