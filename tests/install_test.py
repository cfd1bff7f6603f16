"""What is built installs into an empty environment, and works outside of it.

The packages are fetched from the package index, so that it takes minutes.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

from conftest import ROOT, cpu_devices
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('install')]
# The smallest run of the main job: what is tested is that its parts are there.
SMALL = (
  '--config.train.steps=3',
  '--config.model.num_layers=1',
  '--config.model.width=16',
  '--config.model.num_heads=1',
  '--config.data.seq_len=64',
  '--config.data.batch_size=2',
  '--config.evals.batches=1',
  '--config.optimizer.warmup_steps=1',
  '--config.sample.tokens=4',
)


def outside() -> dict[str, str]:
  """The environment of a program that does not see the checkout."""
  env = cpu_devices(1)
  return {k: v for k, v in env.items() if not k.startswith('PYTHON')}


def call(*command: object, cwd: pathlib.Path) -> str:
  """Runs a command; returns its output."""
  done = subprocess.run(
    [str(part) for part in command],
    cwd=cwd,
    env=outside(),
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def environment(folder: pathlib.Path, *packages: object) -> pathlib.Path:
  """The programs of a new virtual environment with these packages."""
  subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
  install = ('-m', 'pip', 'install', '--quiet', *packages)
  call(folder / 'bin' / 'python', *install, cwd=folder)
  return folder / 'bin'


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> pathlib.Path:
  """A copy of the sources, as building leaves files in its folder."""
  kept = shutil.ignore_patterns(
    '.*', 'build', 'dist', 'runs', '*.egg-info', '__pycache__'
  )
  return shutil.copytree(
    ROOT, tmp_path_factory.mktemp('sources') / 'hope-jax', ignore=kept
  )


@pytest.fixture(scope='module')
def tools(tmp_path_factory) -> pathlib.Path:
  """The programs of an environment that builds."""
  return environment(tmp_path_factory.mktemp('tools'), 'build', 'twine')


@pytest.fixture(scope='module')
def built(checkout, tools) -> pathlib.Path:
  """The sdist, and the wheel that is built from it."""
  call(tools / 'python', '-m', 'build', '--outdir=dist', '.', cwd=checkout)
  return checkout / 'dist'


@pytest.fixture(scope='module')
def programs(built, tmp_path_factory) -> pathlib.Path:
  """The programs of an environment that has nothing but the wheel."""
  (wheel,) = built.glob('*.whl')
  return environment(tmp_path_factory.mktemp('empty'), wheel)


@pytest.mark.timeout(1800)
def test_distributions_have_what_they_need(built, tools):
  call(tools / 'twine', 'check', '--strict', *built.iterdir(), cwd=built)
  (wheel,), (sdist,) = built.glob('*.whl'), built.glob('*.tar.gz')
  with zipfile.ZipFile(wheel) as file:
    names = set(file.namelist())
  assert {'hope/py.typed', 'optimizers/py.typed'} <= names
  assert {x.partition('/')[0] for x in names} == {
    *('hope', 'optimizers', wheel.name.split('-py3')[0] + '.dist-info')
  }
  for path in (*ROOT.glob('hope/**/*.py'), *ROOT.glob('optimizers/*.py')):
    assert path.relative_to(ROOT).as_posix() in names
  with tarfile.open(sdist) as file:
    names = {x.partition('/')[2] for x in file.getnames()}
  needed = ('README.md', 'LICENSE', 'requirements.txt', 'experiments/smoke.py')
  assert {*needed, 'optimizers/pyproject.toml', 'setup.cfg'} <= names


@pytest.mark.timeout(1800)
def test_commands_work_in_an_empty_folder(programs, tmp_path):
  def run(name, *arguments):
    return call(programs / name, *arguments, cwd=tmp_path)

  output = run('hope-train', '--config=smoke', *SMALL)
  assert 'The run is kept in runs/smoke.' in output and 'Done.' in output
  workdir = '--workdir=runs/smoke'
  assert run('hope-generate', workdir, '--tokens=4').startswith('def ')
  assert 'xz -9' in run('hope-evaluate', workdir)
  assert 'embedding' in run('hope-describe', '--config=mqar:memory=false')
  for name in ('train', 'generate', 'evaluate', 'describe'):
    usage = subprocess.run(
      [programs / f'hope-{name}', '--help'],
      cwd=tmp_path,
      env=outside(),
      capture_output=True,
      text=True,
    ).stdout
    assert f'  hope-{name} --' in usage
    assert '--config:' in usage or '--workdir:' in usage
  assert [x.name for x in tmp_path.iterdir()] == ['runs']


@pytest.mark.timeout(1800)
def test_the_package_explains_itself(programs, tmp_path):
  def python(program):
    return call(programs / 'python', '-c', program, cwd=tmp_path)

  text = python('import hope; help(hope)')
  for name in ('load(workdir', 'class TrainedModel', 'hope-train'):
    assert name in text
  program = 'import hope; print(hope.__version__, hope.__file__)'
  version, path = python(program).split()
  assert version in path or str(programs.parent) in path
  assert os.fspath(ROOT) not in path
  # Names that anybody may have are not taken.
  program = 'import importlib.util as u; print(u.find_spec("experiments"))'
  assert python(program) == 'None\n'


@pytest.mark.timeout(1800)
def test_the_optimizers_install_alone(checkout, tools, tmp_path):
  out = tmp_path / 'dist'
  folder = checkout / 'optimizers'
  call(tools / 'python', '-m', 'build', f'--outdir={out}', '.', cwd=folder)
  call(tools / 'twine', 'check', '--strict', *out.iterdir(), cwd=tmp_path)
  (wheel,) = out.glob('*.whl')
  python = environment(tmp_path / 'alone', wheel) / 'python'
  program = (
    'import hope_optimizers, jax.numpy as jnp, importlib.util as u\n'
    'tx = hope_optimizers.m3(0.1)\n'
    'params = {"kernel": jnp.ones((4, 3))}\n'
    'updates, _ = tx.update(params, tx.init(params), params)\n'
    'print(updates["kernel"].shape, u.find_spec("optimizers"))'
  )
  assert call(python, '-c', program, cwd=tmp_path) == '(4, 3) None\n'
