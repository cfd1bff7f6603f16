"""The generated tasks: a contract that all keep, and what each is."""

import itertools

import numpy as np
import pytest

from hope.config import base_config
from hope.data import generated, open_data
from hope.tasks import TASKS, exact_matches, mqar


def make_config(task, **options):
  config = base_config()
  config.data.source = f'synthetic:{task}'
  config.data.task.update(options)
  return config


# ---------------------------------------------- the contract, over the registry


def examples(task, count=20, seq_len=160, **options):
  """The options, and examples drawn by index, of training and held out."""
  config = make_config(task, **options)
  config.data.seq_len, options = seq_len, config.data.task
  kinds = [TASKS[task].generate, TASKS[task].heldout or TASKS[task].generate]
  return options, [
    kinds[i % 2](np.random.default_rng(i), seq_len, options)
    for i in range(count)
  ]


@pytest.mark.parametrize('task', list(TASKS))
def test_shapes_and_dtypes(task):
  for example in examples(task)[1]:
    assert [x.shape for x in example] == [(160,)] * 3
    assert [x.dtype for x in example] == [np.int32, np.int32, np.float32]


@pytest.mark.parametrize('task', list(TASKS))
@pytest.mark.parametrize('more', [0, 60])
def test_tokens_are_of_the_vocabulary(task, more):
  vocab_size = TASKS[task].least(make_config(task).data.task).vocab_size + more
  _, drawn = examples(task, vocab_size=vocab_size)
  for tokens in (np.stack([e.inputs, e.targets]) for e in drawn):
    assert tokens.min() >= 0 and tokens.max() < vocab_size


@pytest.mark.parametrize('task', list(TASKS))
def test_the_least_sizes_are_enough(task):
  least = TASKS[task].least(make_config(task).data.task)
  _, drawn = examples(task, seq_len=least.seq_len, vocab_size=least.vocab_size)
  assert all(e.weights.any() for e in drawn)
  assert max(e.inputs.max() for e in drawn) < least.vocab_size


@pytest.mark.parametrize('task', list(TASKS))
def test_weights_and_scores_are_of_the_answers_alone(task):
  """Where nothing counts the target says nothing, and a guess costs nothing."""
  score = TASKS[task].score
  for _, targets, weights in examples(task)[1]:
    assert set(weights.tolist()) <= {0.0, 1.0} and weights.any()
    assert not targets[weights == 0].any()
    guess = np.where(weights == 1, targets, -1)
    assert score(guess, targets, weights) == 1
    assert exact_matches(guess == targets, weights) == (1, 1)
    assert score(np.where(weights == 1, -1, targets), targets, weights) == 0
    guess[np.flatnonzero(weights)[0]] = -1
    assert 0 <= score(guess, targets, weights) < 1
    assert exact_matches(guess == targets, weights) == (0, 1)


@pytest.mark.parametrize('task', list(TASKS))
def test_streams(task):
  config = make_config(task)

  def inputs(split, seed):
    config.seed = seed
    source = generated.TaskSource(config, split)
    return np.stack([source[i]['inputs'] for i in range(20)])

  train = inputs('train', 0)
  np.testing.assert_array_equal(train, inputs('train', 0))
  heldout, other = inputs('heldout', 0), inputs('train', 1)
  np.testing.assert_array_equal(heldout, inputs('heldout', 1))
  assert len({stream.tobytes() for stream in (train, heldout, other)}) == 3
  if TASKS[task].size != 'max_length':  # there are few short strings
    assert len({row.tobytes() for row in [*train, *heldout, *other]}) == 60


# ------------------------------------------------------------------ each task


def test_mqar_equals_the_published_generator():
  """Compares with what zoology's `multiquery_ar` makes of seed 0.

  Its draws (V = 64, T = 16, two pairs, three examples, a = 0.01, no random
  fillers) are repeated here with NumPy's old generator, its outputs copied.
  """
  inputs = [
    [3, 42, 30, 38, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 30, 0],
    [14, 45, 7, 44, 0, 0, 14, 0, 7, 0, 0, 0, 0, 0, 0, 0],
    [22, 47, 27, 52, 27, 0, 22, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  ]
  answers = [{4: 42, 14: 38}, {6: 45, 8: 44}, {4: 52, 6: 47}]
  rng = np.random.RandomState(0)
  keys = [rng.choice(np.arange(1, 32), 2, replace=False) for _ in range(3)]
  values = [rng.choice(np.arange(32, 64), 2, replace=False) for _ in range(3)]
  p = 0.01 * np.arange(1, 7) ** (0.01 - 1)
  gaps = [
    rng.choice(np.arange(6), 2, replace=False, p=p / p.sum()) for _ in range(3)
  ]
  for i in range(3):
    got, targets, weights = mqar.sequence(keys[i], values[i], gaps[i], 16)
    assert got.tolist() == inputs[i]
    queries = np.flatnonzero(weights)
    assert dict(zip(queries, targets[queries], strict=True)) == answers[i]
    assert set(weights.tolist()) == {0.0, 1.0}


def test_mqar_equals_the_published_generator_at_its_own_size():
  """The same of seed 1, with V = 8192, T = 64, four pairs and two examples."""
  published = [
    ('3962 7292 3000 5503 3919 6844 3654 7745', {14: 1, 20: 2, 24: 0, 26: 3}),
    ('2917 7876 1753 7596 2072 4866 1509 4960', {8: 0, 12: 3, 16: 2, 42: 1}),
  ]
  rng = np.random.RandomState(1)
  keys, values = (
    [rng.choice(np.arange(*ends), 4, replace=False) for _ in published]
    for ends in ((1, 4096), (4096, 8192))
  )
  p = 0.01 * np.arange(1, 29) ** (0.01 - 1)
  p /= p.sum()
  for i, (context, queries) in enumerate(published):
    gaps = rng.choice(np.arange(28), 4, replace=False, p=p)
    got, targets, weights = mqar.sequence(keys[i], values[i], gaps, 64)
    assert got[:8].tolist() == list(map(int, context.split()))
    assert np.flatnonzero(weights).tolist() == list(queries)
    for place, pair in queries.items():
      assert (got[place], targets[place]) == (keys[i][pair], values[i][pair])
    assert np.count_nonzero(got) == 12


def test_mqar_structure():
  config = make_config('mqar', vocab_size=100, num_pairs=6)
  config.data.seq_len = 40
  source = generated.TaskSource(config, 'train')
  gaps = []
  for i in range(200):
    example = source[i]
    inputs, targets = example['inputs'], example['targets']
    pairs = dict(zip(inputs[0:12:2], inputs[1:12:2], strict=True))
    assert len(pairs) == 6 and len(set(pairs.values())) == 6
    assert all(1 <= k < 50 <= v < 100 for k, v in pairs.items())
    queries = np.flatnonzero(example['weights'])
    assert sorted(inputs[queries]) == sorted(pairs)
    assert [pairs[k] for k in inputs[queries]] == targets[queries].tolist()
    assert np.all(queries >= 12) and np.all(queries % 2 == 0)
    rest = np.setdiff1d(np.arange(12, 40), queries)
    assert not inputs[rest].any()
    gaps += ((queries - 12) // 2).tolist()
  # The power law: near places are asked more often than far ones.
  counts = np.bincount(gaps, minlength=14)
  assert counts[0] > 2 * counts[7:].max()


def test_copy_structure():
  config = make_config('copy', vocab_size=16, num_pairs=5)
  config.data.seq_len = 30
  source = generated.TaskSource(config, 'train')
  for i in range(50):
    example = source[i]
    inputs, targets = example['inputs'], example['targets']
    assert inputs[24] == 15 and np.all(inputs[25:] == 14)
    body = inputs[:24]
    assert body[body != 14].tolist() == targets[25:].tolist()
    assert example['weights'].tolist() == [0] * 25 + [1] * 5


@pytest.mark.parametrize('num', [1, 3])
def test_symbols_structure(num):
  source = generated.TaskSource(make_config('symbols', num_pairs=num), 'train')
  example = source[5]
  assert len(set(example['inputs'])) == num
  assert example['inputs'][1:].tolist() == example['targets'][:-1].tolist()
  assert example['weights'].all()


@pytest.mark.parametrize('task', list(TASKS))
def test_batches(task):
  config = make_config(task)
  data = open_data(config)
  assert data.vocab_size == 256
  assert data.bytes_per_token is None
  batches = data.eval_batches()
  assert len(batches) == config.evals.batches
  for batch in (next(data.train_iterator()), batches[0]):
    for key, dtype in (
      ('inputs', np.int32),
      ('targets', np.int32),
      ('weights', np.float32),
    ):
      assert batch[key].shape == (8, 256)
      assert batch[key].dtype == dtype


@pytest.mark.parametrize(
  ('task', 'options', 'message'),
  [
    ('mqr', {}, r'unknown task; did you mean mqar\? Allowed: mqar, copy'),
    ('mqar', {'num_pairs': 0}, 'num_pairs=0: give at least 1'),
    ('mqar', {'num_pairs': 65}, 'seq_len=256 is too small.* at least 260'),
    ('mqar', {'vocab_size': 17}, 'vocab_size=17 is too small.* at least 18'),
    ('copy', {'num_pairs': 128}, 'seq_len=256 is too small.* at least 257'),
    ('copy', {'vocab_size': 2}, 'vocab_size=2 is too small.* at least 3'),
    ('symbols', {'num_pairs': 300}, 'vocab_size=256 is too small'),
    ('mqar', {'power': float('nan')}, 'data.task.power=nan: .* give a number'),
    ('mqar', {'power': float('inf')}, 'data.task.power=inf: .* give a number'),
    ('mqar', {'power': 1e308}, 'data.task.power=1e'),
    ('mqar', {'power': -1e308}, 'data.task.power=-1e'),
    ('fuzzy_recall', {'vocab_size': 6}, 'recall; give at least 7'),
    ('noisy_recall', {'vocab_size': 17}, 'recall; give at least 18'),
    (
      'copy',
      {'vocab_size': 10**12},
      'vocab_size=1000000000000: give',
    ),
  ],
)
def test_errors(task, options, message):
  with pytest.raises(ValueError, match=message):
    open_data(make_config(task, **options)).train_iterator()


@pytest.mark.parametrize(
  ('task', 'options'),
  [
    ('mqar', {'num_pairs': 64, 'vocab_size': 130}),
    ('copy', {'num_pairs': 127, 'vocab_size': 3}),
    ('symbols', {'num_pairs': 256}),
  ],
)
def test_borders(task, options):
  batch = next(open_data(make_config(task, **options)).train_iterator())
  assert batch['weights'].sum() > 0


def test_remapping_structure():
  """Answers are those of a dictionary that is emptied every 60 tokens."""
  config = make_config('remapping', vocab_size=40, num_pairs=6)
  config.data.seq_len = 200
  source, changed = generated.TaskSource(config, 'train'), 0
  for i in range(50):
    example = source[i]
    inputs, weights = example['inputs'], example['weights']
    known, before = {}, {}
    for t in range(0, 200, 2):
      if t % 60 == 0:
        before, known = known, {}
      key, value = inputs[t : t + 2]
      assert 1 <= key <= 6 and 20 <= value < 40
      assert weights[t] == (key in known) and weights[t + 1] == 0
      if weights[t]:
        assert example['targets'][t] == value == known[key]
        changed += key in before and before[key] != value
      known[key] = value
    assert weights[2] == 1
  assert changed > 1000


def test_aliases_structure():
  """Answers are those of statements carried out one by one."""
  config = make_config('aliases', vocab_size=64, num_pairs=5)
  config.data.seq_len = 50
  source, depths = generated.TaskSource(config, 'train'), []
  for i in range(100):
    example = source[i]
    tokens, means, depth, t = example['inputs'].tolist(), {}, {}, 0
    asked = []
    while t < 50 and tokens[t]:
      if tokens[t] == 1:
        new, old = tokens[t + 1 : t + 3]
        assert new not in means
        means[new], depth[new] = means[old], depth[old] + 1
        t += 3
      elif tokens[t] == 2:
        name = tokens[t + 1]
        assert example['targets'][t + 1] == means[name]
        asked.append(t + 1)
        depths.append(depth[name])
        t += 2
      else:
        means[tokens[t]], depth[tokens[t]] = tokens[t + 1], 0
        t += 2
    assert np.flatnonzero(example['weights']).tolist() == asked
    assert len(asked) == 10 and t == 45
  assert 0 == min(depths) < 3 < max(depths)


@pytest.mark.parametrize('things', [3, 5])
def test_permutations_structure(things):
  """Answers are products of matrices."""
  config = make_config(f's{things}', vocab_size=130, max_length=20)
  config.data.seq_len = 24
  source = generated.TaskSource(config, 'train')
  every = sorted(itertools.permutations(range(things)))
  # Row vectors: x @ matrix(p) moves what is at i to p[i].
  matrices = [np.eye(things, dtype=int)[list(p)] for p in every]
  lengths = set()
  for i in range(30):
    example = source[i]
    length = int(example['weights'].sum())
    lengths.add(length)
    product = np.eye(things, dtype=int)
    for t in range(length):
      product = product @ matrices[example['inputs'][t] - 1]
      np.testing.assert_array_equal(product, matrices[example['targets'][t]])
    assert not example['inputs'][length:].any()
  assert 2 <= min(lengths) < 6 and 16 < max(lengths) <= 20
