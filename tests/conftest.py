"""Fixtures for all tests."""

from collections.abc import Iterator
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from hope import compilation_cache

ROOT = pathlib.Path(__file__).resolve().parents[1]

compilation_cache.use()


@pytest.fixture
def x64():
  """Arrays of float64 are kept as such."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='session')
def libtpu(tmp_path_factory) -> pathlib.Path:
  """A folder to import libtpu from: the release that this jax asks for."""
  if found := importlib.util.find_spec('libtpu'):
    return pathlib.Path(str(found.origin)).parents[1]
  folder = tmp_path_factory.mktemp('libtpu')
  (wanted,) = (
    requirement.partition(';')[0]
    for requirement in importlib.metadata.requires('jax') or ()
    if requirement.startswith('libtpu')
  )
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps']
  subprocess.run([*pip, f'--target={folder}', wanted], check=True)
  return folder


def cpu_devices(count: int) -> dict[str, str]:
  """The environment of a program with so many devices.

  Its code is not optimised by LLVM, as it takes longer to compile than to run.
  """
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(count),
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
  }


# What a program that is no command of hope begins with.
USE_CACHE = 'from hope import compilation_cache; compilation_cache.use()\n'


def run_program(program: str, *arguments: object, devices: int) -> Any:
  """What a program prints last, as JSON; it has an interpreter of its own."""
  done = subprocess.run(
    [sys.executable, '-c', USE_CACHE + program, *map(str, arguments)],
    cwd=ROOT,
    env=cpu_devices(devices),
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def terminal_signals() -> Iterator[None]:
  """What is started here gets signals as from a terminal.

  nohup and the & of a shell ignore some, and a process inherits that.
  """
  numbers = (signal.SIGINT, signal.SIGHUP)
  before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
  try:
    yield
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


def free_port() -> int:
  """A port of this machine that nothing listens on."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def write_texts(folder: pathlib.Path, length: int) -> None:
  """Writes 40 texts of so many random words into a new folder."""
  rng = np.random.default_rng(0)
  words = ['memory', 'learns', 'the', 'kernel', 'slowly', 'and', 'forgets']
  folder.mkdir()
  for j in range(40):
    text = ' '.join(rng.choice(words, size=length))
    (folder / f'{j}.txt').write_text(text)
