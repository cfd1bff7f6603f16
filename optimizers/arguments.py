"""Bounds of the arguments of all rules, by name, and their check.

A name means one thing in every rule, so that one table says what is allowed.
"""

from collections.abc import Callable
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Of float32, in which most of them end.
_LARGEST = float(np.finfo(np.float32).max)


class Allowed(NamedTuple):
  """What an argument may be.

  Attributes:
    words: for messages, as in 'must be a number from 0 to 1'.
    test: whether a value is one.
  """

  words: str
  test: Callable[[Any], bool]


def _as_number(x: Any) -> Any:
  """x as a number of Python, if it is one; a bool is none."""
  if isinstance(x, (jax.Array, np.ndarray, np.generic)) and jnp.ndim(x) == 0:
    x = x.item()
  return None if isinstance(x, bool) or not isinstance(x, numbers.Real) else x


def _shown(x: Any, most: int = 60) -> str:
  """A value in a message, on one line."""
  try:
    text = ' '.join(repr(x).split())
  except ValueError:  # An integer of more digits than Python prints.
    return f'an integer of {x.bit_length()} bits'
  return text if len(text) <= most else text[:most] + '...'


def _number(words: str, test: Callable[[Any], bool] | None = None) -> Allowed:
  def is_one(x):
    x = _as_number(x)
    if x is None or not abs(x) <= _LARGEST:
      return False
    # As float32 has it, in which 1 - 1e-12 is 1.
    return test is None or test(float(np.float32(x)))

  return Allowed(words, is_one)


def _whole(least: int, most: int) -> Allowed:
  def is_one(x):
    x = _as_number(x)
    return isinstance(x, int) and least <= x <= most

  return Allowed(f'a whole number from {least} to {most:,}', is_one)


def _or(other: Allowed, words: str, test: Callable[[Any], bool]) -> Allowed:
  def is_one(x):
    return test(x) or other.test(x)

  return Allowed(f'{other.words} or {words}', is_one)


def _or_none(other: Allowed) -> Allowed:
  return _or(other, 'None', lambda x: x is None)


def _is_dtype(x: Any) -> bool:
  try:
    return jnp.issubdtype(jnp.dtype(x), jnp.floating)
  except TypeError:
    return False


def _are_triples(x: Any) -> bool:
  try:
    array = np.asarray(x, np.float64)
  except (TypeError, ValueError):
    return False
  triples = array.ndim in (1, 2) and array.shape[-1] == 3
  return triples and bool(np.isfinite(array).all())


def one_of(*choices: str) -> Allowed:
  """One of some words."""
  return Allowed(f'one of {choices}', lambda x: x in choices)


FRACTION = _number('a number of at least 0 and below 1', lambda x: 0 <= x < 1)
FRACTION_OR_ONE = _number('a number from 0 to 1', lambda x: 0 <= x <= 1)
# Of a sum that forgets nothing, what is added of each gradient.
SHARE = _number('a number above 0 and at most 1', lambda x: 0 < x <= 1)
_NOT_NEGATIVE = _number('a finite number of at least 0', lambda x: x >= 0)
_RATE = _or(_number('a finite number'), 'a schedule', callable)
_DTYPE = _or_none(Allowed('a floating type', _is_dtype))
_BOOL = Allowed('True or False', lambda x: isinstance(x, (bool, np.bool_)))
_FUNCTION = _or_none(Allowed('a function', callable))

ALLOWED: dict[str, Allowed] = {
  'learning_rate': _RATE,
  'adam_learning_rate': _or_none(_RATE),
  'weight_decay': _or(_NOT_NEGATIVE, 'a schedule', callable),
  'adam_weight_decay': _or_none(_or(_NOT_NEGATIVE, 'a schedule', callable)),
  'inner_learning_rate': _NOT_NEGATIVE,
  'b1': FRACTION,
  'b2': FRACTION,
  'b3': FRACTION,
  'beta': FRACTION,
  'adam_b1': FRACTION,
  'adam_b2': FRACTION,
  'decay': FRACTION_OR_ONE,
  'retention': FRACTION_OR_ONE,
  'alpha': _NOT_NEGATIVE,
  'erase': _NOT_NEGATIVE,
  'eps': _NOT_NEGATIVE,
  'eps_root': _NOT_NEGATIVE,
  'adam_eps': _NOT_NEGATIVE,
  'consistent_rms': _or_none(_NOT_NEGATIVE),
  'period': _whole(1, 2**31 - 1),
  'depth': _whole(1, 100),
  'width': _whole(1, 2**20),
  'seed': _whole(0, 2**32 - 1),
  'ns_steps': _whole(1, 100),
  'ns_coefficients': Allowed('(a, b, c) or one triple per step', _are_triples),
  'ns_coeffs': Allowed('(a, b, c) or one triple per step', _are_triples),
  'sum_gradients': _BOOL,
  'second_moment': _BOOL,
  'nesterov': _BOOL,
  'adaptive': _BOOL,
  'scale_by_shape': _BOOL,
  'debias': _BOOL,
  'normalize': _BOOL,
  'mu_dtype': _DTYPE,
  'nu_dtype': _DTYPE,
  'slow_dtype': _DTYPE,
  'ns_dtype': _DTYPE,
  'accumulator_dtype': _DTYPE,
  'accumulate': one_of('gradients', 'updates'),
  'statistic': one_of('squares', 'outer_product'),
  'objective': one_of('l2', 'dot'),
  'preconditioning': one_of('frobenius', 'spectral', 'aol', 'schatten'),
  'feature': _FUNCTION,
  'output': _FUNCTION,
  'precondition': _or(
    _FUNCTION,
    'a transformation',
    lambda x: isinstance(x, optax.GradientTransformation),
  ),
}


def _is_traced(x: Any) -> bool:
  """Whether the value of x is not known here."""
  return isinstance(x, jax.core.Tracer) or (
    isinstance(x, jax.Array) and not x.is_fully_addressable
  )


def check(
  allowed: dict[str, Allowed] | None = None, /, **arguments: Any
) -> None:
  """Refuses arguments that no rule can work with.

  Args:
    allowed: where a rule allows something else than `ALLOWED`.
    **arguments: by name. Nothing is asked of a value that is traced, as those
      of `optax.inject_hyperparams` are.

  Raises:
    ValueError: naming the argument, what was given and what is allowed.
  """
  table = ALLOWED | (allowed or {})
  for name, value in arguments.items():
    if not _is_traced(value) and not table[name].test(value):
      raise ValueError(f'{name}={_shown(value)} must be {table[name].words}.')
