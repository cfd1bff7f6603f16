"""What continual learners compute, against NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from hope.continual import bag_of_words, class_mean, ewc
from hope.continual.reservoir import Reservoir

# ------------------------------------------------------------------ class mean


def test_scores_are_cosines_of_means():
  rng = np.random.default_rng(0)
  features, labels = rng.normal(size=(40, 6)), rng.integers(4, size=40)
  queries, counted = rng.normal(size=(9, 6)), rng.integers(2, size=40)
  with jax.enable_x64(True):
    means = class_mean.Means(jnp.zeros((5, 6)), jnp.zeros(5))
    for part in (slice(0, 15), slice(15, 40)):  # in any pieces
      means = class_mean.add(
        means, features[part], labels[part], counted[part].astype(float)
      )
    got = np.asarray(class_mean.scores(means, jnp.asarray(queries)))
  for c in range(4):
    mean = features[(labels == c) & (counted == 1)].mean(axis=0)
    for i, query in enumerate(queries):
      cosine = mean @ query / np.linalg.norm(mean) / np.linalg.norm(query)
      assert got[i, c] == pytest.approx(cosine, abs=1e-12)
  assert (got[:, 4] == -np.inf).all()  # a class without examples


def test_features_of_nothing_have_no_direction():
  means = class_mean.Means(jnp.ones((2, 3)), jnp.ones(2))
  assert (class_mean.scores(means, jnp.zeros((1, 3))) == 0).all()


# ------------------------------------------------------------------------- EWC


def trees(seed):
  """Two leaves of numbers of any sign, and two of numbers above 0."""
  rng = np.random.default_rng(seed)
  params = {'a': rng.normal(size=(3, 2)), 'b': rng.normal(size=4)}
  return params, jax.tree.map(lambda x: rng.random(x.shape), params)


def separate(tasks, params):
  """Kirkpatrick's sum over tasks and parameters, a term after another."""
  total = 0.0
  for theta, fisher in tasks:
    for name, x in params.items():
      for i in np.ndindex(x.shape):
        total += 0.5 * fisher[name][i] * (x[i] - theta[name][i]) ** 2
  return total


def test_one_penalty_is_that_of_all_tasks():
  tasks = [trees(seed) for seed in range(3)]
  # Of no matter to any task, and to the first two.
  for _, fisher in tasks:
    fisher['a'][0, 0] = 0
  tasks[0][1]['b'][0] = tasks[1][1]['b'][0] = 0
  places = [trees(seed)[0] for seed in (10, 11)]
  with jax.enable_x64(True):
    penalty = ewc.nothing(jax.tree.map(jnp.asarray, tasks[0][0]))
    assert ewc.value(penalty, places[0]) == 0
    for theta, fisher in tasks:
      penalty = ewc.add_task(penalty, fisher, theta)
    got = [float(ewc.value(penalty, place)) for place in places]
  wanted = [separate(tasks, place) for place in places]
  # All but a constant.
  assert got[0] - got[1] == pytest.approx(wanted[0] - wanted[1], rel=1e-12)


def test_online_penalty_decays_and_moves():
  tasks = [trees(seed) for seed in range(3)]
  place = trees(10)[0]
  with jax.enable_x64(True):
    penalty = ewc.nothing(jax.tree.map(jnp.asarray, tasks[0][0]))
    for theta, fisher in tasks:
      penalty = ewc.move(penalty, fisher, theta, decay=0.7)
    got = float(ewc.value(penalty, place))
  precision = jax.tree.map(
    lambda a, b, c: 0.49 * a + 0.7 * b + c, *(fisher for _, fisher in tasks)
  )
  wanted = separate([(tasks[-1][0], precision)], place)
  assert got == pytest.approx(wanted, rel=1e-12)


def test_fisher_is_the_mean_of_squares_not_the_square_of_the_mean():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(7, 3)), rng.integers(2, size=7)
  kernel = rng.normal(size=(3, 2))
  counted = np.array([1, 1, 0, 1, 1, 1, 0.0])

  def losses(params, rows):
    logs = jax.nn.log_softmax(rows['x'] @ params)
    return -logs[jnp.arange(len(logs)), rows['y']], jnp.ones(len(logs))

  with jax.enable_x64(True):
    rows = {'x': jnp.asarray(x), 'y': jnp.asarray(y)}
    got = ewc.fisher(losses, jnp.asarray(kernel), rows, jnp.asarray(counted))
  wanted = np.zeros((3, 2))
  for i in np.flatnonzero(counted):
    p = np.exp(x[i] @ kernel) / np.exp(x[i] @ kernel).sum()
    wanted += np.outer(x[i], p - np.eye(2)[y[i]]) ** 2 / counted.sum()
  np.testing.assert_allclose(got, wanted, rtol=1e-12)


# ------------------------------------------------------------------- reservoir


def test_every_example_is_as_likely_to_be_kept():
  kept = np.zeros(30)
  for seed in range(2000):
    rng = np.random.default_rng(seed)
    reservoir = Reservoir({'x': np.zeros(0, np.int32)}, 10)
    for part in np.split(np.arange(30, dtype=np.int32), [3, 12]):
      reservoir.add({'x': part}, rng)
    assert len(set(reservoir.rows['x'].tolist())) == 10
    kept[reservoir.rows['x']] += 1
  # A third each; the standard deviation of a share is 0.0105.
  assert abs(kept / 2000 - 1 / 3).max() < 0.04


def test_a_reservoir_that_is_not_full_gives_what_it_has():
  reservoir = Reservoir({'x': np.zeros((0, 2), np.float32)}, 5)
  rng = np.random.default_rng(0)
  assert reservoir.draw(3, rng)['x'].shape == (0, 2)
  reservoir.add({'x': np.array([[1, 2], [3, 4]], np.float32)}, rng)
  drawn = reservoir.draw(3, rng)['x']
  assert sorted(drawn.tolist()) == [[1, 2], [3, 4]]


# ---------------------------------------------------------------- bag of words

TEXTS = (
  'What is my balance?',
  "I can't see the balance of my card, my old card",
  'a I x',
  'Card, card; CARD! Überweisung',
  'transfer 100 dollars to my other card',
)


@pytest.mark.parametrize('ngrams', [1, 2, 3])
def test_features_are_those_of_scikit_learn(ngrams):
  reference = TfidfVectorizer(ngram_range=(1, ngrams))
  reference.fit(TEXTS)
  queries = (*TEXTS, 'unheard of', 'my card card balance of nothing')
  known = bag_of_words.TfIdf(TEXTS, ngrams)
  assert list(known.weights) == list(reference.get_feature_names_out())
  most = known.most(queries)
  rows = known.encode(queries, most)
  got = np.zeros((len(queries), len(known.weights)))
  for i in range(len(queries)):
    np.add.at(got[i], rows['terms'][i], rows['values'][i])
  wanted = reference.transform(queries).toarray()
  np.testing.assert_allclose(got, wanted, atol=1e-7)
  with pytest.raises(ValueError, match='different terms; raise most='):
    known.encode(queries, most - 1)


def test_scores_are_those_of_the_features():
  known = bag_of_words.TfIdf(TEXTS, 2)
  model = bag_of_words.model(known, 3, None, known.most(TEXTS))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape), model.params)
  rows = model.encode([(text, i % 3) for i, text in enumerate(TEXTS)])
  logits = np.asarray(model.features(params, rows)) @ params['kernel']
  logits += params['bias']
  np.testing.assert_allclose(model.scores(params, rows), logits, atol=1e-5)
  nats, targets = model.losses(params, rows)
  wanted = np.log(np.exp(logits).sum(-1)) - logits[range(5), rows['label']]
  np.testing.assert_allclose(nats, wanted, atol=1e-5)
  assert (targets == 1).all()
