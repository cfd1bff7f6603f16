"""Rotary embedding of positions (arXiv:2104.09864)."""

import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

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
) -> np.ndarray:
  """Radians per token of each pair of coordinates.

  Args:
    half: number of pairs.
    theta: base: pair j turns theta^(-j / half) radians a token.
    scaling: None: none.

  Returns:
    float64 [half].
  """
  plain = theta ** (-np.arange(half) / half)
  if scaling is None:
    return plain
  turns = scaling.original * plain / (2 * math.pi)  # in the original context
  span = scaling.high_factor - scaling.low_factor
  kept = np.clip((turns - scaling.low_factor) / span, 0, 1)
  return plain * (kept + (1 - kept) / scaling.factor)


def _high_word(a: jax.Array, b: np.ndarray) -> jax.Array:
  """The upper 32 bits of the 64 of a product of uint32 [...]."""
  a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
  left, right = a_high * b_low, a_low * b_high
  carry = (a_low * b_low >> 16) + (left & 0xFFFF) + (right & 0xFFFF)
  return a_high * b_high + (left >> 16) + (right >> 16) + (carry >> 16)


def _angles(position: jax.Array, frequency: np.ndarray) -> jax.Array:
  """position * frequency less whole turns, in [-pi, pi).

  In float32 the product itself would lose the angle in a long stream: its
  rounding is a radian at position 10^7. So a frequency is taken in units of
  2^-64 turns, and products of integers drop whole turns by themselves.

  Args:
    position: int32 [...].
    frequency: float64 [half], radians per token.

  Returns:
    [..., half], equally exact at all positions.
  """
  fraction = (frequency / (2 * math.pi) % 1 * 2.0**64).astype(np.uint64)
  high = (fraction >> np.uint64(32)).astype(np.uint32)
  low = fraction.astype(np.uint32)
  p = position[..., None].astype(jnp.uint32)
  turns = lax.bitcast_convert_type(p * high + _high_word(p, low), jnp.int32)
  units = turns.astype(float) + (p * low).astype(float) * 2.0**-32
  return units * (2 * math.pi / 2**32)


def rotate(x: jax.Array, position: jax.Array, frequency: np.ndarray):
  """Turns pairs (j, j + half) of coordinates by their positions' angles.

  Args:
    x: [b, t, n, 2 half].
    position: int32 [t] or [b, t], not negative.
    frequency: float64 [half], of `frequencies`.

  Returns:
    An array like x.
  """
  angle = _angles(position, frequency)
  sin, cos = jnp.sin(angle)[..., None, :], jnp.cos(angle)[..., None, :]
  a, b = jnp.split(at_least_float32(x), 2, axis=-1)
  y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y.astype(x.dtype)
