"""The launcher under test, and a program that it launches in place of training.

The stub does what the files in its workdir say, so that a test can end, kill
and stop processes one by one. It tells of itself in started-INDEX-PID.
"""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from conftest import ROOT, terminal_signals

LAUNCH = ROOT / 'launch'
sys.path.insert(0, str(LAUNCH))  # launch/ is no package
pod = importlib.import_module('pod')

CONFIG = 'experiments/smoke.py'

STUB = """
import json, os, pathlib, signal, subprocess, sys, time

flags = dict(word.lstrip('-').split('=', 1) for word in sys.argv[1:])
workdir = pathlib.Path(flags['workdir'])
distributed = flags['distributed'].split(',')
index = os.environ.get('WORKER_INDEX', distributed[-1])
if 'child' in flags:
  subprocess.Popen(['sleep', flags['child']])

def save(number, frame):
  print(f'stub {index} saved', flush=True)
  if 'stubborn' not in flags:
    os._exit(42)

signal.signal(signal.SIGTERM, save)
print(f'stub {index} started', flush=True)
told = workdir / f'.{index}-{os.getpid()}'
told.write_text(json.dumps({
  'index': index,
  'pid': os.getpid(),
  'distributed': flags['distributed'],
  'environment': dict(os.environ),
}))
told.rename(workdir / f'started-{index}-{os.getpid()}')
while True:
  for name in (f'exit-{index}', 'exit-all'):
    path = workdir / name
    if path.exists():
      code = int(path.read_text())
      if name != 'exit-all':
        path.unlink()
      print(f'stub {index} exits with {code}', flush=True)
      sys.exit(code)
  time.sleep(0.02)
"""


def write_stub(directory):
  """Returns the command that runs the stub."""
  path = directory / 'stub.py'
  path.write_text(STUB)
  return f'{sys.executable} -S {path}'


def write(path, text):
  """Writes a file at once, as the stub may look at any time."""
  new = path.with_name(f'new-{path.name}')
  new.write_text(text)
  new.rename(path)


def wait_for(condition, seconds=60):
  """Returns the first true value of condition()."""
  end = time.monotonic() + seconds
  while not (value := condition()):
    assert time.monotonic() < end, 'it did not happen'
    time.sleep(0.02)
  return value


def started(workdir, count):
  """Waits for that many starts; returns what the stubs told, oldest first."""

  def look():
    paths = sorted(workdir.glob('started-*'), key=lambda p: p.stat().st_mtime)
    return paths if len(paths) >= count else None

  told = [json.loads(path.read_text()) for path in wait_for(look)]
  assert len(told) == count
  return told


def alive_in_group(group):
  """Returns the ids of a group's processes, zombies left out."""
  pids = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      state, _, its_group = path.read_text().rpartition(')')[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
      continue
    if int(its_group) == group and state not in 'ZX':
      pids.append(int(path.parent.name))
  return pids


def is_gone(pid):
  """Whether there is no such process, or a zombie."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return True
  return stat.rpartition(')')[2].split()[0] in 'ZX'


def launch(*arguments, env=None, before=(), **kwargs):
  """Starts launch/pod.py, after the words of another command if given."""
  with terminal_signals():
    return subprocess.Popen(
      [
        *(*before, sys.executable, str(LAUNCH / 'pod.py')),
        *map(str, arguments),
      ],
      cwd=ROOT,
      env={**os.environ, **(env or {})},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      **kwargs,
    )


def finish(process, seconds=120):
  """Returns (exit code, standard output, standard error)."""
  out, err = process.communicate(timeout=seconds)
  return process.returncode, out, err


def children(pid):
  """The ids of a process's children."""
  path = pathlib.Path(f'/proc/{pid}/task/{pid}/children')
  return [int(child) for child in path.read_text().split()]


def command_line(pid):
  """How a process was started."""
  return pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().decode()


def kill(pid):
  """kill -9."""
  os.kill(pid, signal.SIGKILL)
