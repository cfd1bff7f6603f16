"""What the memories of Hope learn, and from what: settings side by side.

  python -m experiments.memories --task=text --workdir=runs/memories
  python -m experiments.memories --task=recall-16 --workdir=runs/memories \
    --settings=frozen,delta --rates=3e-3,6e-3

Tasks and settings are in `experiments.memory_settings`. Where --rates has
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
from typing import NamedTuple

from absl import flags
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import rich.console
import rich.table

from experiments.memory_settings import (
  SETTINGS,
  task_config,
  with_setting,
)
from hope import command_line, matching
from hope import data as data_lib
from hope.config import resolve
from hope.evaluation import heldout
from hope.parallel import mesh as mesh_lib
from hope.training import step as step_lib

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


class Training:
  """A model in training, step by step.

  Attributes:
    graph: of the model.
    state: after the steps so far.
    losses: of the steps, nats per token.
    times: of the steps, seconds; the first one compiles.
  """

  def __init__(self, config, data):
    self.graph, abstract = step_lib.abstract_state(
      config, mesh_lib.one_device()
    )
    self.state = step_lib.init_state(config, abstract)
    self._update = step_lib.train_step(self.graph, config, abstract)
    self._batches = data.train_iterator()
    self._tokens = config.data.seq_len * config.data.batch_size
    self.losses, self.times = [], []

  def step(self) -> None:
    """Makes a step and waits for it."""
    batch, start = next(self._batches), time.perf_counter()
    self.state, metrics = self._update(self.state, batch)
    self.losses.append(float(metrics['loss']))
    self.times.append(time.perf_counter() - start)

  def tokens_per_second(self) -> float:
    """The median over steps."""
    return self._tokens / statistics.median(self.times)


def train(config, data) -> Run:
  """Trains a resolved configuration and evaluates it."""
  training = Training(config, data)
  for _ in range(config.train.steps):
    training.step()
  step = step_lib.eval_step(training.graph, mesh_lib.one_device())
  results, inner = heldout.evaluate(
    step,
    training.state.params,
    data.eval_batches(),
    data.bytes_per_token,
    data.longer_batches(),
  )
  losses = training.losses
  pieces = np.array_split(losses, min(50, len(losses)))
  return Run(
    results=results | inner.means(),
    losses=[float(f'{np.mean(piece):.5g}') for piece in pieces],
    tokens_per_second=training.tokens_per_second(),
    parameters=matching.size(config),
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
    pattern = self._pattern(setting)
    if name in self.kept:
      if self.kept[name].pattern != pattern:
        raise ValueError(
          f'{self.path} holds {name!r} with another model.pattern: '
          f'{self.kept[name].pattern}. Choose another --workdir.'
        )
      return self.kept[name]
    config = task_config(self.task, seed, self.steps)
    config.optimizer.learning_rate = rate
    run = train(*self._resolved(config, setting))
    self.kept[name] = run
    text = json.dumps({k: x._asdict() for k, x in self.kept.items()}, indent=1)
    self.path.write_text(text)
    print(name, run.results, f'{run.tokens_per_second:,.0f} tokens/s')
    return run

  def _pattern(self, setting: str) -> str:
    """The model.pattern of a setting, at the parameters of the first one."""
    if setting not in self.patterns:
      config = task_config(self.task, 0, self.steps)
      size = data_lib.open_data(config).vocab_size
      first, like = next(iter(SETTINGS)), None
      if setting != first:
        like = matching.size(with_setting(config, first, size, None))
      resolved = with_setting(config, setting, size, like)
      self.patterns[setting] = resolved.model.pattern
    return self.patterns[setting]

  def _resolved(self, config, setting: str):
    """(configuration, data) of a task with a setting."""
    data = data_lib.open_data(config)
    config.model.pattern = self._pattern(setting)
    return resolve(config, data.vocab_size), data

  def speeds(self, settings: list[str]) -> dict[str, float]:
    """Tokens/s of each setting: the median of 13 steps, taken in turn."""
    trainings = {}
    for setting in settings:
      config = task_config(self.task, 0, self.steps)
      trainings[setting] = Training(*self._resolved(config, setting))
    for _ in range(13):  # one of them compiles
      for training in trainings.values():
        training.step()
    return {name: x.tokens_per_second() for name, x in trainings.items()}


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
  settings = options.settings or list(SETTINGS)
  if options.speed:
    for name, speed in runs.speeds(settings).items():
      print(f'{name:30} {speed:10,.0f} tokens/s')
    return
  rates = sorted(map(float, options.rates))
  table = rich.table.Table(title=f'{options.task}: mean of the seeds (each)')
  for column in ('setting', 'rate', 'result', 'tokens/s', 'parameters'):
    table.add_column(column)
  rows = {}
  for setting in settings:
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
