"""Figure 12 on this machine: the time of an optimizer's step.

  python -m experiments.optimizer_speed --workdir=runs/speed

Parameters of a Transformer of 24 layers and width 512 (without its embedding),
random gradients, no model. Every optimizer takes whole windows of its slowest
period, in turns with the others, so that a busy machine slows all alike; the
time of a step is the mean over a window, and the median of the windows counts.
"""

import json
import pathlib
import statistics
import time
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import optax
import rich.console
import rich.table

import optimizers

PERIODS = (1, 2, 4, 8)


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


def rules(layers: int) -> dict[str, tuple[int, optax.GradientTransformation]]:
  """By name, (window in steps, transformation)."""

  def quarter(keys, _):
    return int(keys[0].key.removeprefix('layer_')) * len(PERIODS) // layers

  labels = lambda tree: jax.tree_util.tree_map_with_path(quarter, tree)
  adamw: dict[Any, Any] = {j: optax.adamw(1e-3) for j in range(len(PERIODS))}
  levels: dict[Any, Any] = {j: (p, adamw[j]) for j, p in enumerate(PERIODS)}
  return {
    'optax.adamw': (8, optax.adamw(1e-3)),
    'optax.contrib.muon': (8, optax.contrib.muon(1e-3)),
    'm3': (8, optimizers.m3(1e-3)),
    'm3 without V': (8, optimizers.m3(1e-3, second_moment=False)),
    'delta_momentum': (8, optimizers.delta_momentum(1e-3)),
    'deep_momentum': (8, optimizers.deep_momentum(1e-3)),
    'associative_momentum': (8, optimizers.associative_momentum(1e-3)),
    'optax.partition': (8, optax.partition(adamw, labels)),
    'multi_timescale': (8, optimizers.multi_timescale(levels, labels)),
  }


def main(argv: list[str]) -> None:
  """Times all rules in turns; prints and writes."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  options = flags.FLAGS
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
  chosen = rules(options.layers)
  if options.only:
    unknown = set(options.only) - set(chosen)
    if unknown:
      raise app.UsageError(f'--only: {unknown}; choose from {list(chosen)}')
    chosen = {name: chosen[name] for name in options.only}

  steps, states, times, memory = {}, {}, {}, {}
  for name, (_, tx) in chosen.items():

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
  for window in range(1 + options.windows):
    for name, (count, _) in chosen.items():
      begin = time.perf_counter()
      for _ in range(count):
        states[name] = steps[name](*states[name], grads)
      jax.block_until_ready(states[name])
      if window:
        times[name].append((time.perf_counter() - begin) / count)

  seconds = {name: statistics.median(x) for name, x in times.items()}
  against = {'m3': 'optax.contrib.muon', 'multi_timescale': 'optax.partition'}
  table = rich.table.Table(title='one step, mean over a window of 8')
  for column in ('rule', 'seconds', 'least', 'most', 'state', 'ratio'):
    table.add_column(column, justify='left' if column == 'rule' else 'right')
  ratios = {}
  for name, x in times.items():
    other = against.get(name)
    text = ''
    if other in seconds:
      # Windows that stand beside each other.
      ratios[name] = statistics.median(
        a / b for a, b in zip(x, times[other], strict=True)
      )
      text = f'{ratios[name]:.3f} of {other}'
    table.add_row(
      name,
      f'{seconds[name]:.3f}',
      f'{min(x):.3f}',
      f'{max(x):.3f}',
      f'{memory[name] / size / 4:.2f} x',
      text,
    )
  rich.console.Console(width=100).print(table)
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  result = {
    'parameters': size,
    'seconds': times,
    'state_bytes': memory,
    'ratios': ratios,
  }
  (workdir / 'speed.json').write_text(json.dumps(result, indent=1))
  print(
    f'State is in trees of the size of the parameters. In {workdir}: '
    'speed.json.'
  )


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'Folder of speed.json.', required=True)
  flags.DEFINE_integer('layers', 24, 'Layers.', lower_bound=1)
  flags.DEFINE_integer('width', 512, 'Width.', lower_bound=8)
  flags.DEFINE_integer(
    'windows',
    3,
    'Windows that are timed, after one that is not.',
    lower_bound=1,
  )
  flags.DEFINE_list('only', None, 'Names to time. None: all.')
  app.run(main)
