"""Rotary embedding of positions (arXiv:2104.09864)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope.layers.precision import at_least_float32


class Llama3Scaling(NamedTuple):
  """How Llama 3 slows the rotations of long wavelengths.

  A wavelength below original / high_factor tokens is kept, one above original /
  low_factor is multiplied by factor, and one between is interpolated.

  Attributes:
    factor: of long wavelengths.
    low_factor: of the longest wavelength that is interpolated.
    high_factor: of the shortest one.
    original: tokens of context before the scaling.
  """

  factor: float
  low_factor: float
  high_factor: float
  original: int


def frequencies(
  half: int, theta: float, scaling: Llama3Scaling | None = None
) -> jax.Array:
  """Radians per token of each pair of coordinates.

  Args:
    half: number of pairs.
    theta: base: pair j turns theta^(-j / half) radians a token.
    scaling: None: none.

  Returns:
    [half].
  """
  plain = theta ** (-jnp.arange(half) / half)
  if scaling is None:
    return plain
  turns = scaling.original * plain / (2 * math.pi)  # in the original context
  span = scaling.high_factor - scaling.low_factor
  kept = jnp.clip((turns - scaling.low_factor) / span, 0, 1)
  return plain * (kept + (1 - kept) / scaling.factor)


def rotate(x: jax.Array, position: jax.Array, frequency: jax.Array):
  """Turns pairs (j, j + half) of coordinates by their positions' angles.

  Args:
    x: [b, t, n, 2 half].
    position: int32 [t] or [b, t].
    frequency: [half], of `frequencies`.

  Returns:
    An array like x.
  """
  angle = position[..., None] * frequency
  sin, cos = jnp.sin(angle)[..., None, :], jnp.cos(angle)[..., None, :]
  a, b = jnp.split(at_least_float32(x), 2, axis=-1)
  y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y.astype(x.dtype)
