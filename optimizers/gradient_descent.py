r"""Gradient descent with a memory of its inputs (section 4.5 of 2512.24695).

The gradient of a kernel W [i, o] of a layer y = u W is E[u g^T], with g the
error at the layer's output. Plain gradient descent adds -g to the value that W
holds for u, whatever that value is. Delta gradient descent learns the pair
(u, -g) by regression instead, which replaces the old value for u (Eq. 56-57).
It needs the layer's inputs: `update(grads, state, params, inputs=...)` takes
their second moments E[u u^T].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import arguments, paths

OBJECTIVES = ('l2', 'dot')
Objective = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class GradientDescentState(NamedTuple):
  """State of `generalized_gradient_descent`.

  Attributes:
    count: int32 [], steps so far, for a schedule.
  """

  count: jax.Array


def second_moments(activations: Any) -> Any:
  """E[u u^T] of every leaf.

  Args:
    activations: tree of [..., i]: the inputs of layers; the mean is over all
      axes but the last.

  Returns:
    A tree of [i, i].
  """

  def moment(u):
    rows = u.reshape(-1, u.shape[-1])
    return rows.T @ rows / rows.shape[0]

  return jax.tree.map(moment, activations)


def _direction(objective: str | Objective) -> Objective:
  """(gradient, kernel, second moment) -> what is descended along."""
  if callable(objective):
    return objective
  if objective == 'l2':
    return lambda g, w, moment: g + moment @ w
  if objective == 'dot':
    return lambda g, w, moment: g
  raise ValueError(
    f'objective={objective!r} is unknown; choose one of {OBJECTIVES} or give a '
    'function.'
  )


def generalized_gradient_descent(
  learning_rate: optax.ScalarOrSchedule,
  objective: str | Objective = 'l2',
  retention: float = 1.0,
  *,
  normalize: bool = True,
) -> optax.GradientTransformationExtraArgs:
  r"""Descends an inner objective of each layer's inputs and errors (Def. 5).

  .. math::
    W_{t+1} = \arg\min_W \tilde L(W; u_t, g_t) +
      \frac{1}{2 \eta} \|W - W_t\|^2

  With the objective :math:`\langle W^T u, g \rangle` ('dot') this is gradient
  descent. With :math:`\frac12 \|W^T u + g\|^2` ('l2') and one token it is

  .. math::
    W_{t+1} = (\alpha I - \eta' u u^T) W_t - \eta' u g^T, \qquad
    \eta' = \frac{\eta}{1 + \eta |u|^2}

  and for a batch the outer products become E[u u^T] and the gradient, and
  :math:`|u|^2` its mean, the trace of E[u u^T].

  No tree is kept, only the number of steps.

  Args:
    learning_rate: eta, a number or a schedule.
    objective: 'l2', 'dot' or a function (gradient [..., i, o], kernel like it,
      second moment [..., i, i]) -> direction like the gradient.
    retention: alpha; 1 keeps all.
    normalize: whether eta is divided by 1 + eta E|u|^2; always False for 'dot',
      whose minimiser has no such factor.

  Returns:
    A transformation whose `update` takes `inputs`, a tree with the paths of the
    parameters, in containers of any type:
    second moments [..., i, i] for kernels [..., i, o]; None for a leaf that has
    none, which takes a step of plain gradient descent. The result is the change
    of the parameters, with the learning rate in it. In `optax.MultiSteps`, give
    the mean of the period so far at every step: only the last one is read.

  Raises:
    ValueError: if an argument is out of its bounds or, when used, if `inputs`
      or `params` are not given, or naming a leaf that is complex, of which
      `inputs` says nothing or whose shape does not fit.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  direction = _direction(objective)
  arguments.check(
    learning_rate=learning_rate, retention=retention, normalize=normalize
  )

  def init_fn(params):
    paths.check_real(params)
    return GradientDescentState(jnp.zeros([], jnp.int32))

  def update_fn(updates, state, params=None, *, inputs=None, **extra_args):
    del extra_args
    if params is None:
      raise ValueError('update needs params: update(grads, state, params).')
    if inputs is None and objective != 'dot':
      raise ValueError(
        'delta gradient descent needs the inputs of the layers: call '
        'update(grads, state, params, inputs=...) with second moments '
        'E[u u^T] for kernels (see second_moments) and None for other leaves.'
      )
    eta = jnp.asarray(
      learning_rate(state.count) if callable(learning_rate) else learning_rate
    )

    def change(path, g, w, moment):
      if moment is None:
        return ((retention - 1) * w - eta * g).astype(g.dtype)
      wanted = (*w.shape[:-1], w.shape[-2]) if w.ndim >= 2 else None
      if moment.shape != wanted:
        raise ValueError(
          f'inputs of {paths.text(path)!r} has shape {moment.shape}; the '
          f'second moment of a kernel {w.shape} has shape {wanted}.'
        )
      step = eta
      if normalize and objective != 'dot':
        square = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None]
        step = eta / (1 + eta * square)
      return ((retention - 1) * w - step * direction(g, w, moment)).astype(
        g.dtype
      )

    paths.check_real(updates)
    structure = jax.tree.structure(updates)
    changes = [
      change(path, g, w, moment)
      for (path, g), w, moment in zip(
        paths.leaves_with_path(updates),
        structure.flatten_up_to(params),
        paths.find('inputs', inputs, updates),
        strict=True,
      )
    ]
    return structure.unflatten(changes), GradientDescentState(
      jnp.asarray(optax.safe_increment(state.count))
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def delta_gradient_descent(
  learning_rate: optax.ScalarOrSchedule,
  retention: float = 1.0,
  *,
  normalize: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """`generalized_gradient_descent` with the L2 objective (Eq. 56-57).

  Args:
    learning_rate: eta, a number or a schedule.
    retention: alpha; 1 keeps all.
    normalize: whether eta is divided by 1 + eta E|u|^2, as the exact minimiser
      of Eq. 56 has it.

  Returns:
    A transformation whose `update` needs `inputs`; see
    `generalized_gradient_descent`.

  Examples:
    >>> import jax, jax.numpy as jnp, optax
    >>> from optimizers import delta_gradient_descent, second_moments
    >>> u, target = jnp.ones((8, 3)), jnp.ones((8, 2))
    >>> params = {'kernel': jnp.zeros((3, 2)), 'bias': jnp.zeros(2)}
    >>> loss = lambda p: jnp.mean((u @ p['kernel'] + p['bias'] - target) ** 2)
    >>> tx = delta_gradient_descent(0.1)
    >>> state = tx.init(params)
    >>> inputs = {'kernel': second_moments(u), 'bias': None}
    >>> updates, state = tx.update(
    ...   jax.grad(loss)(params), state, params, inputs=inputs
    ... )
    >>> bool(loss(optax.apply_updates(params, updates)) < loss(params))
    True

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  return generalized_gradient_descent(
    learning_rate, 'l2', retention, normalize=normalize
  )
