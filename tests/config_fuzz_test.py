"""Hostile values of every field, rule option, argument and flag.

Each ends in a configuration whose training step can be traced, or in one line
that names the field; never in a traceback, never after a compilation.
"""

from collections.abc import Callable, Iterator
import itertools
import json
import math
import re
import sys
from typing import Any

from absl import flags
from conftest import ROOT, write_texts
import jax
import ml_collections
import numpy as np
import pytest

from hope import command_line, errors, optimizer, trained
from hope import config as config_lib
from hope.commands import describe, evaluate, generate, train
from hope.config import FIELDS
from hope.parallel import devices
from hope.profiling import aot, throughput, topologies
from hope.training import loop
from hope.training import step as step_lib

# How ml_collections loads an experiment file.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

# As a flag says them.
TEXTS = (
  *('nan', 'inf', '-inf', '-1', '0', '0.5', '1e-50', '1e39', 'True', 'None'),
  *(str(2**31), str(2**63), str(10**30), '9' * 5000),
  *('', 'x', '()', '(True,)', '(1.5,)', '(0,)', '[', '{}', '1,2', "f('x')"),
  *('x' * 5000, 'a\x1b[2Jb', 'a\nb', 'a\0b', '\udcff', '/tmp/[x]*'),
)
# As an experiment file says them.
VALUES = (
  *(math.nan, math.inf, -math.inf, -1, 0, 0.5, 1e-50, 1e39, True, None),
  *(2**31, 2**63, 10**30, 10**5000, np.float32('nan'), np.int64(3), 1j),
  *('', 'x', (), (True,), (1.5,), (0,), [], {}, b'x', (math.nan,), object()),
  *('x' * 5000, 'a\x1b[2Jb', 'a\nb', 'a\0b', '\udcff', '/tmp/[x]*'),
)
# Of these fields, values that look right.
MORE = {
  'data.source': (
    *('text:', 'text:[', 'text:**', 'text:/none/*', 'tfds:', 'tfds:none'),
    *('synthetic:', 'synthetic:none', 'synthetic:symbols', 'synthetic:s1'),
    'stdlib:x',
  ),
  'data.tokenizer': ('bpe:', 'bpe:/none', 'bpe-train:', 'bpe-train:-1'),
  'optimizer.options': ('b1', 'b1=', 'b1=b1', 'b1=0.1,b1=0.2', 'nesterov=1'),
}
EXPERIMENTS = (
  *('lm', 'mad', 'mqar', 'smoke', 'text_memory', 'throughput'),
  'formal_languages',
)
# Longest line, in letters.
LONGEST = 1500
_WORKDIRS = itertools.count()


class Accepted(BaseException):
  """In place of drawing parameters, the first thing that is compiled."""


def refusal(act: Callable[[], Any]) -> str | None:
  """What a user is told; None if nothing is refused.

  Raises:
    Exception: what is no message but a bug.
  """
  try:
    act()
  except Accepted:
    return None
  except Exception as error:
    if errors.exit_code(error) != errors.MISUSED:
      raise
    return errors.message(error)
  return None


def check_line(line: str, path: str) -> None:
  """A refusal is a line, not endless, that names the field."""
  assert path.rpartition('.')[2] in line, line
  assert '\n' not in line and len(line) < LONGEST, line


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with texts and an experiment of a small model."""
  home = tmp_path_factory.mktemp('home')
  write_texts(home / 'texts', 200)
  fields = {
    'model.num_layers': 1,
    'model.width': 16,
    'model.num_heads': 2,
    'model.titans.chunk_size': 8,
    'model.titans.projection_chunk_size': 8,
    'model.cms.periods': (1, 2),
    'data.source': f'text:{home}/texts/*.txt',
    'data.seq_len': 16,
    'data.batch_size': 4,
    'data.heldout_fraction': 0.2,
    'evals.batches': 1,
    'train.steps': 30,
    'mesh.data': 1,
  }
  (home / 'small.py').write_text(
    'from hope.config import base_config\n'
    'def get_config():\n'
    '  config = base_config()\n'
    f'  config.update_from_flattened_dict({fields!r})\n'
    '  return config\n'
  )
  return home


def parsed(module, argv: list[str]) -> flags.FlagValues:
  """The flags of a program, which read them from sys.argv too."""
  values = flags.FlagValues()
  argv = [module.__name__, *argv]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', argv)
    module.define_flags(values)
    command_line.parse(values, argv)
  return values


def small(home, *overrides: str):
  """The configuration of the small model."""
  return parsed(train, [f'--config={home}/small.py', *overrides]).config


def mixer(path: str) -> str:
  """A flag: the mixer of attention, where a field is of no mixer."""
  chosen = 'titans' if path.startswith('model') else 'attention'
  return f'--config.model.pattern={chosen}+cms'


def changed(home, path: str, value: Any):
  """The small model's with a field set, whatever its type."""
  nested = small(home, mixer(path)).to_dict()
  *sections, name = path.split('.')
  section = nested
  for part in sections:
    section = section[part]
  section[name] = value
  return ml_collections.ConfigDict(nested)


@pytest.fixture
def before_compilation(monkeypatch):
  """Nothing is compiled; runs end with `Accepted` when traced."""
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
  real, seen, compiled, listening = step_lib.abstract_state, {}, [], [True]

  def abstract_state(config, mesh):
    """Traces every training step once; other numbers make no other step."""
    fields = [config[x].to_dict() for x in ('model', 'optimizer', 'data')]
    key = re.sub(r'\d+\.\d+|\d+e-\d+', '?', json.dumps(fields))
    key += str(config.train.accumulate)
    if key not in seen:
      listening[0] = False  # the optimizer makes scalars
      graph, state = real(config, mesh)
      shape = (config.data.batch_size, config.data.seq_len)
      batch = {
        name: jax.ShapeDtypeStruct(shape, kind)
        for name, kind in (
          *(('inputs', np.int32), ('targets', np.int32)),
          ('weights', np.float32),
        )
      }
      step_lib.train_step(graph, config, state).trace(state, batch)
      listening[0] = True
      seen[key] = graph, state
    return seen[key]

  def stop(*args):
    raise Accepted

  monkeypatch.setattr(step_lib, 'abstract_state', abstract_state)
  monkeypatch.setattr(step_lib, 'init_state', stop)

  def listen(name: str, seconds: float, **kwargs: Any) -> None:
    if listening[0] and 'backend_compile' in name:
      compiled.append(name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield
  assert not compiled


def run(home, make: Callable[[], Any], path: str, count: list[int]) -> None:
  """Takes one case through all that a run does before it compiles."""
  count[0] += 1
  workdir = home / 'runs' / str(next(_WORKDIRS))
  line = refusal(lambda: loop.run(make(), str(workdir)))
  if line is not None:
    check_line(line, path)


@pytest.mark.slow
@pytest.mark.parametrize('section', ['model', 'data', 'optimizer', 'rest'])
def test_every_field_in_a_run(home, before_compilation, section):
  count = [0]
  for path in FIELDS:
    first = path.partition('.')[0]
    if first not in ('model', 'data', 'optimizer'):
      first = 'rest'
    if first != section:
      continue
    for text in TEXTS + MORE.get(path, ()):
      argv = mixer(path), f'--config.{path}={text}'
      run(home, lambda argv=argv: small(home, *argv), path, count)
    for value in VALUES + MORE.get(path, ()):
      change = lambda path=path, value=value: changed(home, path, value)
      run(home, change, path, count)
  assert count[0] > 300


def test_every_field(home):
  """Some values each, and only what is checked without the data."""
  count = 0
  for number, path in enumerate(FIELDS):
    for value in (*VALUES[number % 7 :: 7], math.nan, (True,), 10**30):
      config = changed(home, path, value)
      line = refusal(lambda config=config: config_lib.resolve(config))
      if line is not None:
        check_line(line, path)
      count += 1
    flag = f'--config.{path}={TEXTS[number % len(TEXTS)]}'
    line = refusal(lambda flag=flag: config_lib.resolve(small(home, flag)))
    if line is not None:
      check_line(line, path)
  assert count > 400


@pytest.mark.slow
@pytest.mark.parametrize('name', optimizer.RULES)
def test_every_option_of_a_rule(home, before_compilation, name):
  count, path = [0], 'optimizer.options'
  rule = mixer(path), f'--config.optimizer.name={name}'
  for argument in optimizer.arguments(small(home, *rule), name):
    for text in TEXTS:
      argv = *rule, f'--config.{path}={argument}={text}'
      run(home, lambda argv=argv: small(home, *argv), path, count)


def arguments(experiment: str) -> Iterator[str]:
  """The names of an experiment file's arguments, as its refusal says them."""
  path = ROOT / 'experiments' / f'{experiment}.py'
  line = refusal(lambda: parsed(train, [f'--config={path}:none=1']))
  assert line
  if 'allowed: ' in line:
    yield from line.partition('allowed: ')[2].partition('.')[0].split(', ')


@pytest.mark.parametrize('experiment', EXPERIMENTS)
def test_every_argument_of_an_experiment(experiment):
  path = ROOT / 'experiments' / f'{experiment}.py'
  for argument in arguments(experiment):
    for text in TEXTS:
      flag = f'--config={path}:{argument}={text}'
      act = lambda flag=flag: config_lib.resolve(parsed(train, [flag]).config)
      line = refusal(act)
      if line is not None:
        assert '\n' not in line and len(line) < LONGEST, line


def flags_of(module) -> list[str]:
  values = flags.FlagValues()
  module.define_flags(values)
  return [x for x in values if x not in ('config', 'workdir')]


@pytest.mark.parametrize(
  'module',
  [train, generate, evaluate, describe, throughput, aot],
  ids=lambda m: m.__name__,
)
def test_every_flag_of_a_command(home, tmp_path, monkeypatch, module):
  def stop(*args, **kwargs):
    raise Accepted

  for target, name in (
    *((trained, 'load'), (loop, 'run'), (throughput, 'matmul_peak')),
    *((aot, 'compile_step'), (aot, 'search'), (topologies, '_open')),
    (step_lib, 'build_model'),
  ):
    monkeypatch.setattr(target, name, stop)
  # Other tests have touched the devices.
  monkeypatch.setattr(devices, 'use_all_cores', lambda: None)
  monkeypatch.chdir(tmp_path)
  given = {
    train: [f'--config={home}/small.py', f'--workdir={tmp_path}'],
    generate: [f'--workdir={tmp_path}'],
    evaluate: [f'--workdir={tmp_path}'],
    describe: [f'--config={home}/small.py'],
    throughput: [f'--config={home}/small.py'],
    aot: [f'--config={home}/small.py', '--topology=v5e:2x2'],
  }[module]
  for name in flags_of(module):
    for text in TEXTS:
      argv = [*given, f'--{name}={text}']
      try:
        line = refusal(lambda argv=argv: module.main(parsed(module, argv)))
      except SystemExit as end:  # hope.main ends its process itself
        assert end.code == errors.MISUSED
        continue
      if line is not None:
        check_line(line, name)


def test_the_search_for_arguments_finds_them():
  assert set(arguments('mqar')) == {'memory', 'seed'}
