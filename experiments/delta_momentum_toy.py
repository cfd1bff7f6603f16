"""Figure 4: momentum and delta momentum on a curved valley.

  python -m experiments.delta_momentum_toy --workdir=runs/toy

psi(r, theta) = r^2 + k (r - theta + a sin(w r))^2 from (-3.5, 2). Choice: the
paper does not give k, a and w; the figure has k = 10, a = 1, w = 2, and the
table has others. Both rules are tuned over the same number of settings: for
momentum, learning rates and decays; for delta momentum, fewer learning rates,
the same decays, and strengths of the erase. What counts is the number of steps
after which the distance to the optimum stays below 0.01: its median over 32
starts within about 0.1 of (-3.5, 2), since from one start alone a large rate
may jump to the optimum by luck.
"""

import functools
import itertools
import json
import pathlib

from absl import flags
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table

from hope import command_line
import optimizers

START = (-3.5, 2.0)
NUM_STARTS = 32
STEPS = 2_000
CLOSE = 0.01
FIGURE = (10.0, 1.0, 2.0)  # k, a, w
FUNCTIONS = (
  FIGURE,
  (1.0, 1.0, 2.0),
  (5.0, 1.0, 2.0),
  (50.0, 1.0, 2.0),
  (10.0, 0.5, 3.0),
  (10.0, 1.0, 3.0),
  (10.0, 0.3, 5.0),
)
DECAYS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
ERASES = (1e-3, 1e-2, 0.1, 1.0, 10.0)


def psi(w: jax.Array, k: float, a: float, frequency: float) -> jax.Array:
  """The function of Figure 4 at w = (r, theta)."""
  r, theta = w
  return r**2 + k * (r - theta + a * jnp.sin(frequency * r)) ** 2


def rates(count: int) -> np.ndarray:
  """Learning rates from 3e-4 to 0.5."""
  return np.geomspace(3e-4, 0.5, count)


SETTINGS = {
  'momentum': list(itertools.product(rates(33 * len(ERASES)), DECAYS, (0.0,))),
  'delta momentum': list(itertools.product(rates(33), DECAYS, ERASES)),
}


def path(name: str, setting, function, w=START) -> jax.Array:
  """Places after each step from w, [STEPS + 1, 2]."""
  rate, decay, erase = setting
  if name == 'momentum':
    tx = optimizers.preconditioned_momentum(rate, decay)
  else:
    tx = optimizers.delta_momentum(rate, decay, erase)
  w = jnp.asarray(w)

  def step(carry, _):
    w, state = carry
    updates, state = tx.update(jax.grad(psi)(w, *function), state, w)
    return (w + updates, state), w

  _, places = jax.lax.scan(step, (w, tx.init(w)), None, STEPS + 1)
  return places


def steps_needed(places: jax.Array) -> jax.Array:
  """Steps after which a path stays within CLOSE of the optimum, (0, 0)."""
  near = jnp.linalg.norm(places, axis=-1) < CLOSE  # False where not finite
  return jnp.max(jnp.where(near, 0, jnp.arange(len(places)) + 1))


def starts() -> jax.Array:
  """Where the paths begin, [NUM_STARTS, 2]."""
  noise = jax.random.normal(jax.random.key(0), (NUM_STARTS, 2))
  return jnp.array(START) + 0.1 * noise


def tune(name: str, function) -> tuple[int, tuple[float, ...]]:
  """The fewest steps over all settings, and the setting."""

  def median(setting):
    steps = lambda w: steps_needed(path(name, setting, function, w))
    return jnp.median(jax.vmap(steps)(starts()))

  settings = jnp.asarray(SETTINGS[name])
  count = jax.jit(lambda s: jax.lax.map(median, s, batch_size=150))(settings)
  best = int(np.argmin(count))
  return int(count[best]), SETTINGS[name][best]


def draw(file: pathlib.Path, found) -> None:
  """A typical path of each over the valley, and the distances of all."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5))
  r, theta = np.meshgrid(np.linspace(-4.5, 2, 200), np.linspace(-6, 4, 200))
  values = np.log10(psi(jnp.array([r, theta]), *FIGURE) + 1e-3)
  left.contourf(r, theta, values, levels=20, cmap='Greys')
  shown = 2 * max(steps for steps, _ in found.values())
  for name, (steps, setting) in found.items():
    along = functools.partial(path, name, setting, FIGURE)
    paths = jax.vmap(along)(starts())
    needed = np.asarray(jax.vmap(steps_needed)(paths))
    typical = int(np.argmin(np.abs(needed - steps)))
    places = np.asarray(paths[typical, :shown])
    left.plot(*places.T, '.-', markersize=3, linewidth=0.8, label=name)
    distances = np.linalg.norm(paths[:, :shown], axis=-1)
    low, middle, high = np.quantile(distances, (0.25, 0.5, 0.75), axis=0)
    right.semilogy(middle, label=f'{name}: median {steps} steps')
    right.fill_between(np.arange(shown), low, high, alpha=0.2)
  left.plot(0, 0, 'k*')
  left.set(xlabel='r', ylabel='theta', xlim=(-4.5, 2), ylim=(-6, 4))
  right.axhline(CLOSE, color='grey', linewidth=0.5)
  right.set(
    xlabel='step',
    ylabel=f'distance to the optimum, quartiles of {NUM_STARTS} starts',
    ylim=(CLOSE / 100, 30),
  )
  left.legend(loc='lower right')
  right.legend()
  figure.tight_layout()
  figure.savefig(file, dpi=120)
  plt.close(figure)


def main(options: flags.FlagValues) -> None:
  """Tunes both rules on every function; prints, writes and draws."""
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  table = rich.table.Table(
    title=f'median steps to stay within {CLOSE}, both tuned'
  )
  for column in ('k', 'a', 'w', *SETTINGS, '(rate, decay, erase)'):
    table.add_column(column, justify='right')
  results = []
  for function in FUNCTIONS:
    found = {name: tune(name, function) for name in SETTINGS}
    if function == FIGURE:
      draw(workdir / 'toy.png', found)
    reached = {
      name: f'{steps}' if steps <= STEPS else f'> {STEPS}'
      for name, (steps, _) in found.items()
    }
    best = ', '.join(f'{x:.3g}' for x in found['delta momentum'][1])
    table.add_row(*(f'{x:g}' for x in function), *reached.values(), best)
    results.append({'function': function, 'found': found})
  (workdir / 'toy.json').write_text(json.dumps(results, indent=1))
  rich.console.Console().print(table)
  count = len(SETTINGS['momentum'])
  print(f'{count} settings of each rule. In {workdir}: toy.json, toy.png.')


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of toy.json and toy.png.',
    required=True,
    flag_values=values,
  )


if __name__ == '__main__':
  command_line.run(main, define_flags)
