"""What the experiments with optimizers count and compare."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import delta_momentum_toy as toy
from experiments import optimizer_race as race
from experiments import optimizer_speed as speed


def test_steps_after_which_a_path_stays():
  far, near = [1.0, 0.0], [0.001, 0.0]
  count = lambda *places: int(toy.steps_needed(jnp.array(places)))
  assert count(far, far, near, near) == 2
  assert count(far, near, far, near) == 3
  assert count(far, [np.nan, 0.0]) == 2  # never


def test_both_rules_of_the_toy_are_tuned_as_often():
  assert len({len(settings) for settings in toy.SETTINGS.values()}) == 1
  assert float(toy.psi(jnp.zeros(2), *toy.FIGURE)) == 0


def test_a_sweep_goes_on_where_the_best_is_at_its_end():
  tried = []

  def run(seed, rate, other):
    del seed, other
    tried.append(rate)
    return (np.full(10, abs(np.log10(rate) - 2)),)

  best, losses = race.sweep(run, 1.0, 0.0)  # begins at 0.1, ..., 10
  np.testing.assert_allclose(best, 100)
  assert len(losses) == len(tried) == len(set(tried))


def test_a_run_that_diverged_is_never_the_best():
  assert race.tail(np.array([1.0, np.nan])) == float('inf')


@pytest.mark.parametrize('name', race._MIDDLE)
def test_matched_updates_have_one_norm(name):
  params = {
    'a': {'kernel': jnp.ones((4, 3)), 'bias': jnp.ones(3)},
    'embed': {'kernel': jnp.ones((2, 4))},
  }
  tx = race.optimizer(name, 0.2, 1e-3, 10, matched=True)
  extra = {}
  if name == 'delta_gradient_descent':
    inputs = jax.tree.map(lambda _: None, params)
    inputs['a']['kernel'] = jnp.eye(4)
    extra['inputs'] = inputs
  state = tx.init(params)
  for step in range(2):
    updates, state = tx.update(params, state, params, **extra)
    # Warm-up of one step, then the whole rate.
    norm = float(optax.tree.norm(updates))
    np.testing.assert_allclose(norm, 0.2 * step, rtol=1e-3, atol=1e-9)
  assert float(jnp.vdot(updates['a']['kernel'], params['a']['kernel'])) < 0


def test_missing_images_are_named(tmp_path):
  with pytest.raises(ValueError, match='dataset-fashion-mnist'):
    race.vit(tmp_path)


def test_parameters_of_the_speed_test():
  params = speed.parameters(24, 512)
  matrices = [x for x in jax.tree.leaves(params) if x.ndim == 2]
  assert sum(x.size for x in matrices) == 24 * 12 * 512**2
  assert speed.WINDOW % max(speed.PERIODS) == 0
  params, groups = speed.parameters(4, 8), speed.groups(4)
  for group in groups:
    for tx in group.values():
      tx.init(params)
  times, memory = speed.measure(groups[1], params, params, windows=2)
  assert times.keys() == memory.keys() == groups[1].keys()
  assert all(len(x) == 2 for x in times.values())
