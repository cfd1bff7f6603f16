"""Figure 11 at our scale: optimizers on a small ViT and on a small Hope.

  python -m experiments.optimizer_race --task=vit --workdir=runs/race-vit
  python -m experiments.optimizer_race --task=lm --workdir=runs/race-lm

vit: Fashion-MNIST (Debian package dataset-fashion-mnist), patches of 4, width
64, 4 blocks. lm: byte-level Hope of width 64 and 2 blocks on this Python's
sources. Each optimizer has its learning rate swept on a seed of its own, by the
training loss; where the best is at the end of the grid, the grid goes on. The
parameters that a rule of matrices leaves to AdamW take AdamW's best rate. Then
seeds 0, 1, 2, and the same with the update of every step scaled to one norm,
the same for all: a control that compares directions alone.
"""

from collections.abc import Callable
import gzip
import json
import pathlib
import time
from typing import Any, NamedTuple

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import optax
import rich.console
import rich.table

from hope import command_line
from hope import data as data_lib
from hope.config import base_config, resolve
from hope.model import Hope
from hope.training import inputs as inputs_lib
import optimizers

_SWEEP_SEED = 100
_MATRICES = ('muon', 'm3', 'delta_gradient_descent')
# Middle of the sweep of each; its steps are factors of sqrt(10).
_MIDDLE = {
  'adamw': 3e-3,
  'muon': 2e-2,
  'm3': 2e-2,
  'delta_gradient_descent': 3e-1,
  'delta_momentum': 1e-1,
  'deep_momentum': 1.0,
}
_GRID = 10**0.5


class Task(NamedTuple):
  """What is learned.

  Attributes:
    build: from a seed to a model.
    loss: (model, batch) -> (mean loss, accuracy).
    train: tree of [examples, ...].
    test: the same, held out.
    batch: examples of a step.
  """

  build: Callable[[int], nnx.Module]
  loss: Callable[[Any, Any], tuple[jax.Array, jax.Array]]
  train: Any
  test: Any
  batch: int


class EncoderBlock(nnx.Module):
  """Attention and MLP of a Transformer's encoder, normalised before."""

  def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
    self.heads = heads
    self.norm_1, self.norm_2 = (nnx.LayerNorm(width, rngs=rngs) for _ in '12')
    self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
    self.output = nnx.Linear(width, width, rngs=rngs)
    self.up = nnx.Linear(width, 4 * width, rngs=rngs)
    self.down = nnx.Linear(4 * width, width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [b, t, width], mixed."""
    qkv = self.qkv(self.norm_1(x))
    q, k, v = jnp.split(qkv.reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
    y = jax.nn.dot_product_attention(q, k, v)
    x += self.output(y.reshape(x.shape))
    return x + self.down(jax.nn.gelu(self.up(self.norm_2(x))))


class ViT(nnx.Module):
  """Images [b, 28, 28] to logits [b, 10], by the mean over 49 patches."""

  def __init__(self, width: int = 64, blocks: int = 4, *, rngs: nnx.Rngs):
    self.embed = nnx.Linear(16, width, rngs=rngs)
    place = 0.02 * jax.random.normal(rngs.params(), (49, width))
    self.place = nnx.Param(place)
    self.blocks = nnx.List(
      [EncoderBlock(width, 4, rngs=rngs) for _ in range(blocks)]
    )
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits of images [b, 28, 28]."""
    b = images.shape[0]
    patches = images.reshape(b, 7, 4, 7, 4).transpose(0, 1, 3, 2, 4)
    x = self.embed(patches.reshape(b, 49, 16)) + self.place[...]
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x).mean(axis=1))


def _mean_loss(logits, labels):
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return loss.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def _idx(folder: pathlib.Path, name: str, skip: int) -> np.ndarray:
  file = folder / name
  if not file.exists():
    raise ValueError(
      f'{file} is missing: install the Debian package dataset-fashion-mnist, '
      'or name the folder of its four files by --images.'
    )
  with gzip.open(file) as stream:
    return np.frombuffer(stream.read(), np.uint8, offset=skip)


def vit(folder: pathlib.Path) -> Task:
  """10,000 images to learn from, 2,000 held out."""

  def split(name, count):
    images = _idx(folder, f'{name}-images-idx3-ubyte.gz', 16)
    labels = _idx(folder, f'{name}-labels-idx1-ubyte.gz', 8)[:count]
    images = images.reshape(-1, 28, 28)[:count] / np.float32(255) - 0.3
    return {'images': jnp.asarray(images), 'labels': jnp.asarray(labels, int)}

  return Task(
    lambda seed: ViT(rngs=nnx.Rngs(seed)),
    lambda model, batch: _mean_loss(model(batch['images']), batch['labels']),
    split('train', 10_000),
    split('t10k', 2_000),
    128,
  )


def lm(steps: int) -> Task:
  """Sequences of 128 bytes of this Python's sources, enough for `steps`."""
  config = base_config()
  config.model.num_layers, config.model.width = 2, 64
  config.model.remat = False
  config.model.titans.chunk_size = 16
  config.model.titans.projection_chunk_size = 16
  config.data.seq_len, config.data.batch_size = 128, 8
  config.train.eval_batches = 16
  data = data_lib.open_data(config)
  config = resolve(config, data.vocab_size)
  stream = iter(data.train_iterator())
  join = lambda batches: jax.tree.map(
    lambda *x: jnp.concatenate(x),
    *[{k: b[k] for k in ('inputs', 'targets')} for b in batches],
  )
  return Task(
    lambda seed: Hope(config, rngs=nnx.Rngs(seed)),
    lambda model, batch: _mean_loss(
      model(batch['inputs'])[0], batch['targets']
    ),
    join([next(stream) for _ in range(steps)]),
    join(data.eval_batches()),
    8,
  )


def is_matrix(keys: Any) -> bool:
  """Whether a rule of matrices takes a parameter, by its path."""
  names = [str(getattr(key, 'key', key)) for key in keys]
  outside = {'embed', 'head', 'conv'}
  return names[-1] in ('kernel', 'up', 'down') and not outside & set(names)


def _axes(params):
  axes = optimizers.MatrixAxes(-2, -1)
  return jax.tree_util.tree_map_with_path(
    lambda keys, _: axes if is_matrix(keys) else None, params
  )


def direction(name: str, rate: Any) -> Any:
  """The rule without a learning rate; its updates point uphill."""
  if name == 'adamw':
    return optax.scale_by_adam(b2=0.95)
  if name == 'muon':
    return optax.contrib.scale_by_muon(weight_dimension_numbers=_axes)
  if name == 'm3':
    return optimizers.scale_by_m3(axes=_axes)
  if name == 'delta_momentum':
    return optimizers.scale_by_delta_momentum(axes=_axes)
  if name == 'deep_momentum':
    return optimizers.scale_by_deep_momentum(axes=_axes)
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
      lambda params: jax.tree_util.tree_map_with_path(
        lambda keys, _: 'rule' if is_matrix(keys) else 'adamw', params
      ),
    )
  parts = [optax.clip_by_global_norm(1.0), rule]
  if matched:
    parts.append(optax.normalize_by_update_norm())
  return optax.chain(*parts, optax.scale_by_schedule(shape), optax.scale(-rate))


def trainer(
  task: Task, name: str, steps: int, matched: bool
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


def main(options: flags.FlagValues) -> None:
  """Sweeps, runs, prints, writes and draws."""
  begin = time.time()
  if options.task == 'vit':
    task = vit(pathlib.Path(options.images))
  else:
    task = lm(options.steps)
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  seeds = range(options.seeds)
  results: dict[str, Any] = {}
  say = lambda text: print(f'[{time.time() - begin:5.0f} s] {text}', flush=True)
  rates, norm = {}, 0.0
  for matched in (False, True):
    for name, middle in _MIDDLE.items():
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
  spread = lambda x: f'{np.mean(x):.3f} +- {(max(x) - min(x)) / 2:.3f}'
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
  flags.DEFINE_integer(
    'seeds', 3, 'Runs of each.', lower_bound=1, flag_values=values
  )


if __name__ == '__main__':
  command_line.run(main, define_flags)
