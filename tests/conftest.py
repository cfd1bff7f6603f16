"""Fixtures for all tests."""

import pathlib
import socket

import jax
import numpy as np
import pytest


@pytest.fixture
def x64():
  """Arrays of float64 are kept as such."""
  with jax.enable_x64(True):
    yield


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
