"""Figure 12 on this machine: the time of an optimizer's step.

  python -m experiments.optimizer_speed --workdir=runs/speed

The parameters are those of a Transformer of 24 layers and width 512, without
its embedding; gradients are random, and there is no model. The rules of a group
take turns, each for a whole window of the slowest period, so that a busy
machine slows all alike. The time of a step is the mean over a window, and the
result is the median of the windows.
"""

import json
import pathlib
import statistics
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.table

from hope import command_line
from hope.parallel import devices
import optimizers

PERIODS = (1, 2, 4, 8)
WINDOW = 8  # steps: the slowest period, here and of M3


def parameters(layers: int, width: int) -> dict[str, Any]:
  """Those of a Transformer: four matrices, four vectors a layer."""
  shapes = {
    'qkv': (width, 3 * width),
    'output': (width, width),
    'up': (width, 4 * width),
    'down': (4 * width, width),
    'bias': (4 * width,),
    'scale': (width,),
    'scale_2': (width,),
    'bias_2': (width,),
  }
  return {
    f'layer_{j}': {k: jnp.zeros(s) for k, s in shapes.items()}
    for j in range(layers)
  }


def groups(layers: int) -> tuple[dict[str, Any], ...]:
  """Transformations by name; a group is timed in turns, against its first."""

  def quarter(keys, _):
    return int(keys[0].key.removeprefix('layer_')) * len(PERIODS) // layers

  labels = lambda tree: jax.tree_util.tree_map_with_path(quarter, tree)
  numbered = range(len(PERIODS))

  def levels(inner: optax.GradientTransformation) -> tuple[Any, Any]:
    """All levels at every step, and each at its period."""
    return optax.partition(
      {j: inner for j in numbered}, labels
    ), optimizers.multi_timescale(
      {j: (p, inner) for j, p in enumerate(PERIODS)}, labels
    )

  adamw, muon = optax.adamw(1e-3), optax.contrib.muon(1e-3)
  partition, multi_timescale = levels(adamw)
  partition_muon, multi_timescale_muon = levels(muon)
  return (
    {
      'optax.adamw': adamw,
      'delta_momentum': optimizers.delta_momentum(1e-3),
      'associative_momentum': optimizers.associative_momentum(1e-3),
      'deep_momentum': optimizers.deep_momentum(1e-3),
    },
    {'optax.partition': partition, 'multi_timescale': multi_timescale},
    {
      'optax.contrib.muon': muon,
      'm3': optimizers.m3(1e-3),
      'm3 with V': optimizers.m3(1e-3, second_moment=True),
    },
    {
      'optax.partition of Muon': partition_muon,
      'multi_timescale of Muon': multi_timescale_muon,
    },
  )


def measure(
  group: dict[str, Any], params: Any, grads: Any, windows: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
  """Times a group, a window of WINDOW steps of each in turns.

  Returns:
    By name, (seconds a step in every window, bytes of the state).
  """
  steps, states, times, memory = {}, {}, {}, {}
  for name, tx in group.items():

    def step(params, state, grads, tx=tx):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    begin = time.perf_counter()
    state = jax.jit(tx.init)(params)
    steps[name] = (
      jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    )
    print(
      f'{name}: compiled in {time.perf_counter() - begin:.1f} s', flush=True
    )
    memory[name] = sum(x.nbytes for x in jax.tree.leaves(state))
    states[name] = (jax.tree.map(jnp.copy, params), state)
    times[name] = []
  for window in range(1 + windows):
    for name in group:
      begin = time.perf_counter()
      for _ in range(WINDOW):
        states[name] = steps[name](*states[name], grads)
      jax.block_until_ready(states[name])
      if window:
        times[name].append((time.perf_counter() - begin) / WINDOW)
  return times, memory


def main(options: flags.FlagValues) -> None:
  """Times all groups, one after the other; prints and writes."""
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  # Parameters, gradients and the least state of a rule, of 12 matrices a layer.
  devices.check_fits(
    3 * 4 * 12 * options.layers * options.width**2,
    f'--layers={options.layers} of --width={options.width}',
  )
  params = parameters(options.layers, options.width)
  size = sum(x.size for x in jax.tree.leaves(params))
  print(
    f'{options.layers} layers of width {options.width}: {size:,} parameters'
  )
  keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
  grads = jax.tree.map(
    lambda x, key: jax.random.normal(key, x.shape),
    params,
    jax.tree.unflatten(jax.tree.structure(params), list(keys)),
  )
  chosen = groups(options.layers)
  if options.only:
    known = [name for group in chosen for name in group]
    if unknown := set(options.only) - set(known):
      raise ValueError(f'--only: {unknown}; choose from {known}')
    keep = lambda group: {k: v for k, v in group.items() if k in options.only}
    chosen = tuple(group for group in map(keep, chosen) if group)

  table = rich.table.Table(title=f'one step, mean over a window of {WINDOW}')
  for column in ('rule', 'seconds', 'least', 'most', 'state', 'ratio'):
    table.add_column(column, justify='left' if column == 'rule' else 'right')
  result: dict[str, Any] = {'parameters': size, 'rules': {}}
  for group in chosen:
    times, memory = measure(group, params, grads, options.windows)
    first = next(iter(group))
    for name, x in times.items():
      # Windows that stand beside each other.
      ratio = statistics.median(
        a / b for a, b in zip(x, times[first], strict=True)
      )
      table.add_row(
        name,
        f'{statistics.median(x):.3f}',
        f'{min(x):.3f}',
        f'{max(x):.3f}',
        f'{memory[name] / size / 4:.2f} x',
        '' if name == first else f'{ratio:.3f} of {first}',
      )
      result['rules'][name] = {
        'seconds': x,
        'state_bytes': memory[name],
        'ratio': ratio,
        'of': first,
      }
  (workdir / 'speed.json').write_text(json.dumps(result, indent=1))
  rich.console.Console(width=110).print(table)
  print(
    f'State is in trees of the size of the parameters. In {workdir}: '
    'speed.json.'
  )


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'workdir', None, 'Folder of speed.json.', required=True, flag_values=values
  )
  flags.DEFINE_integer(
    'layers', 24, 'Layers.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_integer(
    'width', 512, 'Width.', lower_bound=8, flag_values=values
  )
  flags.DEFINE_integer(
    'windows',
    3,
    'Windows that are timed, after one that is not.',
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_list(
    'only', None, 'Names to time. None: all.', flag_values=values
  )


if __name__ == '__main__':
  command_line.run(main, define_flags)
