"""AdamW, Muon and M3 where tasks change, and where they do not.

  python -m experiments.optimizer_changes --task=digits --workdir=runs/changes
  python -m experiments.optimizer_changes --task=hope --workdir=runs/changes
  python -m experiments.optimizer_changes --task=hope --change=0 ...

digits: a perceptron of two hidden layers of 64 on scikit-learn's images of 8 x
8 (pip install scikit-learn), whose pixels are permuted anew every 50 steps.
digits-400: every 400 steps. digits-4: every 50 steps, but four permutations
take turns. labels: as digits, but the ten classes are permuted.
hope: a byte-level Hope of width 64 and 2 blocks on this Python's sources, whose
bytes are permuted anew every 200 steps. --change=0: never.

The result is the mean training loss over all steps, of each batch before the
step on it. All rules have the same helpers: clipping, a constant rate after a
warm-up of 20 steps, the same AdamW for parameters that are not hidden matrices,
Muon's factor of shapes, no weight decay. All have the same number of settings:
a grid of rates times the decays of the momentum, with and without Nesterov's
look-ahead (AdamW: two b2 instead). If the best rate is at the end of its grid,
the grid is extended. Settings are chosen on seeds that are not reported.
TASK.json in the workdir keeps every run, so that an interrupted command goes on
where it was.
"""

import pathlib
from typing import Any, NamedTuple

from absl import flags
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table

from experiments import optimizer_tasks as tasks
from experiments.optimizer_race import spread
from experiments.optimizer_runs import FIRST_TUNING_SEED, PLACES, Runs, Setting
from hope import command_line

# Middle of the grid of rates, which are a factor of 2 apart.
_MIDDLE = {'adamw': 8e-3, 'muon': 2e-2, 'm3': 2e-2}


class Plan(NamedTuple):
  """How much is tried of a task.

  Attributes:
    change: steps between changes.
    b1s: decays of the momentum.
    looks: without and with Nesterov's look-ahead.
    rates: length of the first grid of learning rates.
    tuning_seeds: runs that a setting is chosen by.
    variants: whether the best are changed one field at a time.
    recurring: how many permutations take turns; 0: each is new.
  """

  change: int
  b1s: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
  looks: tuple[bool, ...] = (False, True)
  rates: int = 5
  tuning_seeds: int = 2
  variants: bool = True
  recurring: int = 0


_SMALL = Plan(50, (0.5, 0.8, 0.95), (True,), variants=False)
PLANS = {
  'digits': Plan(50),
  'digits-400': _SMALL._replace(change=400),
  'digits-4': _SMALL._replace(recurring=4),
  'labels': _SMALL,
  'hope': _SMALL._replace(change=200, b1s=(0.8, 0.95), rates=3, tuning_seeds=1),
}


def families(plan: Plan) -> dict[str, list[Setting]]:
  """Settings that are tried, by the name in the table; rates not named yet."""
  momentum = [{'b1': b, 'nesterov': n} for b in plan.b1s for n in plan.looks]
  b2s = (0.95, 0.999)[: len(plan.looks)]
  return {
    'AdamW': [Setting('adamw', b1=b1, b2=b2) for b1 in plan.b1s for b2 in b2s],
    'Muon': [Setting('muon', alpha=0.0, **m) for m in momentum],
    'M3 without V': [Setting('m3', **m) for m in momentum],
    'M3 with V': [Setting('m3', second_moment=True, **m) for m in momentum],
  }


# Fields of the best of a family that are changed one at a time.
_VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
  'M3 without V': (
    *({'alpha': x} for x in (0.25, 1.0, 2.0)),
    *({'b3': x} for x in (0.5, 0.99)),
    *({'period': x} for x in (2, 32)),
  ),
  'M3 with V': ({'alpha': 0.0}, {'b2': 0.95}),
}


def least(losses: dict[Setting, float]) -> Setting:
  """The setting of the least loss."""
  return min(losses, key=lambda s: losses[s])


def tune(
  runs: Runs, settings: list[Setting], others: Setting, plan: Plan
) -> dict[Setting, float]:
  """Tries a grid of rates for all settings of a task.

  Returns:
    Mean losses of the tuning seeds, by setting with its best rate.
  """
  middle = _MIDDLE[settings[0].rule]
  most = plan.rates // 2
  exponents = list(range(-most, most + 1))
  seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + plan.tuning_seeds)
  value = lambda s: np.mean([runs.get(s, seed) for seed in seeds])
  while True:
    rates = [middle * 2.0**e for e in exponents]
    grid = [[s._replace(rate=rate) for rate in rates] for s in settings]
    flat = [s for row in grid for s in row]
    runs.make([(s, seed) for s in flat for seed in seeds], others)
    winner = min(flat, key=value)
    if rates[0] < winner.rate < rates[-1] or len(exponents) > plan.rates + 3:
      best = [min(row, key=value) for row in grid]
      return {s: float(value(s)) for s in best}
    at_end = winner.rate == rates[-1]
    exponents.append(exponents[-1] + 1) if at_end else exponents.insert(
      0, exponents[0] - 1
    )


def main(options: flags.FlagValues) -> None:
  """Tunes, runs, prints, writes and draws."""
  plan = PLANS[options.task]
  change = plan.change if options.change is None else options.change
  if options.steps % (change or PLACES):
    raise ValueError(
      f'--steps={options.steps} must be a multiple of {change or PLACES}.'
    )
  if options.task == 'hope':
    task = tasks.hope(options.steps)
  else:
    task = tasks.digits('labels' if options.task == 'labels' else 'pixels')
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  name = f'{options.task}-{change}-{options.steps}'
  runs = Runs(
    workdir / f'{name}.json',
    task,
    options.steps,
    change,
    options.most,
    plan.recurring,
  )
  seeds = range(options.seeds)

  wanted = families(plan)
  found: dict[str, dict[Setting, float]] = {}
  adamw = Setting('adamw')
  for family, settings in wanted.items():
    found[family] = tune(runs, settings, adamw, plan)
    if family == 'AdamW':
      adamw = least(found[family])
  variants = _VARIANTS if plan.variants else {}
  for family, changed in variants.items():
    best = least(found[family])
    for fields in changed:
      ((field, x),) = fields.items()
      found[f'{family}, {field} {x}'] = tune(
        runs, [best._replace(**fields)], adamw, plan
      )

  rows: list[tuple[str, Setting]] = []
  for family, best in found.items():
    rows.append((family, least(best)))
  for family in ('Muon', 'M3 without V', 'M3 with V'):
    for b1 in plan.b1s:
      best = {s: x for s, x in found[family].items() if s.b1 == b1}
      rows.append((f'{family}, b1 {b1}', least(best)))
  runs.make({(s, seed): 0 for _, s in rows for seed in seeds}, adamw)

  table = rich.table.Table(
    title=f'{options.task}, a change every {change} steps, {options.steps} '
    f'steps: mean training loss, and of the second half after a change; '
    f'mean and half the range of {len(seeds)} seeds'
  )
  for column in ('optimizer', 'setting', 'rate', 'loss', 'late'):
    table.add_column(column)
  for text, s in rows:
    losses = [runs.get(s, seed) for seed in seeds]
    late = [float(np.mean(x[len(x) // 2 :])) for x in runs.curves_of(s, seeds)]
    table.add_row(text, s.key(), f'{s.rate:.2g}', spread(losses), spread(late))
  rich.console.Console(width=130).print(table)
  draw(
    workdir / f'{name}.png',
    dict(rows[: len(wanted)]),
    runs,
    seeds,
  )
  print(f'In {workdir}: {name}.json, {name}.png.')


def draw(
  file: pathlib.Path, rows: dict[str, Setting], runs: Runs, seeds: range
) -> None:
  """Loss by the steps since the last change."""
  figure, panel = plt.subplots(figsize=(6, 4))
  for name, s in rows.items():
    curves = np.array(runs.curves_of(s, seeds))
    step = 1 if runs.change < runs.steps else runs.steps // PLACES
    places = step * np.arange(curves.shape[1])
    (line,) = panel.plot(places, curves.mean(0), label=name)
    panel.fill_between(
      places, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2
    )
  panel.set(
    xlabel='steps since the last change',
    ylabel='training loss',
    yscale='log',
    title='best setting of each; bands: all seeds',
  )
  panel.legend()
  figure.tight_layout()
  figure.savefig(file, dpi=100)
  plt.close(figure)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_enum(
    'task', 'digits', list(PLANS), 'What is learned.', flag_values=values
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the results.',
    required=True,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'steps', 2000, 'Of each run.', lower_bound=10, flag_values=values
  )
  flags.DEFINE_integer(
    'change',
    None,
    "Steps between changes. 0: never. None: the task's own.",
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'seeds',
    5,
    'Runs that are reported.',
    lower_bound=1,
    upper_bound=FIRST_TUNING_SEED,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'most', 80, 'Runs at once.', lower_bound=1, flag_values=values
  )


if __name__ == '__main__':
  command_line.run(main, define_flags)
