"""What the tests of the optimizers share."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optimizers


def gradients(params, count, seed=0):
  """A sequence of `count` random trees like params."""
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
  return [jax.tree.map(draw, params) for _ in range(count)]


def run(tx, params, sequence, **extra):
  """The updates of a sequence of gradients, and the state after it."""
  update, state, out = jax.jit(tx.update), tx.init(params), []
  for g in sequence:
    updates, state = update(g, state, params, **extra)
    out.append(updates)
  return out, state


class Case(NamedTuple):
  """An optimizer with a learning rate, as the contract sees it.

  Attributes:
    make: from a learning rate to the transformation, all else at its default.
    memory: numbers that its docstring says are kept for a matrix [i, o]; None:
      it says so of levels, not of matrices.
    inputs: whether `update` takes second moments of the layers' inputs.
    static: arguments that are no hyperparameters to inject.
    decays: whether it takes `weight_decay`.
  """

  make: Callable[..., Any]
  memory: Callable[[int, int], int] | None
  inputs: bool = False
  static: tuple[str, ...] = ()
  decays: bool = True

  def extra(self, params) -> dict[str, Any]:
    """Extra arguments of `update`: inputs of mean square 1 for matrices."""
    if not self.inputs:
      return {}
    moment = lambda x: (
      jnp.broadcast_to(
        jnp.eye(x.shape[-2], dtype=x.dtype) / x.shape[-2],
        (*x.shape[:-1], x.shape[-2]),
      )
      if x.ndim >= 2
      else None
    )
    return {'inputs': jax.tree.map(moment, params)}


def _muon_of_momentum(learning_rate, weight_decay=0.0):
  """Nonlinear output (Eq. 52), for the leaves that are matrices."""
  output = lambda m: optimizers.orthogonalize(
    m, optimizers.stacked_matrix_axes(m)
  )
  matrix = lambda tree: jax.tree.map(
    lambda x: 'matrix' if x.ndim >= 2 else 'other', tree
  )
  return optax.partition(
    {
      'matrix': optimizers.preconditioned_momentum(
        learning_rate, output=output, weight_decay=weight_decay
      ),
      'other': optimizers.preconditioned_momentum(
        learning_rate, weight_decay=weight_decay
      ),
    },
    matrix,
  )


def _two_levels(learning_rate):
  """Matrices at every step, other leaves at every second."""
  return optimizers.multi_timescale(
    {'fast': (1, optax.sgd(learning_rate)), 'slow': (2, optax.sgd(1e-3))},
    lambda tree: jax.tree.map(
      lambda x: 'fast' if x.ndim >= 2 else 'slow', tree
    ),
  )


def _trees(count: int) -> Callable[[int, int], int]:
  return lambda i, o: count * i * o


CASES = {
  'preconditioned_momentum': Case(
    optimizers.preconditioned_momentum, _trees(1)
  ),
  'feature_momentum': Case(optimizers.feature_momentum, _trees(1)),
  'delta_momentum': Case(optimizers.delta_momentum, _trees(1)),
  'nonlinear_output': Case(_muon_of_momentum, _trees(1)),
  'deep_momentum': Case(
    optimizers.deep_momentum,
    lambda i, o: 64 * (2 * i + o),
    static=('depth', 'width', 'seed'),
  ),
  'associative_momentum': Case(optimizers.associative_momentum, _trees(2)),
  'outer_products': Case(
    functools.partial(
      optimizers.associative_momentum, statistic='outer_product'
    ),
    lambda i, o: i * o + i * i,
  ),
  'm3': Case(
    functools.partial(optimizers.m3, second_moment=True),
    _trees(4),
    static=('ns_steps',),
  ),
  'm3_with_the_helpers_of_muon': Case(
    functools.partial(optimizers.m3, nesterov=True, scale_by_shape=True),
    _trees(3),
    static=('ns_steps',),
  ),
  'delta_gradient_descent': Case(
    optimizers.delta_gradient_descent, _trees(0), inputs=True, decays=False
  ),
  'generalized_gradient_descent': Case(
    optimizers.generalized_gradient_descent,
    _trees(0),
    inputs=True,
    decays=False,
  ),
  'multi_timescale': Case(_two_levels, None, decays=False),
}
