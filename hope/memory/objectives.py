"""Objectives of the inner learning, and the errors that memories descend on.

'delta' is the loss 'l2', learned by the delta rule: the last layer of a memory
descends on its error at the current state, and not at the state at the chunk's
start (`hope.memory.mlp`).
"""

import jax
from jax import lax
import jax.numpy as jnp

NAMES = ('l2', 'dot', 'delta')
# Added to a squared norm, so that the gradient of its root is finite at 0.
_SMALLEST_SQUARE = 1e-12


def loss(name: str, prediction: jax.Array, target: jax.Array) -> jax.Array:
  """An objective's value: -<M(k), v> for 'dot', else 1/2 |M(k) - v|^2.

  Args:
    name: one of NAMES.
    prediction: [..., o], M(k).
    target: [..., o], the wanted value v.

  Returns:
    [..., 1].

  Raises:
    ValueError: for any other name.
  """
  if name in ('l2', 'delta'):
    values = 0.5 * jnp.square(prediction - target)
  elif name == 'dot':
    values = -prediction * target
  else:
    raise ValueError(f'objective={name!r} is unknown; choose one of {NAMES}.')
  return jnp.sum(values, axis=-1, keepdims=True)


def error(name: str, prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Gradient of an objective with respect to the memory's output.

  `l2` and `delta`: 1/2 |M(k) - v|^2, so g = M(k) - v. `dot`: -<M(k), v>, so
  g = -v. (Eq. 92 of arXiv:2512.24695 prints this with the opposite sign; we
  descend.) The target is a given value for the inner learning; the outer
  gradient flows through it.

  Args:
    name: one of NAMES.
    prediction: [..., o], M(k).
    target: [..., o], the wanted value v.

  Returns:
    g, [..., o].

  Raises:
    ValueError: for any other name.
  """
  if name in ('l2', 'delta'):
    return prediction - target
  if name == 'dot':
    return -target
  raise ValueError(f'objective={name!r} is unknown; choose one of {NAMES}.')


def bound_norm(x: jax.Array, bound: float) -> jax.Array:
  """x [..., o], shortened to the norm `bound` over o where it is longer."""
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jnp.minimum(1, bound * lax.rsqrt(square + _SMALLEST_SQUARE))
