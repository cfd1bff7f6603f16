"""Learners: each rule's updates, and going on from a state that was kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope import state_file
from hope.continual import learners
from hope.continual.learner import Model
from hope.continual.options import LearnerOptions

WORDS = 6
RULES = (*learners._RULES, 'joint')


def tiny_model(rate=0.5):
  """A linear classifier of texts like '0 3 5' into three classes."""

  def encode(examples):
    x = np.zeros((len(examples), WORDS), np.float32)
    for i, (text, _) in enumerate(examples):
      x[i, [int(word) for word in text.split()]] = 1
    return {'x': x, 'label': np.array([y for _, y in examples], np.int32)}

  def scores(params, rows):
    return rows['x'] @ params

  def losses(params, rows):
    nats = optax.softmax_cross_entropy_with_integer_labels(
      scores(params, rows), rows['label']
    )
    return nats, jnp.ones_like(nats)

  return Model(
    params=jnp.zeros((WORDS, 3)),
    optimizer=optax.sgd(rate),
    encode=encode,
    losses=losses,
    scores=scores,
    features=lambda params, rows: rows['x'],
  )


def stream(number, seed=0, classes=(0, 1, 2)):
  rng = np.random.default_rng(seed)
  labels = rng.choice(classes, number).tolist()
  return [(f'{y} {rng.integers(3, WORDS)}', y) for y in labels]


def make(rule, **options):
  given = {'batch': 4, 'buffer': 5, 'fisher_examples': 6} | options
  options = LearnerOptions(rule=rule, **given)
  return learners.make(tiny_model(), options, seed=1, examples=40)


def sgd(examples, kernel, rate=0.5):
  """One step of gradient descent in NumPy, on the mean over examples."""
  rows = tiny_model().encode(examples)
  x = rows['x'].astype(np.float64)
  p = np.exp(x @ kernel)
  p /= p.sum(axis=-1, keepdims=True)
  grad = x.T @ (p - np.eye(3)[rows['label']]) / len(examples)
  return kernel - rate * grad


def test_naive_is_gradient_descent_on_each_batch():
  examples, kernel = stream(11), np.zeros((WORDS, 3))
  learner = make('naive')
  learner.learn(examples)  # the last update has 3 examples
  for i in (0, 4, 8):
    kernel = sgd(examples[i : i + 4], kernel)
  np.testing.assert_allclose(learner.params, kernel, atol=1e-6)


def test_frozen_learns_nothing():
  learner = make('frozen')
  learner.learn(stream(11))
  learner.end_segment()
  assert (learner.params == 0).all()


def test_replay_learns_as_many_kept_as_new():
  examples, kernel = stream(8), np.zeros((WORDS, 3))
  learner = make('replay', buffer=4)
  learner.learn(examples[:4])
  kernel = sgd(examples[:4], kernel)  # nothing was kept yet
  np.testing.assert_allclose(learner.params, kernel, atol=1e-6)
  learner.learn(examples[4:])  # and all four of the first
  kernel = sgd(examples, kernel)
  np.testing.assert_allclose(learner.params, kernel, atol=1e-6)


@pytest.mark.parametrize('rule', ['ewc', 'online_ewc'])
def test_a_penalty_of_nothing_changes_nothing(rule):
  naive, other = make('naive'), make(rule, penalty=0.0)
  for part in (stream(9, 0), stream(9, 1)):
    for learner in (naive, other):
      learner.learn(part)
      learner.end_segment()
  np.testing.assert_allclose(other.params, naive.params, atol=1e-6)


def test_the_penalty_is_on_the_path_of_gradient_descent():
  first, second = stream(6, 0), stream(4, 1)
  learner = make('ewc', penalty=3.0)
  learner.learn(first)
  learner.end_segment()
  before = np.asarray(learner.params, np.float64)
  precision = np.zeros_like(before)
  for example in first:  # all six are of the estimate
    precision += (2 * (sgd([example], before) - before)) ** 2 / 6
  learner.learn(second)
  learner.learn(second)
  # At the center the penalty has no gradient, afterwards it has.
  kernel = sgd(second, before)
  kernel = sgd(second, kernel) - 0.5 * 3.0 * precision * (kernel - before)
  np.testing.assert_allclose(learner.params, kernel, atol=1e-6)


def test_joint_training_starts_anew_on_all_that_was_seen():
  first, second = stream(8, 0), stream(4, 1)
  learner = make('joint', batch=12, passes=2)
  for part in (first, second):
    learner.learn(part)
    learner.end_segment()
  kernel = np.zeros((WORDS, 3))
  for _ in range(2):
    kernel = sgd(first + second, kernel)
  np.testing.assert_allclose(learner.params, kernel, atol=1e-6)
  with pytest.raises(ValueError, match='more than the 40 examples'):
    learner.learn(stream(29))


def test_class_means_do_not_depend_on_the_order():
  examples = stream(20)
  found = []
  for order in (examples, examples[::-1]):
    learner = make('class_mean')
    learner.learn(order)
    found.append(learner.scores([text for text, _ in examples]))
  np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize('rule', RULES)
def test_goes_on_from_a_state_bit_by_bit(rule, tmp_path):
  parts = stream(7, 0), stream(6, 1), stream(9, 2)
  whole, first, second = make(rule), make(rule), make(rule)
  for learner in (whole, first):
    learner.learn(parts[0])
    learner.end_segment()
    learner.learn(parts[1])
  header = state_file.Header('', '')
  state_file.write(tmp_path / 'state.npz', first.state(), header)
  arrays = state_file.read(tmp_path / 'state.npz')[1]
  kept = state_file.fill(second.state(), arrays)
  second.restore(kept)
  for learner in (whole, second):
    learner.learn(parts[2])
    learner.end_segment()
  texts = [text for text, _ in stream(5, 3)]
  np.testing.assert_array_equal(second.scores(texts), whole.scores(texts))
  jax.tree.map(np.testing.assert_array_equal, second.state(), whole.state())


@pytest.mark.parametrize('rule', ['naive', 'replay', 'joint', 'class_mean'])
def test_learns(rule):
  learner = make(rule, passes=5)
  for seed in range(3):
    learner.learn(stream(12, seed))
  learner.end_segment()
  test = stream(30, 9)
  found = learner.scores([text for text, _ in test]).argmax(axis=1)
  assert (found == [label for _, label in test]).all()


def test_replay_keeps_what_naive_learning_loses():
  # The last word alone tells the classes of the first task apart, and means
  # another class in the second.
  first = [(f'{5 - y}', y) for y in (0, 1)] * 40
  second = [(f'{5 - y} {y}', 2) for y in (0, 1)] * 40
  kept = {}
  for rule in ('naive', 'replay'):
    learner = make(rule, buffer=20)
    learner.learn(first)
    learner.learn(second)
    found = learner.scores([text for text, _ in first]).argmax(axis=1)
    kept[rule] = (found == [label for _, label in first]).mean()
  assert kept == {'naive': 0, 'replay': 1}


def test_loss_is_the_mean_over_targets():
  learner = make('frozen', score_batch=4)
  assert learner.loss(stream(11)) == pytest.approx(np.log(3), rel=1e-6)


def test_refuses():
  with pytest.raises(ValueError, match="'reply' is unknown.*mean replay"):
    make('reply')
  with pytest.raises(ValueError, match='needs a model with classes'):
    model = tiny_model()
    model = Model(model.params, model.optimizer, model.encode, model.losses)
    options = LearnerOptions(rule='class_mean')
    learners.make(model, options, seed=0, examples=1)
  options = LearnerOptions(rule='naive')
  learner = learners.make(model, options, seed=0, examples=1)
  with pytest.raises(ValueError, match='no classes; ask for its loss'):
    learner.scores(['0'])
