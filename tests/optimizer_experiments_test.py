"""What the experiments with optimizers count and compare."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import delta_momentum_toy as toy
from experiments import optimizer_changes as changes
from experiments import optimizer_race as race
from experiments import optimizer_runs as runs_lib
from experiments import optimizer_speed as speed
from experiments import optimizer_tasks as tasks


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


@pytest.mark.parametrize('nesterov', [False, True])
def test_muon_of_the_race_is_that_of_optax(nesterov):
  keys = jax.random.split(jax.random.key(0), 3)
  params = {'kernel': jnp.zeros((3, 5)), 'up': {'kernel': jnp.zeros((6, 2))}}
  ours = race.direction('muon, nesterov' if nesterov else 'muon', 0.0)
  theirs = optax.contrib.muon(-1.0, nesterov=nesterov, adam_learning_rate=0.0)
  states = [tx.init(params) for tx in (ours, theirs)]
  for key in keys:
    grads = jax.tree.map(lambda x, k=key: jax.random.normal(k, x.shape), params)
    got, states[0] = ours.update(grads, states[0], params)
    want, states[1] = theirs.update(grads, states[1], params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      got,
      want,
    )


@pytest.mark.parametrize('task', changes.PLANS)
def test_rules_that_are_compared_have_the_same_helpers(task):
  grids = changes.families(changes.PLANS[task])
  assert len({len(settings) for settings in grids.values()}) == 1
  looks = [
    sorted((s.b1, s.nesterov) for s in settings)
    for name, settings in grids.items()
    if name != 'AdamW'
  ]
  assert all(x == looks[0] for x in looks)
  for name, options in race._FORMS.items():
    assert options['nesterov'] == name.endswith(', nesterov')
    assert name.removesuffix(', nesterov') + ', nesterov' in race._FORMS


def test_missing_images_are_named(tmp_path):
  with pytest.raises(ValueError, match='dataset-fashion-mnist'):
    tasks.vit(tmp_path)


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


def _tiny_runs(folder):
  x = np.random.default_rng(0).normal(size=(64, 4))
  task = tasks.perceptron(x, x[:, 0] > 0, width=4, permuted='pixels')
  return runs_lib.Runs(folder / 'runs.json', task, steps=12, change=4, most=8)


def test_runs_where_tasks_change_are_kept_and_equal_one_alone(tmp_path):
  adamw = runs_lib.Setting('adamw', rate=1e-2)
  muon = runs_lib.Setting('muon', rate=1e-2, alpha=0.0)
  wanted = [(s, seed) for s in (adamw, muon) for seed in (0, 100)]
  runs = _tiny_runs(tmp_path)
  runs.make(wanted, adamw)
  assert list(runs.curves[muon.key()]['0.01']) == [
    '0'
  ]  # tuning seeds have none
  assert len(runs.curves[muon.key()]['0.01']['0']) == 4
  again = _tiny_runs(tmp_path)
  again.task = None  # nothing is left to run
  again.make(wanted, adamw)
  assert again.losses == runs.losses
  (tmp_path / 'alone').mkdir()
  alone = _tiny_runs(tmp_path / 'alone')
  alone.make([(muon, 100)], adamw)
  np.testing.assert_allclose(
    alone.get(muon, 100), runs.get(muon, 100), rtol=1e-4
  )


@pytest.mark.parametrize('recurring', [0, 2])
def test_a_task_changes_when_it_should(recurring):
  x = np.random.default_rng(0).normal(size=(64, 4))
  task = tasks.perceptron(x, x[:, 0] > 0, width=4, permuted='pixels')
  seen = task._replace(
    loss=lambda params, batch, permutation: (
      permutation[0] * 16.0
      + permutation[1] * 4.0
      + permutation[2]
      + 0.0 * params['head']['bias'].sum()
    )
  )
  adamw = runs_lib.Setting('adamw', rate=1e-3)
  run = runs_lib.trainer(seen, 12, 4, adamw, adamw, recurring)
  numbers = {k: jnp.array([getattr(adamw, k)]) for k in runs_lib.TRACED}
  params = jax.tree.map(lambda p: p[None], task.init(0))
  (values,) = run(params, jnp.stack([jax.random.key(0)]), numbers)
  phases = np.asarray(values).reshape(3, 4)
  assert (phases == phases[:, :1]).all()
  first, second, third = phases[:, 0].tolist()
  assert first != second
  assert (first == third) == (recurring == 2)


def test_missing_scikit_learn_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn', None)
  with pytest.raises(ValueError, match='pip install scikit-learn'):
    tasks.digits('pixels')
