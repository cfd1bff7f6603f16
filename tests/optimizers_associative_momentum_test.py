"""Associative momentum against regressions in NumPy, Adam and AdaGrad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import gradients, run
import pytest

import optimizers


def params():
  return {'w': jnp.zeros((4, 3)), 'b': jnp.zeros(3), 's': jnp.zeros(())}


def assert_equal(ours, theirs, rtol):
  for x, y in zip(ours, theirs, strict=True):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9), x, y
    )


def test_entry_by_entry_it_is_the_ridge_regression(x64):
  """With one decay for both sums, least squares on the weighted gradients."""
  sequence, decay, eps = gradients(params(), 10), 0.8, 0.3
  tx = optimizers.scale_by_associative_momentum(
    decay, decay, eps=eps, debias=False
  )
  out, _ = run(tx, params(), sequence)
  for t in range(10):
    weights = (1 - decay) * decay ** np.arange(t, -1.0, -1.0)
    g = np.stack([np.asarray(x['b']) for x in sequence[: t + 1]])
    for j in range(3):
      statistic = np.sqrt(np.sum(weights * g[:, j] ** 2))
      # Rows sqrt(w) g m = sqrt(w) P, and one sqrt(eps) m = 0.
      rows = np.append(np.sqrt(weights) * g[:, j], np.sqrt(eps))
      wanted = np.append(np.sqrt(weights) * statistic, 0)
      (m,), *_ = np.linalg.lstsq(rows[:, None], wanted, rcond=None)
      np.testing.assert_allclose(out[t]['b'][j], m, rtol=1e-10)


@pytest.mark.parametrize('b2', [0.95, 1.0])
@pytest.mark.parametrize('shape', [(4, 3), (3, 6), (2, 4, 3)])
def test_outer_products_are_the_transcription(shape, b2, x64):
  """H^(-1/2) M, by a singular value decomposition of all gradients."""
  w = jnp.zeros(shape)
  sequence = gradients(w, 10)
  tx = optimizers.scale_by_associative_momentum(
    0.9, b2, 'outer_product', eps=0.0, debias=False
  )
  out = np.stack(run(tx, w, sequence)[0])
  out = out.reshape(10, -1, *shape[-2:])
  g = np.stack(sequence).reshape(10, -1, *shape[-2:])
  for j in range(g.shape[1]):
    m = np.zeros(shape[-2:])
    for t in range(10):
      m = 0.9 * m + 0.1 * g[t, j]
      add = 1.0 if b2 == 1 else 1 - b2
      columns = [np.sqrt(add * b2 ** (t - s)) * g[s, j] for s in range(t + 1)]
      u, s, _ = np.linalg.svd(np.concatenate(columns, 1), full_matrices=False)
      known = s > 1e-7 * s[0]
      root = u[:, known] @ np.diag(1 / s[known]) @ u[:, known].T
      np.testing.assert_allclose(out[t, j], root @ m, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('rates', [(0.9, 0.999), (0.8, 0.9)])
def test_reduces_to_adam(rates, x64):
  sequence = gradients(params(), 20)
  ours = optimizers.scale_by_associative_momentum(*rates)
  theirs = optax.scale_by_adam(*rates)
  assert_equal(
    run(ours, params(), sequence)[0], run(theirs, params(), sequence)[0], 1e-6
  )


def test_reduces_to_adagrad():
  """b1 = 0 and b2 = 1: the gradient by the root of the sum of its squares."""
  sequence = gradients(params(), 20)
  ours = optimizers.scale_by_associative_momentum(0.0, 1.0)
  theirs = optax.scale_by_rss(initial_accumulator_value=0.0, eps=0.0)
  assert_equal(
    run(ours, params(), sequence)[0], run(theirs, params(), sequence)[0], 1e-6
  )


def test_leaves_that_are_no_matrices_take_squares():
  sequence = gradients(params(), 3)
  outer = optimizers.scale_by_associative_momentum(statistic='outer_product')
  squares = optimizers.scale_by_associative_momentum()
  x, y = (run(tx, params(), sequence)[0][-1] for tx in (outer, squares))
  np.testing.assert_array_equal(x['b'], y['b'])
  assert jnp.abs(x['w'] - y['w']).max() > 0.1


def test_state_has_the_sizes_and_types_of_its_docstring():
  w = jnp.ones((2, 5, 3), jnp.bfloat16)
  tx = optimizers.scale_by_associative_momentum(
    statistic='outer_product', accumulator_dtype=jnp.float32
  )
  state = tx.init(w)
  assert state.root.shape == (2, 5, 5)
  assert state.mu.dtype == jnp.float32
  assert tx.update(w, state)[0].dtype == jnp.bfloat16


def test_errors():
  with pytest.raises(ValueError, match="statistic='cubes' must be one of"):
    optimizers.associative_momentum(0.1, statistic='cubes')
