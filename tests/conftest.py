"""Fixtures for all tests."""

import socket

import jax
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
