"""Delta gradient descent against its minimiser and its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimizers


def token(seed=0, i=4, o=3):
  """(kernel, input, error) of one token."""
  rng = np.random.default_rng(seed)
  return (
    rng.standard_normal((i, o)),
    rng.standard_normal(i),
    rng.standard_normal(o),
  )


@pytest.mark.parametrize('eta', [0.1, 1.0, 100.0])
def test_one_token_is_the_minimiser_of_eq_56(eta, x64):
  w, u, g = token()
  tx = optimizers.delta_gradient_descent(eta)
  updates, _ = tx.update(
    jnp.outer(u, g), tx.init(w), w, inputs=optimizers.second_moments(u[None])
  )
  # Normal equations of 1/2 |u K + g|^2 + 1 / (2 eta) |K - W|^2.
  left = np.outer(u, u) + np.eye(4) / eta
  minimiser = np.linalg.solve(left, w / eta - np.outer(u, g))
  np.testing.assert_allclose(w + updates, minimiser, rtol=1e-9)


def test_ten_steps_of_a_batch_are_the_transcription(x64):
  rng = np.random.default_rng(1)
  w = rng.standard_normal((2, 4, 3))
  tx = optimizers.delta_gradient_descent(0.3, retention=0.9)
  ours, state, expected = jnp.asarray(w), tx.init(w), w.copy()
  update = jax.jit(tx.update)
  for _ in range(10):
    u = rng.standard_normal((2, 16, 4))
    g = rng.standard_normal((2, 16, 3))
    grad = np.einsum('sni,sno->sio', u, g) / 16
    moment = np.einsum('sni,snj->sij', u, u) / 16
    updates, state = update(grad, state, ours, inputs=moment)
    ours = optax.apply_updates(ours, updates)
    for j in range(2):
      step = 0.3 / (1 + 0.3 * np.mean((u[j] ** 2).sum(-1)))
      expected[j] = (0.9 * np.eye(4) - step * moment[j]) @ expected[j]
      expected[j] -= step * grad[j]
  np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_second_moments(x64):
  u = np.random.default_rng(2).standard_normal((5, 6, 3))
  moments = optimizers.second_moments({'a': jnp.asarray(u)})
  expected = np.mean([np.outer(x, x) for row in u for x in row], axis=0)
  np.testing.assert_allclose(moments['a'], expected, rtol=1e-12)


def test_reduces_to_gradient_descent(x64):
  rng = np.random.default_rng(3)
  params = {'w': jnp.asarray(rng.standard_normal((4, 3))), 'b': jnp.ones(3)}
  theirs = optax.sgd(lambda t: 0.1 / (t + 1))
  ours = [
    (
      optimizers.generalized_gradient_descent(
        lambda t: 0.1 / (t + 1), objective='dot'
      ),
      {},
    ),
    (
      optimizers.delta_gradient_descent(lambda t: 0.1 / (t + 1)),
      {'inputs': {'w': None, 'b': None}},
    ),
  ]
  for tx, extra in ours:
    state, other = tx.init(params), theirs.init(params)
    for _ in range(20):
      grads = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape)), params
      )
      x, state = tx.update(grads, state, params, **extra)
      y, other = theirs.update(grads, other, params)
      for name in params:
        np.testing.assert_allclose(x[name], y[name], rtol=1e-6)


def test_an_objective_of_ones_own(x64):
  w, u, g = token()
  moment = jnp.outer(u, u)
  tx = optimizers.generalized_gradient_descent(
    0.1,
    lambda grad, kernel, moment: grad + 2 * moment @ kernel,
    normalize=False,
  )
  grad = jnp.outer(u, g)
  updates, _ = tx.update(grad, tx.init(w), w, inputs=moment)
  np.testing.assert_allclose(updates, -0.1 * (grad + 2 * moment @ w))


def test_inside_other_transformations():
  params = {'w': jnp.ones((3, 2)), 'b': jnp.ones(2)}
  grads = jax.tree.map(jnp.ones_like, params)
  inputs = {'w': jnp.eye(3), 'b': None}
  alone = optimizers.delta_gradient_descent(0.1)
  expected, _ = alone.update(grads, alone.init(params), params, inputs=inputs)
  labels = {'w': 'delta', 'b': 'other'}
  cases = {
    'chain': optax.chain(optax.scale(1.0), alone),
    'partition': optax.partition(
      {'delta': alone, 'other': optax.sgd(0.1)}, labels
    ),
    'steps': optax.MultiSteps(alone, 1),
  }
  for name, tx in cases.items():
    updates, _ = tx.update(grads, tx.init(params), params, inputs=inputs)
    for leaf in params:
      np.testing.assert_allclose(updates[leaf], expected[leaf], err_msg=name)


def test_errors():
  w = jnp.ones((3, 2))
  tx = optimizers.delta_gradient_descent(0.1)
  with pytest.raises(ValueError, match='needs the inputs of the layers'):
    tx.update(w, tx.init(w), w)
  with pytest.raises(ValueError, match='params'):
    tx.update(w, tx.init(w), inputs=w)
  with pytest.raises(ValueError, match=r'has shape \(2, 2\).*shape \(3, 3\)'):
    tx.update(w, tx.init(w), w, inputs=jnp.eye(2))
  with pytest.raises(ValueError, match="objective='l1' is unknown"):
    optimizers.generalized_gradient_descent(0.1, 'l1')
