"""Fixtures for all tests."""

import jax
import pytest


@pytest.fixture
def x64():
  """Arrays of float64 are kept as such."""
  with jax.enable_x64(True):
    yield
