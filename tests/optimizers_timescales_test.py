"""Levels with periods of their own (Eq. 71)."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizer_cases
import pytest

import optimizers


def params():
  return {'fast': jnp.array([1.0, -2.0]), 'slow': {'w': jnp.ones((2, 2))}}


def gradients(count):
  return optimizer_cases.gradients(params(), count)


def run(tx, sequence):
  return optimizer_cases.run(tx, params(), sequence)[0]


BY_PATH = optimizers.label_by_path({'^fast': 'a', '.*': 'b'})


def test_periods_of_one_are_a_partition():
  inner = {'a': optax.adam(0.1), 'b': optax.sgd(0.2)}
  ours = optimizers.multi_timescale(
    {name: (1, tx) for name, tx in inner.items()}, BY_PATH
  )
  theirs = optax.partition(inner, BY_PATH)
  sequence = gradients(20)
  for x, y in zip(run(ours, sequence), run(theirs, sequence), strict=True):
    jax.tree.map(np.testing.assert_array_equal, x, y)


def test_gradients_are_averaged_over_a_period():
  sequence = gradients(7)
  out = run(
    optimizers.multi_timescale(
      {'a': (1, optax.sgd(0.1)), 'b': (3, optax.adam(0.1))}, BY_PATH
    ),
    sequence,
  )
  inner = optax.adam(0.1)
  state = inner.init(params()['slow'])
  for t, updates in enumerate(out):
    np.testing.assert_allclose(
      updates['fast'], -0.1 * sequence[t]['fast'], rtol=1e-6
    )
    expected = np.zeros((2, 2))
    if t % 3 == 2:
      mean = np.mean([g['slow']['w'] for g in sequence[t - 2 : t + 1]], axis=0)
      step, state = inner.update({'w': jnp.asarray(mean)}, state)
      expected = step['w']
    np.testing.assert_allclose(updates['slow']['w'], expected, rtol=1e-5)


@pytest.mark.parametrize('accumulate', ['gradients', 'updates'])
def test_a_sum_may_be_kept_in_another_type(accumulate):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
  tx = optimizers.every(
    64, optax.sgd(1.0), accumulate, accumulator_dtype=jnp.float32
  )
  small = jax.tree.map(lambda x: jnp.full_like(x, 1 / 512), half)
  out, state = optimizer_cases.run(tx, half, [small] * 64)
  # In bfloat16, sums of 1 / 512 stop growing at 1/2 and are rounded before.
  expected = -1 / 512 if accumulate == 'gradients' else -64 / 512
  np.testing.assert_array_equal(out[-1]['fast'], jnp.bfloat16(expected))
  assert state.total['fast'].dtype == jnp.float32
  # One tree more than the inner rule's own, as the docstring says.
  shapes = lambda tree: [x.shape for x in jax.tree.leaves(tree) if x.ndim]
  assert shapes(state) == shapes(half)
  assert out[-1]['fast'].dtype == jnp.bfloat16


def test_the_type_of_a_sum_does_not_round_what_is_released():
  tx = optimizers.every(2, optax.sgd(1 / 3), accumulator_dtype=jnp.bfloat16)
  for updates in run(tx, [jax.tree.map(jnp.ones_like, params())] * 6)[1::2]:
    np.testing.assert_array_equal(updates['fast'], np.float32(-1 / 3))


@pytest.mark.parametrize('accumulate', ['gradients', 'updates'])
@pytest.mark.parametrize('types', ['bfloat16 float32', 'float32 bfloat16'])
def test_gradients_may_be_of_another_type_than_parameters(accumulate, types):
  """As `optax.MultiSteps`; the state keeps the types that it starts with."""
  of_params, of_grads = types.split()
  start = jax.tree.map(lambda x: x.astype(of_params), params())
  grads = [jax.tree.map(lambda x: x.astype(of_grads), g) for g in gradients(5)]
  tx = optimizers.every(2, optax.adam(0.1), accumulate)
  out, state = optimizer_cases.run(tx, start, grads)
  dtypes = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
  assert dtypes(state) == dtypes(tx.init(start))
  assert dtypes(out[-1]) == dtypes(grads[-1])
  if accumulate == 'gradients':
    theirs, _ = optimizer_cases.run(
      optax.MultiSteps(optax.adam(0.1), 2), start, grads
    )
    for x, y in zip(out, theirs, strict=True):
      np.testing.assert_allclose(
        x['fast'].astype(jnp.float32), y['fast'].astype(jnp.float32), atol=2e-3
      )


def test_updates_are_summed_over_a_period():
  sequence = gradients(7)
  out = run(
    optimizers.multi_timescale(
      {'a': (1, optax.sgd(0.1)), 'b': (3, optax.adam(0.1))},
      BY_PATH,
      accumulate='updates',
    ),
    sequence,
  )
  every_step = [u['slow']['w'] for u in run(optax.adam(0.1), sequence)]
  for t, updates in enumerate(out):
    expected = np.zeros((2, 2))
    if t % 3 == 2:
      expected = np.sum(every_step[t - 2 : t + 1], axis=0)
    np.testing.assert_allclose(updates['slow']['w'], expected, rtol=1e-5)


def test_levels_nest():
  """The inner period counts steps of the level that holds it."""
  inside = optimizers.multi_timescale(
    {'x': (1, optax.sgd(1.0)), 'y': (2, optax.sgd(1.0))},
    optimizers.label_by_path({'fast': 'x', 'w': 'y'}),
  )
  tx = optimizers.multi_timescale(
    {'all': (3, inside)}, lambda p: jax.tree.map(lambda _: 'all', p)
  )
  sequence = gradients(13)
  out = run(tx, sequence)
  moved = lambda get: [t for t, u in enumerate(out) if np.any(get(u))]
  assert moved(lambda u: u['fast']) == [2, 5, 8, 11]
  assert moved(lambda u: u['slow']['w']) == [5, 11]
  mean = np.mean([g['slow']['w'] for g in sequence[:6]], axis=0)
  np.testing.assert_allclose(out[5]['slow']['w'], -mean, rtol=1e-5)


def test_the_inner_transformation_rests_between_periods():
  """It runs in a branch only: its square root is nowhere else."""
  tx = optimizers.every(4, optax.adam(0.1))
  jaxpr = jax.make_jaxpr(tx.update)(params(), tx.init(params()))
  names = [e.primitive.name for e in jaxpr.jaxpr.eqns]
  inner = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == 'cond']
  assert 'sqrt' not in names
  assert any('sqrt' in str(e.params['branches']) for e in inner)


def test_extra_arguments_are_passed_on():
  def update(updates, state, params=None, *, factor, **_):
    del params
    return jax.tree.map(lambda g: factor * g, updates), state

  inner = optax.GradientTransformationExtraArgs(
    lambda _: optax.EmptyState(), update
  )
  for accumulate in ('gradients', 'updates'):
    tx = optimizers.multi_timescale(
      {'a': (1, inner), 'b': (2, inner)}, BY_PATH, accumulate
    )
    ones = jax.tree.map(jnp.ones_like, params())
    state = tx.init(params())
    for _ in range(2):
      updates, state = tx.update(ones, state, params(), factor=3.0)
    np.testing.assert_allclose(updates['fast'], 3.0)
    np.testing.assert_allclose(
      updates['slow']['w'], 3.0 if accumulate == 'gradients' else 6.0
    )


def test_errors():
  with pytest.raises(ValueError, match=r"found in 'slow/w'"):
    optimizers.label_by_path({'fast': 'a'})(params())
  levels = {'a': (1, optax.sgd(1.0)), 'b': (2, optax.sgd(1.0))}
  for rules, message in [
    (
      {'fast': 'a', '.*': 'c'},
      r"'c' of 'slow/w' is not a level.*'a', 'b'",
    ),
    ({'.*': 'a'}, r"no parameter is labelled \['b'\]"),
  ]:
    tx = optimizers.multi_timescale(levels, optimizers.label_by_path(rules))
    with pytest.raises(ValueError, match=message):
      tx.init(params())
  with pytest.raises(ValueError, match='period=0 must be a whole number'):
    optimizers.every(0, optax.sgd(1.0))
  with pytest.raises(ValueError, match="accumulate='sums' must be one of"):
    optimizers.every(2, optax.sgd(1.0), 'sums')


@pytest.mark.parametrize(
  'name',
  [
    'associative_momentum',
    'deep_momentum',
    'gradient_descent',
    'matrices',
    'momentum',
    'multi_scale_momentum',
    'timescales',
  ],
)
def test_examples(name):
  module = importlib.import_module(f'optimizers.{name}')
  failed, attempted = doctest.testmod(module)
  assert attempted and not failed
