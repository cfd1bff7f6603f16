"""Momenta against NumPy in float64 and against what they reduce to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_cases
import pytest

import optimizers


def params():
  return {
    'w': jnp.zeros((4, 3)),
    'wide': jnp.zeros((2, 5)),
    'stack': jnp.zeros((2, 3, 4)),
    'b': jnp.zeros(3),
    's': jnp.zeros(()),
  }


def gradients(count):
  return optimizer_cases.gradients(params(), count)


def run(tx, sequence):
  return optimizer_cases.run(tx, params(), sequence)[0]


def assert_equal(ours, theirs, rtol):
  for x, y in zip(ours, theirs, strict=True):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), x, y
    )


def by_hand(sequence, decay, erase, name):
  """m of one leaf by Eq. 49, a matrix at a time and entry by entry."""
  as_matrices = {
    'w': lambda x: x[None],
    'wide': lambda x: x[None],
    'stack': lambda x: x,
    'b': lambda x: x.reshape(1, -1, 1),
    's': lambda x: x.reshape(1, 1, 1),
  }[name]
  m, out = 0.0 * as_matrices(np.asarray(sequence[0][name])), []
  for g in sequence:
    g = as_matrices(np.asarray(g[name]))
    new = np.zeros_like(m)
    for j in range(len(m)):
      eps = erase / (1 + erase * (g[j] ** 2).sum())
      left = decay * np.eye(m.shape[1]) - eps * g[j] @ g[j].T
      new[j] = left @ m[j] + g[j]
    m = new
    out.append(m.reshape(np.shape(sequence[0][name])))
  return out


@pytest.mark.parametrize('erase', [0.0, 0.3, 1.0, 1e6])
def test_delta_momentum_is_the_transcription(erase, x64):
  sequence = gradients(10)
  out = run(optimizers.scale_by_delta_momentum(0.8, erase), sequence)
  for name in params():
    np.testing.assert_allclose(
      [u[name] for u in out],
      by_hand(sequence, 0.8, erase, name),
      rtol=1e-10,
      atol=1e-12,
    )


def test_what_is_along_the_gradient_is_forgotten(x64):
  """With a large erase, m along g is (decay - 1) of what it was, plus g."""
  g = jnp.array([3.0, 4.0])
  tx = optimizers.scale_by_delta_momentum(0.9, 1e12)
  _, state = tx.update(g, tx.init(g))
  _, state = tx.update(g, state)
  np.testing.assert_allclose(state.trace, 0.9 * g, rtol=1e-9)


@pytest.mark.parametrize(
  'ours',
  [
    optimizers.scale_by_preconditioned_momentum(0.9),
    optimizers.scale_by_preconditioned_momentum(0.9, lambda g: g),
    optimizers.scale_by_delta_momentum(0.9, 0.0),
    optimizers.scale_by_feature_momentum(lambda g: g, 0.9),
  ],
  ids=['precondition', 'function', 'erase', 'feature'],
)
def test_reduces_to_momentum(ours):
  sequence = gradients(20)
  assert_equal(run(ours, sequence), run(optax.trace(0.9), sequence), 1e-6)


def test_a_preconditioner_keeps_its_state(x64):
  sequence = gradients(20)
  ours = optimizers.scale_by_preconditioned_momentum(0.9, optax.scale_by_rms())
  theirs = optax.chain(optax.scale_by_rms(), optax.trace(0.9))
  assert_equal(run(ours, sequence), run(theirs, sequence), 1e-6)


def test_feature_then_precondition(x64):
  sequence = gradients(5)
  ours = optimizers.scale_by_feature_momentum(
    jnp.tanh, 0.7, lambda u: jax.tree.map(lambda x: 2 * x, u)
  )
  m = 0.0
  for g, u in zip(sequence, run(ours, sequence), strict=True):
    m = 0.7 * m + 2 * np.tanh(np.asarray(g['w']))
    np.testing.assert_allclose(u['w'], m, rtol=1e-12)


def test_nonlinear_output_is_muon(x64):
  """Eq. 52: a linear memory read through Newton-Schulz."""
  only = lambda tree: {'w': tree['w']}
  sequence = [only(g) for g in gradients(20)]
  ours = optimizers.scale_by_preconditioned_momentum(
    0.95,
    output=lambda m: optimizers.orthogonalize(m, optimizers.matrix_axes(m)),
  )
  theirs = optax.contrib.scale_by_muon(
    nesterov=False,
    weight_dimension_numbers={'w': optimizers.MatrixAxes(0, 1)},
  )
  state, other = ours.init(only(params())), theirs.init(only(params()))
  for g in sequence:
    x, state = ours.update(g, state)
    y, other = theirs.update(g, other)
    np.testing.assert_allclose(x['w'], y['w'], atol=1e-6)


def test_the_trace_has_the_type_that_is_asked_for():
  w = jnp.ones((2, 2), jnp.bfloat16)
  tx = optimizers.scale_by_delta_momentum(accumulator_dtype=jnp.float32)
  updates, state = tx.update(w, tx.init(w))
  assert updates.dtype == jnp.bfloat16
  assert state.trace.dtype == jnp.float32


RULES = {
  'preconditioned': optimizers.preconditioned_momentum,
  'feature': optimizers.feature_momentum,
  'delta': optimizers.delta_momentum,
}


@pytest.mark.parametrize('size', [0.01, 1.0, 100.0])
@pytest.mark.parametrize('shape', [(), (3,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize('rule', RULES)
def test_descends(rule, shape, size):
  """|w|^2 / 2 falls from any size, and no value is ever non-finite."""
  tx = RULES[rule](0.1)
  w = size * jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], shape))

  def step(carry, _):
    w, state = carry
    updates, state = tx.update(w, state, w)
    return (optax.apply_updates(w, updates), state), jnp.sum(w**2) / 2

  (w, _), losses = jax.lax.scan(step, (w, tx.init(w)), length=1000)
  assert np.isfinite(losses).all()
  assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize('rule', RULES)
def test_weight_decay_and_schedule(rule):
  w = {'w': jnp.ones((2, 2))}
  zero = {'w': jnp.zeros((2, 2))}
  tx = RULES[rule](lambda count: 0.1 * (count + 1), weight_decay=0.5)
  state = tx.init(w)
  for t in range(3):
    updates, state = tx.update(zero, state, w)
    np.testing.assert_allclose(updates['w'], -0.05 * (t + 1), rtol=1e-6)


def test_erase_is_no_less_than_zero():
  with pytest.raises(ValueError, match=r'erase=-1\.0 must be .* at least 0'):
    optimizers.delta_momentum(0.1, erase=-1.0)
