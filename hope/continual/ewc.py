"""Elastic weight consolidation: what earlier tasks make of a parameter.

Kirkpatrick et al. (2017, arXiv:1612.00796) add a penalty to the loss of a task,

  lambda / 2 sum_k sum_i F_k,i (theta_i - theta_k,i)^2,

over the tasks k before it, with theta_k the parameters after task k and F_k the
diagonal of their Fisher information. Schwarz et al. (2018, arXiv:1805.06370)
keep one penalty at the last parameters: F <- gamma F + F_k.

Sums of squares are squares: the penalties of all tasks are, but for a constant,
one at center = sum_k F_k theta_k / sum_k F_k of precision sum_k F_k. So both
kinds keep one `Penalty`, whatever the number of tasks.

`Choice:` the Fisher information is of the labels that the data have (the
empirical one), as in most implementations; the paper does not say.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Penalty(NamedTuple):
  """A quadratic penalty; both trees are of the shapes of the parameters.

  Attributes:
    precision: sums of Fisher information, not negative.
    center: where the penalty is 0.
  """

  precision: Any
  center: Any


def nothing(params: Any) -> Penalty:
  """The penalty before the first task: 0 everywhere."""
  return Penalty(jax.tree.map(jnp.zeros_like, params), params)


def value(penalty: Penalty, params: Any) -> jax.Array:
  """1/2 sum_i precision_i (theta_i - center_i)^2, without lambda; []."""
  terms = jax.tree.map(
    lambda f, c, x: jnp.sum(f * (x - c) ** 2), *penalty, params
  )
  return 0.5 * jnp.asarray(optax.tree.sum(terms))


def fisher(
  losses: Callable[[Any, Any], tuple[jax.Array, jax.Array]],
  params: Any,
  rows: Any,
  counted: jax.Array,
) -> Any:
  """Means over examples of the squared gradients of their log-likelihoods.

  Args:
    losses: of a `Model`: nats [n] first.
    params: where the gradients are taken.
    rows: arrays [n, ...] by name.
    counted: float [n], 1 for an example and 0 for padding.

  Returns:
    A tree of the shapes of the parameters; 0 where nothing is counted.
  """
  gradient = jax.grad(lambda p, row: losses(p, row)[0].sum())

  def add(total, of_row):
    row, weight = of_row
    found = gradient(params, jax.tree.map(lambda x: x[None], row))
    return jax.tree.map(lambda t, g: t + weight * g**2, total, found), None

  zero = jax.tree.map(jnp.zeros_like, params)
  total, _ = jax.lax.scan(add, zero, (rows, counted))
  number = jnp.maximum(counted.sum(), 1)
  return jax.tree.map(lambda t: t / number, total)


def add_task(penalty: Penalty, information: Any, params: Any) -> Penalty:
  """One more penalty beside the earlier ones (Kirkpatrick et al.).

  Args:
    penalty: of the tasks before.
    information: Fisher information of the task that was learned.
    params: after it.
  """
  precision = jax.tree.map(jnp.add, penalty.precision, information)

  def center(old, f, total, x):
    # The mean of both centers; the weight of the new one is 0 where both are.
    weight = jnp.where(total > 0, f / jnp.where(total > 0, total, 1), 0)
    return old + weight * (x - old)

  return Penalty(
    precision,
    jax.tree.map(center, penalty.center, information, precision, params),
  )


def move(
  penalty: Penalty, information: Any, params: Any, decay: float
) -> Penalty:
  """The one penalty, at new parameters (Schwarz et al., online EWC).

  Args:
    penalty: of the tasks before.
    information: Fisher information of the task that was learned.
    params: after it.
    decay: gamma, in [0, 1], of the precision before.
  """
  precision = jax.tree.map(
    lambda old, f: decay * old + f, penalty.precision, information
  )
  return Penalty(precision, params)
