"""What a start compiles, the next one loads."""

import errno
import os
import pathlib
import subprocess
import sys

from absl import logging
import pytest

from hope import compilation_cache
from hope.compilation_cache import ProgramFolder

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = (
  'XDG_CACHE_HOME',
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_COMPILATION_CACHE_MAX_SIZE',
  'JAX_ENABLE_COMPILATION_CACHE',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
)
# A command that compiles two programs.
PROGRAM = """
from hope import command_line

def main(flags):
  import jax
  from hope import compilation_cache
  x = jax.jit(lambda x: x @ x + 1)(jax.numpy.eye(3))
  print(float(x.sum()), compilation_cache.loaded(), flush=True)

command_line.run(main, lambda flags: None)
"""


def start(**settings: str) -> subprocess.Popen:
  kept = {k: v for k, v in os.environ.items() if k not in SETTINGS}
  return subprocess.Popen(
    [sys.executable, '-c', PROGRAM],
    cwd=ROOT,
    env=kept | {'JAX_PLATFORMS': 'cpu', **settings},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process: subprocess.Popen) -> tuple[int, list[str]]:
  """(programs that were loaded, lines of the error output)."""
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  result, loaded = output.split()
  assert float(result) == 12
  return int(loaded), errors.splitlines()


def run(**settings: str) -> tuple[int, list[str]]:
  return finish(start(**settings))


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file())


@pytest.fixture(scope='module')
def filled(tmp_path_factory):
  """XDG_CACHE_HOME after a first start."""
  folder = tmp_path_factory.mktemp('home')
  assert run(XDG_CACHE_HOME=str(folder)) == (0, [])
  return folder


def test_a_second_start_loads_what_the_first_compiled(filled):
  kept = files(filled)
  assert {path.parent for path in kept} == {filled / 'hope-jax' / 'compiled'}
  assert run(XDG_CACHE_HOME=str(filled)) == (len(kept), [])
  assert files(filled) == kept


def test_a_home_without_settings(tmp_path, monkeypatch):
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  expected = tmp_path / '.cache' / 'hope-jax' / 'compiled'
  assert compilation_cache.default_folder() == expected


def test_another_folder(filled, tmp_path):
  used = lambda: [path.stat().st_mtime_ns for path in files(filled)]
  before = used()
  settings = {'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
  assert run(XDG_CACHE_HOME=str(filled), **settings) == (0, [])
  assert len(files(tmp_path)) == len(before) and used() == before


def test_off(filled):
  settings = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  before = files(filled)
  assert run(XDG_CACHE_HOME=str(filled), **settings) == (0, [])
  assert files(filled) == before


def damaged(content: bytes) -> list[bytes]:
  """A file as it must not be: empty, cut short, garbage, with a bit changed."""
  middle = len(content) // 2
  changed = bytearray(content)
  changed[middle] ^= 1
  return [b'', content[:middle], os.urandom(len(content)), bytes(changed)]


def test_damaged_programs_are_compiled_anew_once(filled):
  kept = files(filled)
  for j, path in enumerate(kept):
    path.write_bytes(damaged(path.read_bytes())[j % 4])
  assert run(XDG_CACHE_HOME=str(filled)) == (0, [])
  assert run(XDG_CACHE_HOME=str(filled)) == (len(kept), [])


@pytest.mark.parametrize('how', range(4))
def test_a_damaged_file_is_none(tmp_path, how):
  folder = ProgramFolder(tmp_path, -1)
  folder.put('key', b'program' * 100)
  assert folder.get('key') == b'program' * 100
  (path,) = files(tmp_path)
  path.write_bytes(damaged(path.read_bytes())[how])
  assert folder.get('key') is None
  assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_said_in_a_line(tmp_path):
  (tmp_path / 'hope-jax').write_text('no folder')
  loaded, errors = run(XDG_CACHE_HOME=str(tmp_path))
  assert loaded == 0
  (line,) = errors
  assert str(tmp_path) in line and 'JAX_COMPILATION_CACHE_DIR' in line


def test_a_full_disk_is_said_once_and_leaves_nothing(tmp_path, monkeypatch):
  warnings = []
  monkeypatch.setattr(
    logging, 'warning', lambda text, *values: warnings.append(text % values)
  )
  folder = ProgramFolder(tmp_path, -1)
  folder.put('before', b'program')
  kept = files(tmp_path)

  def replace(source, target):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as full:
    full.setattr(os, 'replace', replace)
    folder.put('one', b'program')
    folder.put('two', b'program')
  (warning,) = warnings
  assert str(tmp_path) in warning and 'No space left' in warning
  assert files(tmp_path) == kept
  assert folder.get('before') == b'program' and folder.get('one') is None


def test_processes_at_once(tmp_path):
  settings = {'XDG_CACHE_HOME': str(tmp_path)}
  running = [start(**settings) for _ in range(2)]
  for process in running:
    assert finish(process)[1] == []
  assert run(**settings) == (len(files(tmp_path)), [])


def test_a_bound_spares_what_was_used_last(tmp_path):
  for j in range(6):
    before = set(files(tmp_path))
    ProgramFolder(tmp_path, -1).put(f'{j}', bytes(100))
    (new,) = set(files(tmp_path)) - before
    os.utime(new, (j, j))
  folder = ProgramFolder(tmp_path, 1000)
  assert folder.get('0') == bytes(100)
  for j in range(6, 9):
    folder.put(f'{j}', bytes(100))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1000
  assert [folder.get(f'{j}') is not None for j in range(4)] == [
    *(True, False, False, True)
  ]
  assert folder.get('8') == bytes(100)
  folder.put('more than all', bytes(1000))
  assert folder.get('more than all') is None
  assert folder.get('8') == bytes(100)
