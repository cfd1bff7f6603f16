"""What `import hope` and `import optimizers` give, and experiments by name."""

import ast
import configparser
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib
import types

from absl import flags
from conftest import ROOT
import ml_collections
import pytest

import hope
from hope import command_line, experiment_files, version
from hope.commands import train
import optimizers


def last_lines(program: str) -> str:
  """What a program prints, in an interpreter of its own."""
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_import_is_lazy():
  program = (
    'import sys, hope; dir(hope); hope.__version__; hope.experiment\n'
    'print({"jax", "numpy", "flax", "ml_collections"} & {*sys.modules})'
  )
  assert last_lines(program) == 'set()\n'


def test_names_are_those_of_their_places():
  assert hope.__all__ == sorted(hope.__all__) == sorted(hope._PLACES)
  for name, place in hope._PLACES.items():
    module, _, attribute = place.partition(':')
    assert getattr(hope, name) is getattr(
      importlib.import_module(module), attribute
    )
    assert name in dir(hope)
  with pytest.raises(AttributeError, match="'hope' has no attribute 'lode'"):
    _ = hope.lode


def test_type_checkers_see_the_same_names():
  tree = ast.parse(pathlib.Path(hope.__file__).read_text())
  (block,) = [x for x in tree.body if isinstance(x, ast.If)]
  seen = {
    alias.asname: f'{line.module}:{alias.name}'
    for line in block.body
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
  }
  assert seen == hope._PLACES


def test_public_names_are_documented():
  for package in (hope, optimizers):
    assert package.__doc__ and len(package.__doc__.splitlines()) > 10
    for name in package.__all__:
      value = getattr(package, name)
      if not isinstance(value, str):
        assert value.__doc__, name


def test_optimizers_lists_all_that_it_gives():
  public = {
    name
    for name, value in vars(optimizers).items()
    if not name.startswith('_') and not isinstance(value, types.ModuleType)
  }
  assert sorted(optimizers.__all__) == sorted(public)
  for name in optimizers.__all__:
    assert re.search(rf'^  {name}\b', optimizers.__doc__, re.M), name


@pytest.mark.parametrize('name', ['generate', 'evaluate', 'describe'])
def test_commands_do_not_hide_functions(name):
  with pytest.raises(ImportError, match=f'run `python -m hope.{name}`'):
    importlib.import_module(f'hope.{name}')
  assert callable(getattr(hope, name))


def test_version():
  stated = configparser.ConfigParser()
  stated.read(ROOT / 'setup.cfg')
  assert hope.__version__ == stated['metadata']['version']


def test_version_of_what_is_installed(monkeypatch, tmp_path):
  asked = []
  monkeypatch.setattr(version, '__file__', str(tmp_path / 'hope' / 'x.py'))
  monkeypatch.setattr(
    version.importlib.metadata, 'version', lambda x: asked.append(x) or '9'
  )
  assert version._version() == '9' and asked == ['hope-jax']
  # Somebody else's.
  (tmp_path / 'setup.cfg').write_text('[metadata]\nname = x\nversion = 3\n')
  assert version._version() == '9'


def test_the_optimizers_alone_are_the_same_package():
  """What their own distribution states is what this one states."""
  alone = tomllib.loads((ROOT / 'optimizers/pyproject.toml').read_text())
  project = alone['project']
  assert project['version'] == hope.__version__
  stated = configparser.ConfigParser()
  stated.read(ROOT / 'setup.cfg')
  assert project['requires-python'] == stated['options']['python_requires']
  assert project['license'] == stated['metadata']['license']
  common = (ROOT / 'requirements.txt').read_text().split()
  assert set(project['dependencies']) <= set(common)
  licence = (ROOT / 'LICENSE').read_text()
  assert (ROOT / 'optimizers/LICENSE').read_text() == licence
  imported = set()
  for path in (ROOT / 'optimizers').glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import):
        imported |= {alias.name.partition('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and not node.level:
        imported.add(str(node.module).partition('.')[0])
  needed = {x.partition('>')[0] for x in project['dependencies']}
  assert imported - set(sys.stdlib_module_names) == needed


# ----------------------------------------------------------------- experiments


def test_experiments_have_names():
  assert {'lm', 'mqar', 'smoke', 'text_memory'} <= set(experiment_files.names())
  assert 'optimizer_race' not in experiment_files.names()
  for name in experiment_files.names():
    assert isinstance(hope.experiment(name), ml_collections.ConfigDict)


def test_an_experiment_takes_arguments():
  assert hope.experiment('mqar:seed=3,memory=false').seed == 3
  assert hope.experiment(f'{ROOT}/experiments/mqar.py:seed=4').seed == 4


@pytest.mark.parametrize(
  ('text', 'error', 'message'),
  [
    ('smok', ValueError, "'smok' is neither .* Did you mean smoke?"),
    ('none', ValueError, 'there are formal_languages, lm, mad, mqar'),
    ('mqar:seeed=1', ValueError, 'Did you mean seed?'),
    ('none.py', OSError, "no configuration file 'none.py'"),
    ('', OSError, 'no configuration file'),
  ],
)
def test_a_mistyped_experiment_is_a_line(text, error, message):
  with pytest.raises(error, match=message) as found:
    hope.experiment(text)
  assert '\n' not in str(found.value)


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert experiment_files.resolve('smoke') != 'smoke'
  (tmp_path / 'smoke').write_text('')
  assert experiment_files.resolve('smoke') == 'smoke'


def test_commands_take_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  argv = ['program', '--config=mqar:seed=3', '--config.train.steps=7']
  monkeypatch.setattr(sys, 'argv', argv)
  values = flags.FlagValues()
  train.define_flags(values)
  command_line.parse(values, argv)
  assert (values.config.seed, values.config.train.steps) == (3, 7)
  assert train._default_workdir(values) == 'runs/mqar-seed=3'


@pytest.mark.parametrize(
  ('text', 'workdir'),
  [('smoke', 'runs/smoke'), ('a/b.py', 'runs/b'), ('a/b.py:c=1', 'runs/b-c=1')],
)
def test_the_default_workdir(text, workdir):
  assert experiment_files.default_workdir(text) == workdir
