"""What the memories of Hope learn, and from what: settings side by side.

  python -m experiments.memories --task=text --workdir=runs/memories
  python -m experiments.memories --task=recall-16 --workdir=runs/memories \
    --settings=frozen,delta --rates=3e-3,6e-3

A setting is a mixer with options, as `model.pattern` says it. Where --rates has
several, each setting is trained at all of them on a seed that is not reported,
and its best one trains --seeds seeds. All settings have the same parameters as
the first, within 1%: the width of their feed-forward is chosen so.
--speed trains nothing and times the steps of the settings in turn.
WORKDIR/TASK-STEPS.json keeps every run, and the same command goes on where it
was; TASK-STEPS.png shows those of the table.
"""

import json
import pathlib
import statistics
import time
from typing import Any, NamedTuple

from absl import flags
from flax import nnx
import jax
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table

from experiments import formal_languages, mqar, smoke, text_memory
from hope import command_line
from hope import data as data_lib
from hope.config import resolve
from hope.evaluation import heldout
from hope.model import Hope
from hope.parallel import mesh as mesh_lib
from hope.tasks.formal_languages import LANGUAGES
from hope.training import step as step_lib

_STATIC = {'self_modifying': False}
_PLAIN = {'output_gate': False}
_FROZEN = _PLAIN | {'objective': 'l2', 'momentum': True, 'target': 'self'}
_DELTA = _PLAIN | {'objective': 'delta', 'momentum': False, 'target': 'slow'}
_LINEAR = _DELTA | _STATIC | {'hidden_multiple': 0}
_NEGATIVE = {'step': 'relative', 'eta_max': 2.0}
_GATE = {'output_gate': True}
TASKS = (
  *('text', 'main', 'recall-8', 'recall-16', 'remapping', 'aliases'),
  *('s3', 's5', *LANGUAGES),
)
# Mixer and options by the name of a setting.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
  # All gradients frozen over a chunk, momentum, self-generated targets.
  'frozen': ('titans', _FROZEN),
  'frozen-static': ('titans', _FROZEN | _STATIC),
  # Published, with its output gate; and what is nearest to it in Titans.
  'gated_deltanet': ('delta', {'rule': 'gated_deltanet'}),
  'linear-dot': ('titans', _LINEAR | {'objective': 'dot'}),
  'linear-dot-gate': ('titans', _LINEAR | _GATE | {'objective': 'dot'}),
  'linear-delta': ('titans', _LINEAR | {'step': 'relative'}),
  'linear-negative': ('titans', _LINEAR | _NEGATIVE),
  'delta': ('titans', _DELTA),
  'delta-static': ('titans', _DELTA | _STATIC),
  'delta-static-self': ('titans', _DELTA | _STATIC | {'target': 'self'}),
  'delta-static-mixed': ('titans', _DELTA | _STATIC | {'target': 'mixed'}),
  'delta-self': ('titans', _DELTA | {'target': 'self'}),
  'delta-mixed': ('titans', _DELTA | {'target': 'mixed'}),
  'delta-momentum': ('titans', _DELTA | {'momentum': True}),
  'delta-after': ('titans', _DELTA | {'read': 'after'}),
  'delta-gate': ('titans', _DELTA | _GATE),
  'delta-gate-static': ('titans', _DELTA | _GATE | _STATIC),
  'delta-gate-static-after': (
    'titans',
    _DELTA | _GATE | _STATIC | {'read': 'after'},
  ),
  'delta-gate-static-relative': (
    'titans',
    _DELTA | _GATE | _STATIC | {'step': 'relative'},
  ),
  'delta-gate-static-16': (
    'titans',
    _DELTA | _GATE | _STATIC | {'chunk_size': 16, 'projection_chunk_size': 16},
  ),
  'delta-gate-after': ('titans', _DELTA | _GATE | {'read': 'after'}),
  'frozen-gate': ('titans', _FROZEN | _GATE),
  'delta-relative': ('titans', _DELTA | {'step': 'relative'}),
  'delta-negative': ('titans', _DELTA | _NEGATIVE),
  'delta-negative-static': ('titans', _DELTA | _NEGATIVE | _STATIC),
  'delta-gate-negative': ('titans', _DELTA | _GATE | _NEGATIVE),
  'delta-gate-negative-static': (
    'titans',
    _DELTA | _GATE | _NEGATIVE | _STATIC,
  ),
  'linear-gate-negative': ('titans', _LINEAR | _GATE | _NEGATIVE),
  # What the memories that generate learn, and how fast.
  'delta-slow-projections': ('titans', _DELTA | {'projection_target': 'slow'}),
  'delta-fast-projections': ('titans', _DELTA | {'projection_rate': 0.73}),
  'delta-l2-projections': ('titans', _DELTA | {'projection_objective': 'l2'}),
  'delta-q': ('titans', _DELTA | {'q_memory': True}),
  'delta-gate-q': ('titans', _DELTA | _GATE | {'q_memory': True}),
  'delta-gate-self': ('titans', _DELTA | _GATE | {'target': 'self'}),
  'delta-gate-static-self': (
    'titans',
    _DELTA | _GATE | _STATIC | {'target': 'self'},
  ),
  'delta-gate-mixed': ('titans', _DELTA | _GATE | {'target': 'mixed'}),
  'delta-gate-static-mixed': (
    'titans',
    _DELTA | _GATE | _STATIC | {'target': 'mixed'},
  ),
  'delta-q-fast': (
    'titans',
    _DELTA | {'q_memory': True, 'projection_rate': 0.73},
  ),
  'off': ('titans', _DELTA | {'eta_max': 0.0}),
}


# Seed of the runs by which a learning rate is chosen.
_TUNING = 100


class Run(NamedTuple):
  """What is kept of a run.

  Attributes:
    results: of `heldout.evaluate`, and means of what memories measured.
    losses: of training, nats per token, means of fiftieths of the run.
    tokens_per_second: median over steps, of the whole machine at that time.
    parameters: of the model.
    pattern: of the model.
  """

  results: dict[str, float]
  losses: list[float]
  tokens_per_second: float
  parameters: int
  pattern: str


def task_config(name: str, seed: int, steps: int):
  """The configuration of a task, without its setting.

  Args:
    name: of the task.
    seed: of parameters and data.
    steps: updates; 0: as many as the task has.

  Raises:
    ValueError: if there is no such task.
  """
  if name == 'text':
    config = text_memory.get_config(f'seed={seed},steps=200')
    model = config.model
    model.num_layers, model.width, model.num_heads = 2, 128, 2
    model.titans.chunk_size = model.titans.projection_chunk_size = 64
  elif name == 'main':
    config = smoke.get_config()
    config.unlock()
    config.seed = seed
  elif name in ('recall-8', 'recall-16'):
    config = mqar.get_config(f'seed={seed}')
    if name == 'recall-16':
      config.data.task.num_pairs, config.data.seq_len = 16, 128
      config.data.batch_size, config.train.steps = 16, 1000
  elif name in LANGUAGES:
    config = formal_languages.get_config(f'language={name},seed={seed}')
  elif name in ('remapping', 'aliases'):
    config = mqar.get_config(f'seed={seed}')
    config.data.source, config.data.batch_size = f'synthetic:{name}', 16
    config.data.seq_len, config.data.task.vocab_size = 128, 64
    config.train.steps = 1000
    if name == 'aliases':  # a name may stand for one of a few tokens before
      config.data.seq_len, config.data.task.num_pairs = 36, 4
      config.data.task.vocab_size = 24
      config.data.batch_size, config.model.width = 32, 32
      titans = config.model.titans
      titans.chunk_size = titans.projection_chunk_size = 1
  elif name in ('s3', 's5'):
    config = formal_languages.get_config(f'seed={seed}')
    config.data.source, config.data.task.max_length = f'synthetic:{name}', 32
    config.data.seq_len, config.data.task.vocab_size = 32, 121
    config.evals.longer = (64,)
  else:
    raise ValueError(f'--task={name} is none of {", ".join(TASKS)}.')
  if steps:
    config.train.steps = steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps)
  return config


def parameters(config) -> int:
  """Of the model that a resolved configuration describes."""
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def with_setting(config, setting: str, vocab_size: int, like: int | None):
  """A resolved configuration of a setting.

  Args:
    config: of the task.
    setting: in SETTINGS.
    vocab_size: of the data.
    like: parameters that it should have; None: as they are.
  """

  def build(hidden: float):
    mixer, options = SETTINGS[setting]
    said = ', '.join(f'{name}={x!r}' for name, x in options.items())
    config.model.pattern = f'{mixer}({said})+cms(hidden_multiple={hidden!r})'
    return resolve(config, vocab_size)

  first = build(1.0)
  if like is None:
    return first
  # The number of parameters is linear in the width of the feed-forward.
  one, two = parameters(first), parameters(build(2.0))
  found = build(round(1 + (like - one) / (two - one), 4))
  if abs(parameters(found) / like - 1) > 0.01:
    raise ValueError(f'{setting!r} cannot have {like:,} parameters.')
  return found


def train(config, data) -> Run:
  """Trains a resolved configuration and evaluates it."""
  graph, abstract = step_lib.abstract_state(config, mesh_lib.one_device())
  state = step_lib.init_state(config, abstract)
  update = step_lib.train_step(graph, config, abstract)
  batches, losses, times = data.train_iterator(), [], []
  for _ in range(config.train.steps):
    batch, start = next(batches), time.perf_counter()
    state, metrics = update(state, batch)
    losses.append(float(metrics['loss']))
    times.append(time.perf_counter() - start)
  step = step_lib.eval_step(graph, mesh_lib.one_device())
  results, inner = heldout.evaluate(
    step,
    state.params,
    data.eval_batches(),
    data.bytes_per_token,
    data.longer_batches(),
  )
  tokens = config.data.seq_len * config.data.batch_size
  pieces = np.array_split(losses, min(50, len(losses)))
  return Run(
    results=results | inner.means(),
    losses=[float(f'{np.mean(piece):.5g}') for piece in pieces],
    tokens_per_second=tokens / statistics.median(times),
    parameters=parameters(config),
    pattern=config.model.pattern,
  )


class Runs:
  """The runs of a task, made once and kept in a file."""

  def __init__(self, path: pathlib.Path, task: str, steps: int):
    self.path, self.task, self.steps = path, task, steps
    self.patterns: dict[str, str] = {}
    content = json.loads(path.read_text()) if path.exists() else {}
    self.kept = {name: Run(**run) for name, run in content.items()}

  def get(self, setting: str, rate: float, seed: int) -> Run:
    """A run, trained if it is not there yet."""
    name = f'{setting} | {rate:g} | {seed}'
    pattern = self.pattern(setting)
    if name in self.kept:
      if self.kept[name].pattern != pattern:
        raise ValueError(
          f'{self.path} holds {name!r} with another model.pattern: '
          f'{self.kept[name].pattern}. Choose another --workdir.'
        )
      return self.kept[name]
    config = task_config(self.task, seed, self.steps)
    config.optimizer.learning_rate, config.model.pattern = rate, pattern
    data = data_lib.open_data(config)
    run = train(resolve(config, data.vocab_size), data)
    self.kept[name] = run
    text = json.dumps({k: x._asdict() for k, x in self.kept.items()}, indent=1)
    self.path.write_text(text)
    print(name, run.results, f'{run.tokens_per_second:,.0f} tokens/s')
    return run

  def pattern(self, setting: str) -> str:
    """The model.pattern of a setting, at the parameters of the first one."""
    if setting not in self.patterns:
      config = task_config(self.task, 0, self.steps)
      size = data_lib.open_data(config).vocab_size
      first, like = next(iter(SETTINGS)), None
      if setting != first:
        like = parameters(with_setting(config, first, size, None))
      resolved = with_setting(config, setting, size, like)
      self.patterns[setting] = resolved.model.pattern
    return self.patterns[setting]


def speeds(runs: Runs, settings: list[str]) -> dict[str, float]:
  """Tokens/s of each setting: the median of 12 steps, taken in turn."""
  steps, times = {}, {setting: [] for setting in settings}
  for setting in settings:
    config = task_config(runs.task, 0, runs.steps)
    data = data_lib.open_data(config)
    config.model.pattern = runs.pattern(setting)
    config = resolve(config, data.vocab_size)
    graph, abstract = step_lib.abstract_state(config, mesh_lib.one_device())
    state = step_lib.init_state(config, abstract)
    update = step_lib.train_step(graph, config, abstract)
    batches = data.train_iterator()
    state, metrics = update(state, next(batches))
    jax.block_until_ready(metrics)
    steps[setting] = (state, update, batches)
  for _ in range(12):
    for setting, (state, update, batches) in steps.items():
      batch, start = next(batches), time.perf_counter()
      state, metrics = update(state, batch)
      jax.block_until_ready(metrics)
      times[setting].append(time.perf_counter() - start)
      steps[setting] = (state, update, batches)
  data = task_config(runs.task, 0, runs.steps).data
  tokens = data.seq_len * data.batch_size
  return {name: tokens / statistics.median(x) for name, x in times.items()}


def score(results: dict[str, float]) -> float:
  """What settings are compared by: less is better."""
  if 'bits_per_byte' in results:
    return results['bits_per_byte']
  return results['loss']


def best_rate(runs: Runs, setting: str, rates: list[float]) -> float:
  """The rate of the least loss on the seed that is not reported."""
  if len(rates) == 1:
    return rates[0]
  return min(
    rates, key=lambda rate: score(runs.get(setting, rate, _TUNING).results)
  )


def main(options: flags.FlagValues) -> None:
  """Trains what is not yet there, and prints the table."""
  unknown = set(options.settings) - set(SETTINGS)
  if unknown:
    raise ValueError(
      f'--settings names {sorted(unknown)}; there are {", ".join(SETTINGS)}.'
    )
  task_config(options.task, 0, options.steps)
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  runs = Runs(
    workdir / f'{options.task}-{options.steps}.json',
    options.task,
    options.steps,
  )
  if options.speed:
    for name, speed in speeds(runs, options.settings or list(SETTINGS)).items():
      print(f'{name:30} {speed:10,.0f} tokens/s')
    return
  rates = sorted(map(float, options.rates))
  table = rich.table.Table(title=f'{options.task}: mean of the seeds (each)')
  for column in ('setting', 'rate', 'result', 'tokens/s', 'parameters'):
    table.add_column(column)
  rows = {}
  for setting in options.settings or list(SETTINGS):
    rate = best_rate(runs, setting, rates)
    found = [runs.get(setting, rate, seed) for seed in range(options.seeds)]
    rows[setting] = found
    table.add_row(
      setting,
      f'{rate:g}',
      _shown([run.results for run in found]),
      f'{statistics.median(run.tokens_per_second for run in found):,.0f}',
      f'{found[0].parameters:,}',
    )
  rich.console.Console(width=120).print(table)
  draw(rows, options.task, runs.path.with_suffix('.png'))


def draw(rows: dict[str, list[Run]], task: str, file: pathlib.Path) -> None:
  """Draws the result of every seed, and the mean loss while training."""
  kind = _kind(next(iter(rows.values()))[0].results)
  height = 1.5 + 0.3 * len(rows)
  figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, height), layout='constrained'
  )
  for place, (name, found) in enumerate(rows.items()):
    results = [run.results[kind] for run in found]
    (line,) = left.plot(results, [place] * len(found), 'o', alpha=0.5)
    left.plot(statistics.mean(results), place, '|', color='black', ms=14)
    losses = np.mean([run.losses for run in found], axis=0)
    share = (np.arange(len(losses)) + 0.5) / len(losses)
    right.plot(share, losses, color=line.get_color(), label=name)
  left.set(
    xlabel=f'{kind.replace("_", " ")}, held out; bars: means of the seeds',
    yticks=range(len(rows)),
    yticklabels=list(rows),
    title=task,
  )
  left.invert_yaxis()
  left.grid(axis='x', alpha=0.3)
  right.set(
    xlabel='part of the training',
    ylabel='training loss (nats per token)',
    yscale='log',
  )
  right.legend(fontsize=7, frameon=False)
  figure.savefig(file, dpi=100)
  plt.close(figure)


def _kind(results: dict[str, float]) -> str:
  """The result that is shown."""
  for kind in ('bits_per_byte', 'exact_match'):
    if kind in results:
      return kind
  return 'accuracy'


def _shown(results: list[dict[str, float]]) -> str:
  """The results that count, mean and each."""
  kind, lines = _kind(results[0]), []
  for name in [x for x in results[0] if x.partition('/')[0] == kind]:
    found = [x[name] for x in results]
    each = ' '.join(f'{x:.3f}' for x in found)
    bins = name.partition('/')[2]
    lines.append(f'{bins} {statistics.mean(found):.3f} ({each})'.strip())
  return '\n'.join(lines)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the command's flags."""
  flags.DEFINE_string('task', 'text', 'What is learned.', flag_values=values)
  flags.DEFINE_string(
    'workdir', None, 'Folder of the results.', required=True, flag_values=values
  )
  flags.DEFINE_list(
    'settings',
    [],
    'Of SETTINGS, in order; none: all.',
    flag_values=values,
  )
  flags.DEFINE_list(
    'rates', ['6e-3'], 'Learning rates that are tried.', flag_values=values
  )
  flags.DEFINE_integer(
    'seeds', 3, 'Runs of each setting.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_bool(
    'speed', False, 'Measure speeds, and nothing else.', flag_values=values
  )
  flags.DEFINE_integer(
    'steps', 0, 'Updates; 0: of the task.', lower_bound=0, flag_values=values
  )


if __name__ == '__main__':
  command_line.run(main, define_flags)
