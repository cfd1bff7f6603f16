"""Gradients of any size, no size, NaN or of another kind, for every rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import CASES, gradients, run
import pytest

import optimizers
from optimizers import matrices

every = pytest.mark.parametrize('case', CASES.values(), ids=CASES)
# Powers of two, so that nothing is rounded but by the rule.
LARGE = [(jnp.float32, 2.0**43), (jnp.float32, 2.0**66)]
LARGE += [
  (jnp.float32, 2.0**123),
  (jnp.float16, 64.0),
  (jnp.bfloat16, 2.0**123),
]
# Rules that are homogeneous: of degree 1, or 0 (an update is of one size).
DEGREES = {
  'preconditioned_momentum': 1,
  'deep_momentum': 1,
  'associative_momentum': 0,
  'outer_products': 0,
  'm3': 0,
}


def matrix(dtype):
  return {'w': jnp.zeros((3, 4), dtype)}


def scaled(sequence, size):
  return [
    {k: (size * x).astype(x.dtype) for k, x in g.items()} for g in sequence
  ]


@pytest.mark.parametrize(('dtype', 'size'), LARGE)
@pytest.mark.parametrize('name', DEGREES)
def test_the_size_of_gradients_does_not_turn_the_update(name, dtype, size):
  params = matrix(dtype)
  sequence = gradients(params, 3)
  tx = CASES[name].make(1.0)
  out, _ = run(tx, params, scaled(sequence, size))
  expected, _ = run(tx, params, sequence)
  for x, y in zip(out, expected, strict=True):
    np.testing.assert_allclose(
      np.asarray(x['w'], np.float64) / size ** DEGREES[name],
      np.asarray(y['w'], np.float64),
      rtol=1e-2 if dtype != jnp.float32 else 1e-4,
      atol=1e-2 if dtype != jnp.float32 else 1e-4,
    )


@pytest.mark.parametrize(('dtype', 'size'), LARGE)
def test_delta_momentum_forgets_at_any_size(dtype, size):
  """In the limit, what m holds along G is multiplied by decay - P."""
  params = matrix(dtype)
  sequence = gradients(params, 6)
  out, _ = run(
    optimizers.scale_by_delta_momentum(0.9), params, scaled(sequence, size)
  )
  m = np.zeros((3, 4))
  for g, u in zip(sequence, out, strict=True):
    g = np.asarray(g['w'], np.float64)
    m = 0.9 * m - g @ g.T @ m / (size**-2 + np.sum(g**2)) + g
    np.testing.assert_allclose(
      np.asarray(u['w'], np.float64) / size,
      m,
      rtol=1e-2 if dtype != jnp.float32 else 1e-4,
      atol=2e-2 if dtype != jnp.float32 else 1e-4,
    )


@pytest.mark.parametrize('size', [1e-30, 1e-10, 1e20, 1e37])
def test_newton_schulz_does_not_know_the_size(size):
  x = gradients(jnp.zeros((2, 3, 5)), 1)[0]
  np.testing.assert_allclose(
    optimizers.newton_schulz(size * x), optimizers.newton_schulz(x), atol=1e-4
  )


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16, jnp.float32])
def test_newton_schulz_in_every_type(dtype):
  np.testing.assert_array_equal(
    optimizers.newton_schulz(jnp.zeros((3, 4), dtype)), 0
  )
  # Sums of squares of this many entries overflow in float16.
  large = 100 * gradients(jnp.zeros((64, 128), dtype), 1)[0]
  values = jnp.linalg.svd(
    optimizers.newton_schulz(large).astype(jnp.float32), compute_uv=False
  )
  assert 0.3 < values.min()
  assert values.max() < 1.4


def test_the_second_moment_acts_at_all_common_sizes():
  """Gradients of 1e-5 give the update that those of 1 give."""
  params = matrix(jnp.float32)
  sequence, tx = (
    gradients(params, 5),
    optimizers.scale_by_m3(second_moment=True),
  )
  plain = optimizers.scale_by_m3()
  out, without = (run(x, params, sequence)[0][-1]['w'] for x in (tx, plain))
  small = run(tx, params, scaled(sequence, 1e-5))[0][-1]['w']
  cosine = lambda a, b: jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
  assert cosine(out, without) < 0.97
  np.testing.assert_allclose(small, out, atol=5e-3)


@every
def test_what_is_no_number_stays_visible(case):
  """After one gradient with a NaN, the leaf's updates are NaN, never 0."""
  params = {'w': jnp.ones((3, 4)), 'other': jnp.ones((2,))}
  tx, extra = case.make(0.1), case.extra(params)
  good = gradients(params, 6)
  bad = good[0] | {'w': good[0]['w'].at[1, 2].set(jnp.nan)}
  out, _ = run(tx, params, [good[0], bad, *good[1:]], **extra)
  seen = [not np.isfinite(np.asarray(u['w'])).all() for u in out]
  assert seen[1]
  if not case.inputs and case.memory is not None:  # The others keep nothing.
    assert all(seen[1:])
  assert all(np.isfinite(u['other']).all() for u in out)


@every
def test_leaves_without_entries(case):
  params = {
    'rows': jnp.zeros((0, 3)),
    'columns': jnp.zeros((3, 0)),
    'stack': jnp.zeros((0, 2, 3)),
    'vector': jnp.zeros((0,)),
    'full': jnp.ones((3, 2)),
  }
  tx, extra = case.make(0.1), case.extra(params)
  out, _ = run(tx, params, gradients(params, 2), **extra)
  assert jax.tree.map(jnp.shape, out[-1]) == jax.tree.map(jnp.shape, params)
  names = ('full', 'vector')
  without = lambda tree: {k: tree[k] for k in names}
  expected, _ = run(
    tx,
    without(params),
    [without(g) for g in gradients(params, 2)],
    **case.extra(without(params)),
  )
  np.testing.assert_allclose(out[-1]['full'], expected[-1]['full'], rtol=1e-6)


LINEAR = ('preconditioned_momentum', 'multi_timescale')


@pytest.mark.parametrize('name', [k for k in CASES if k not in LINEAR])
def test_complex_leaves_are_refused_by_name(name):
  case = CASES[name]
  params = {'real': jnp.ones((3, 2)), 'wave': jnp.ones((3, 2), jnp.complex64)}
  tx = case.make(0.1)
  with pytest.raises(ValueError, match="'wave' is complex.*split_real"):
    tx.update(params, tx.init(params), params, **case.extra(params))


def test_what_the_refusal_of_complex_leaves_proposes():
  params = {'wave': jnp.ones((3, 2), jnp.complex64)}
  tx = optax.contrib.split_real_and_imaginary(optimizers.m3(0.1))
  updates, _ = tx.update(params, tx.init(params), params)
  assert updates['wave'].dtype == jnp.complex64
  assert np.abs(updates['wave']).min() > 0


def test_a_root_of_outer_products_is_the_root(x64):
  """What is kept, times itself, is the decayed sum of g g^T."""
  w = jnp.zeros((3, 5))
  sequence = gradients(w, 8)
  tx = optimizers.scale_by_associative_momentum(
    b2=0.9, statistic='outer_product'
  )
  _, state = run(tx, w, sequence)
  h = np.zeros((3, 3))
  for g in np.asarray(sequence):
    h = 0.9 * h + 0.1 * g @ g.T
  np.testing.assert_allclose(state.root[0] @ state.root[0], h, rtol=1e-10)


@pytest.mark.parametrize('size', [1e-40, 1e-20, 1.0, 1e30])
def test_norms_of_any_size(size, x64):
  x = np.random.default_rng(0).standard_normal((2, 3, 4)) * size
  norms = matrices.norm(jnp.asarray(x))[..., 0, 0]
  np.testing.assert_allclose(
    norms, size * np.linalg.norm(x / size, axis=(1, 2)), rtol=1e-12
  )
