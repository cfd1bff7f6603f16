"""MAD's tasks: equal to its own generators' examples, and its settings.

`mad_examples.json` holds the first two examples that the generators of
https://github.com/athms/mad-lab make of seed 12345, and their map of keys to
values (-100: a place that does not count).
"""

import itertools
import json
import pathlib

import ml_collections
import numpy as np
import pytest

from hope.tasks import TASKS, copying, fuzzy_recall, memorization

PUBLISHED = json.loads(
  pathlib.Path(__file__).with_name('mad_examples.json').read_text()
)
IGNORED = -100


def options(name):
  """Options of the examples of a name, and their sequence length."""
  given = PUBLISHED[name]['params']
  found = {
    'vocab_size': given['vocab_size'],
    'noise': given.get('frac_noise', 0.0),
    'num_pairs': given.get('num_tokens_to_copy', 8),
  }
  return ml_collections.ConfigDict(found), given['seq_len']


def assert_equal(example, published):
  """Compares up to the length of MAD's; what is behind counts nothing."""
  size = len(published['inputs'])
  assert example.inputs[:size].tolist() == published['inputs']
  counts = example.weights > 0
  targets = np.where(counts, example.targets, IGNORED)
  assert targets[:size].tolist() == published['targets']
  assert not counts[size:].any()


@pytest.mark.parametrize(
  ('name', 'task', 'kind'),
  [
    ('in-context-recall/train', 'in_context_recall', 'generate'),
    ('in-context-recall/test', 'in_context_recall', 'heldout'),
    ('noisy-in-context-recall/train', 'noisy_recall', 'generate'),
    ('noisy-in-context-recall/test', 'noisy_recall', 'heldout'),
    ('compression', 'compression', 'generate'),
  ],
)
def test_examples_equal_the_published_ones(name, task, kind):
  given, seq_len = options(name)
  rng = np.random.default_rng(12345)
  for published in PUBLISHED[name]['instances']:
    example = getattr(TASKS[task], kind)(rng, seq_len, given)
    assert_equal(example, published)


@pytest.mark.parametrize('kind', ['train', 'test'])
def test_fuzzy_recall_equals_the_published_examples(kind):
  """With keys and values drawn as MAD draws them, from shuffled lists of all.

  Of one of them the value that is asked for is nowhere in the sequence, so
  that it is never held out here.
  """
  name = f'fuzzy-in-context-recall/{kind}'
  given, seq_len = options(name)
  heldout = kind == 'test'
  rng = np.random.default_rng(12345)
  known = []
  for published in PUBLISHED[name]['instances']:
    lists = {}
    for part, tokens in (('key', range(7)), ('value', range(7, 15))):
      for size in (1, 2, 3):
        if size == 3 or part == 'value' or not heldout:
          lists[part, size] = list(itertools.permutations(tokens, size))
          rng.shuffle(lists[part, size])

    def draw(rng, part, size, lists=lists):
      return tuple(rng.choice(lists[part, size]).tolist())

    tokens, asked, *found = fuzzy_recall.sequence(rng, draw, seq_len, heldout)
    known += found
    asked = asked if heldout else None
    padding = given.vocab_size - 1
    example = fuzzy_recall.padded(tokens, asked, seq_len, padding)
    assert_equal(example, published)
  assert known == [False, True]


def test_copying_writes_what_is_published():
  """MAD draws the places of blanks from another generator: they are read off.

  The tokens are drawn as MAD draws them.
  """
  given, seq_len = options('selective-copying')
  rng = np.random.default_rng(12345)
  blank, num = given.vocab_size - 2, given.num_pairs
  for published in PUBLISHED['selective-copying']['instances']:
    tokens = rng.integers(0, blank, num)
    body, places, index = published['inputs'][: seq_len - num - 1], [], 0
    for token in body:
      if token == blank:
        places.append(index)
      else:
        index += 1
    example = copying.sequence(tokens, places, seq_len, given.vocab_size)
    assert_equal(example, published)


def test_memorization_equals_the_published_examples():
  given, seq_len = options('memorization')
  known = PUBLISHED['memorization_kv_map_seed12345']
  assert memorization.mapping(256).T.tolist() == [
    [int(key), value] for key, value in known.items()
  ]
  rng = np.random.default_rng(12345)
  for published in PUBLISHED['memorization']['instances']:
    rng.integers(seq_len // 2)  # a place that MAD's noise would spare
    assert_equal(memorization.generate(rng, seq_len, given), published)
