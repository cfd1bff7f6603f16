"""Figure 11 at our scale: optimizers on a small ViT and on a small Hope.

  python -m experiments.optimizer_race --task=vit --workdir=runs/race-vit
  python -m experiments.optimizer_race --task=lm --workdir=runs/race-lm

vit: Fashion-MNIST (Debian package dataset-fashion-mnist), patches of 4, width
64, 4 blocks. lm: byte-level Hope of width 64 and 2 blocks on this Python's
sources. The learning rate of each optimizer is swept on a separate seed, by the
training loss; if the best rate is at the end of the grid, the grid is extended.
Parameters that a rule of matrices leaves to AdamW take AdamW's best rate. Then
seeds 0, 1, 2 are run, and again with the update of every step scaled to one
norm, the same for all: a control that compares only directions.

All have the same helpers: clipping, schedule, no weight decay. Muon and M3 have
the same decay of the momentum and Muon's factor of shapes, and each runs with
and without Nesterov's look-ahead.
"""

from collections.abc import Callable
import json
import pathlib
import time
from typing import Any

from absl import flags
from flax import nnx
import jax
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.console
import rich.table

from experiments import optimizer_tasks as tasks
from hope import command_line
from hope.training import moments as inputs_lib
import optimizers

_SWEEP_SEED = 100
# Options of M3; Muon is one of its forms (a test holds it equal to optax's).
_MUON = {'alpha': 0.0, 'second_moment': False}
_FORMS: dict[str, dict[str, Any]] = {
  f'{name}{look}': {**options, 'nesterov': bool(look)}
  for name, options in (
    ('muon', _MUON),
    ('m3 with V', {'second_moment': True}),
    ('m3 without V', {'second_moment': False}),
  )
  for look in ('', ', nesterov')
}
_MATRICES = (*_FORMS, 'delta_gradient_descent')
# Middle of the sweep of each; its steps are factors of sqrt(10).
_MIDDLE = {
  'adamw': 3e-3,
  **dict.fromkeys(_FORMS, 2e-2),
  'delta_gradient_descent': 3e-1,
  'delta_momentum': 1e-1,
  'deep_momentum': 1.0,
}
_GRID = 10**0.5


def is_matrix(keys: Any) -> bool:
  """Whether a rule of matrices takes a parameter, by its path."""
  names = [str(getattr(key, 'key', key)) for key in keys]
  outside = {'embed', 'head', 'conv'}
  return names[-1] in ('kernel', 'up', 'down') and not outside & set(names)


def matrix_axes(params: Any) -> Any:
  """The axes of the matrices that `is_matrix` names."""
  axes = optimizers.MatrixAxes(-2, -1)
  return jax.tree_util.tree_map_with_path(
    lambda keys, _: axes if is_matrix(keys) else None, params
  )


def labels(matrix: str, other: str) -> Callable[[Any], Any]:
  """From parameters to which rule takes each."""
  return lambda params: jax.tree_util.tree_map_with_path(
    lambda keys, _: matrix if is_matrix(keys) else other, params
  )


def direction(name: str, rate: Any) -> Any:
  """The rule without a learning rate; its updates point uphill."""
  if name == 'adamw':
    return optax.scale_by_adam(b2=0.95)
  if name in _FORMS:
    return optimizers.scale_by_m3(
      b1=0.95, axes=matrix_axes, scale_by_shape=True, **_FORMS[name]
    )
  if name == 'delta_momentum':
    return optimizers.scale_by_delta_momentum(axes=matrix_axes)
  if name == 'deep_momentum':
    return optimizers.scale_by_deep_momentum(axes=matrix_axes)
  # Its learning rate is part of what it minimises.
  return optax.chain(
    optimizers.delta_gradient_descent(rate), optax.scale(-1 / rate)
  )


def optimizer(name: str, rate: Any, other: Any, steps: int, matched: bool):
  """The optimizer of a run.

  Args:
    name: of the rule.
    rate: its learning rate; with `matched`, the norm of every update.
    other: learning rate of parameters that the rule leaves to AdamW.
    steps: of the run, for a cosine after a tenth of warm-up.
    matched: whether updates are scaled to one norm.
  """
  shape = optax.warmup_cosine_decay_schedule(0, 1, steps // 10, steps, 0.05)
  inner = 0.1 if matched else rate
  rule = direction(name, inner)
  if name in _MATRICES:
    scale = 1.0 if matched else other / rate
    rule = optax.partition(
      {
        'rule': rule,
        'adamw': optax.chain(direction('adamw', None), optax.scale(scale)),
      },
      labels('rule', 'adamw'),
    )
  parts = [optax.clip_by_global_norm(1.0), rule]
  if matched:
    parts.append(optax.normalize_by_update_norm())
  return optax.chain(*parts, optax.scale_by_schedule(shape), optax.scale(-rate))


def trainer(
  task: tasks.Task, name: str, steps: int, matched: bool
) -> Callable[..., Any]:
  """Returns run(seed, rate, other) -> losses [steps], test loss, accuracy."""
  model = nnx.eval_shape(lambda: task.build(0))
  graph, _ = nnx.split(model, nnx.Param)
  captures = name == 'delta_gradient_descent'

  @jax.jit
  def run(params, key, rate, other):
    tx = optimizer(name, rate, other, steps, matched)
    count = len(jax.tree.leaves(task.train)[0])

    def step(carry, key):
      params, state = carry
      rows = jax.random.randint(key, (task.batch,), 0, count)
      batch = jax.tree.map(lambda x: x[rows], task.train)
      (value, _), grads, seen = inputs_lib.gradients(
        lambda model: task.loss(model, batch), graph, params, captures
      )
      extra = {'inputs': inputs_lib.moments(params, seen)} if captures else {}
      updates, state = tx.update(grads, state, params, **extra)
      return (optax.apply_updates(params, updates), state), value

    (params, _), values = jax.lax.scan(
      step, (params, tx.init(params)), jax.random.split(key, steps)
    )
    parts = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), task.test)
    trained = nnx.merge(graph, params)
    test, accuracy = jax.lax.map(lambda part: task.loss(trained, part), parts)
    return values, test.mean(), accuracy.mean()

  def call(seed, rate, other):
    params = nnx.to_pure_dict(nnx.state(task.build(seed), nnx.Param))
    return jax.device_get(run(params, jax.random.key(seed), rate, other))

  return call


def tail(losses: np.ndarray) -> float:
  """Mean of the last tenth; infinite where a run diverged."""
  value = float(np.mean(losses[-max(1, len(losses) // 10) :]))
  return value if np.isfinite(value) else float('inf')


def sweep(run, middle: float, other: float) -> tuple[float, dict[str, float]]:
  """The learning rate of the least training loss, and the losses of all."""
  exponents = [-2, -1, 0, 1, 2]
  seen: dict[int, float] = {}
  while True:
    for e in exponents:
      if e not in seen:
        seen[e] = tail(run(_SWEEP_SEED, middle * _GRID**e, other)[0])
    best = min(seen, key=lambda e: seen[e])
    if min(seen) < best < max(seen) or len(seen) > 10:
      break
    exponents = [best - 1, best + 1]
  losses = {f'{middle * _GRID**e:.2g}': seen[e] for e in sorted(seen)}
  return middle * _GRID**best, losses


def spread(x: list[float]) -> str:
  """Mean and half the range."""
  return f'{np.mean(x):.3f} +- {(max(x) - min(x)) / 2:.3f}'


def main(options: flags.FlagValues) -> None:
  """Sweeps, runs, prints, writes and draws."""
  begin = time.time()
  if options.task == 'vit':
    task = tasks.vit(pathlib.Path(options.images))
  else:
    task = tasks.lm(options.steps)
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  seeds = range(options.seeds)
  results: dict[str, Any] = {}
  say = lambda text: print(f'[{time.time() - begin:5.0f} s] {text}', flush=True)
  rates, norm = {}, 0.0
  chosen = dict(_MIDDLE)
  if options.only:
    if unknown := set(options.only) - set(_MIDDLE):
      raise ValueError(f'--only: {unknown}; choose from {list(_MIDDLE)}')
    chosen = {k: v for k, v in _MIDDLE.items() if k in ('adamw', *options.only)}
  for matched in (False, True):
    for name, middle in chosen.items():
      run = trainer(task, name, options.steps, matched)
      if not matched:
        rates[name], swept = sweep(run, middle, rates.get('adamw', 0.0))
        rate = rates[name]
      else:
        swept = {}
        if name == 'adamw':
          norm, swept = sweep(run, 0.3, 0.0)
        rate = norm
      runs = [run(seed, rate, rates['adamw']) for seed in seeds]
      kind = 'matched norms' if matched else 'own rate'
      test = [float(x[1]) for x in runs]
      results[f'{name}, {kind}'] = {
        'rate': rate,
        'sweep': swept,
        'train': [tail(x[0]) for x in runs],
        'test': test,
        'accuracy': [float(x[2]) for x in runs],
        'curve': np.mean([x[0] for x in runs], axis=0).tolist(),
      }
      say(f'{name}, {kind}: rate {rate:.3g}, test loss {np.mean(test):.4f}')
      (workdir / 'race.json').write_text(json.dumps(results))

  table = rich.table.Table(
    title=f'{options.task}, {options.steps} steps, mean and spread of '
    f'{len(seeds)} seeds'
  )
  columns = ('optimizer', 'rate', 'train loss', 'test loss', 'test accuracy')
  for column in columns:
    table.add_column(
      column, justify='left' if column == columns[0] else 'right'
    )
  for name, r in results.items():
    table.add_row(
      name,
      f'{r["rate"]:.2g}',
      *(spread(r[k]) for k in ('train', 'test', 'accuracy')),
    )
  rich.console.Console(width=100).print(table)
  draw(workdir / 'race.png', results)
  print(f'Spread is half the range. In {workdir}: race.json, race.png.')


def draw(file: pathlib.Path, results: dict[str, Any]) -> None:
  """Training losses, smoothed over a twentieth of the run."""
  figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
  for panel, kind in zip(panels, ('own rate', 'matched norms'), strict=True):
    for name, r in results.items():
      if name.endswith(kind):
        width = max(1, len(r['curve']) // 20)
        smooth = np.convolve(r['curve'], np.ones(width) / width, 'valid')
        panel.plot(smooth, label=name.removesuffix(f', {kind}'))
    panel.set(title=kind, xlabel='step')
  panels[0].set(ylabel='training loss')
  panels[0].legend()
  figure.tight_layout()
  figure.savefig(file, dpi=120)
  plt.close(figure)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_enum(
    'task', 'vit', ('vit', 'lm'), 'What is learned.', flag_values=values
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of race.json and race.png.',
    required=True,
    flag_values=values,
  )
  flags.DEFINE_string(
    'images',
    '/usr/share/datasets/fashion-mnist',
    "Folder of Fashion-MNIST's four .gz files.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    'steps', 300, 'Of each run.', lower_bound=10, flag_values=values
  )
  flags.DEFINE_multi_string(
    'only',
    None,
    'Names of rules to run beside AdamW; repeat it. None: all.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'seeds', 3, 'Runs of each.', lower_bound=1, flag_values=values
  )


if __name__ == '__main__':
  command_line.run(main, define_flags)
