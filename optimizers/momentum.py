r"""Momentum as a memory of gradients (Eq. 46-52 of arXiv:2512.24695).

A momentum compresses the gradients of a run into a tree shaped like the
parameters. What it stores (P g, or features of g), how it forgets (decay alone,
or the delta rule) and what is read from it (m, or a function of m) are the
arguments here. As in optax, an update is +m; the learning rate brings the sign.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import arguments, matrices, paths

Precondition = (
  optax.GradientTransformation | Callable[[optax.Updates], optax.Updates]
)
Elementwise = Callable[[jax.Array], jax.Array]
Output = Callable[[optax.Updates], optax.Updates]


class MomentumState(NamedTuple):
  """State of the momenta of this module.

  Attributes:
    trace: m, shaped like the parameters.
    precondition: state of the preconditioner; () where it has none.
  """

  trace: optax.Updates
  precondition: Any


def _as_transformation(
  precondition: Precondition | None,
) -> optax.GradientTransformationExtraArgs:
  if precondition is None:
    return optax.with_extra_args_support(optax.identity())
  if isinstance(precondition, optax.GradientTransformation):
    return optax.with_extra_args_support(precondition)
  function = precondition
  return optax.with_extra_args_support(
    optax.stateless(lambda updates, params: function(updates))
  )


def _decay(decay: float) -> Callable[[optax.Updates, Any], optax.Updates]:
  """Forgets by decay alone, whatever the gradients are."""
  arguments.check(decay=decay)
  return lambda trace, _: optax.tree.scale(decay, trace)


def _momentum(
  forget: Callable[[optax.Updates, optax.Updates], optax.Updates],
  precondition: Precondition | None,
  feature: Elementwise | None,
  output: Output | None,
  accumulator_dtype: Any,
) -> optax.GradientTransformationExtraArgs:
  """m <- forget(m, g) + P phi(g); the update is output(m)."""
  arguments.check(
    precondition=precondition,
    feature=feature,
    output=output,
    accumulator_dtype=accumulator_dtype,
  )
  rule = _as_transformation(precondition)

  def init_fn(params):
    return MomentumState(
      optax.tree.zeros_like(params, dtype=accumulator_dtype),
      rule.init(params),
    )

  def update_fn(updates, state, params=None, **extra_args):
    written = updates
    if feature is not None:
      paths.check_real(updates)
      written = jax.tree.map(feature, updates)
    written, rule_state = rule.update(
      written, state.precondition, params, **extra_args
    )
    trace = optax.tree.add(forget(state.trace, updates), written)
    read = trace if output is None else output(trace)
    return (
      optax.tree.cast_like(read, updates),
      MomentumState(optax.tree.cast_like(trace, state.trace), rule_state),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_preconditioned_momentum(
  decay: float = 0.9,
  precondition: Precondition | None = None,
  *,
  output: Output | None = None,
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Momentum of preconditioned gradients (Eq. 46-47).

  .. math::
    m_t = \alpha \, m_{t-1} + P_t \, g_t, \qquad u_t = \sigma(m_t)

  One tree of the size of the parameters is kept.

  Args:
    decay: alpha.
    precondition: P, a transformation such as `optax.scale_by_rms()`, or a
      function from updates to updates; None: the identity, `optax.trace`.
    output: sigma (Eq. 52), from the tree of m to the tree of updates, such as
      `orthogonalize`; None: m itself.
    accumulator_dtype: of m; None: that of the parameters.

  Returns:
    A transformation; extra arguments are passed to the preconditioner.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  return _momentum(_decay(decay), precondition, None, output, accumulator_dtype)


def scale_by_feature_momentum(
  feature: Elementwise | None = None,
  decay: float = 0.9,
  precondition: Precondition | None = None,
  *,
  output: Output | None = None,
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Momentum of features of the gradients (Eq. 51).

  .. math::
    m_t = \alpha \, m_{t-1} + P_t \, \phi(g_t), \qquad u_t = \sigma(m_t)

  Choice: the paper leaves phi open; tanh, which keeps small entries and bounds
  large ones, is the default.

  One tree of the size of the parameters is kept.

  Args:
    feature: phi, from an array to one of its shape, entry by entry or not;
      None: tanh.
    decay: alpha.
    precondition: as in `scale_by_preconditioned_momentum`.
    output: sigma, as in `scale_by_preconditioned_momentum`.
    accumulator_dtype: of m; None: that of the parameters.

  Returns:
    A transformation; extra arguments are passed to the preconditioner.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  return _momentum(
    _decay(decay),
    precondition,
    jnp.tanh if feature is None else feature,
    output,
    accumulator_dtype,
  )


def _erase(
  m: jax.Array, g: jax.Array, axes: matrices.Axes | None, erase: float
) -> jax.Array:
  """eps G G^T m, of every matrix of a leaf, for G of any size.

  With s the largest entry of G, eps G G^T is that of G / s with a strength of
  e s^2, so that no product of gradients overflows.
  """
  g, held = matrices.at_least_float32(g), matrices.at_least_float32(m)
  keys, _ = matrices.to_stack_of_any(g, axes)
  held, restore = matrices.to_stack_of_any(held, axes)
  size = matrices.largest(keys)
  keys = matrices.divide(keys, size)
  square = jnp.sum(jnp.square(keys), axis=(-2, -1), keepdims=True)
  step = 1 / (1 / size / size / erase + square)
  transposed = jnp.swapaxes(keys, -1, -2)
  if keys.shape[-2] < keys.shape[-1]:
    stored = (keys @ transposed) @ held
  else:
    stored = keys @ (transposed @ held)
  return restore(step * stored)


def scale_by_delta_momentum(
  decay: float = 0.9,
  erase: float = 1.0,
  precondition: Precondition | None = None,
  *,
  output: Output | None = None,
  accumulator_dtype: Any = None,
  axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Momentum that forgets by the delta rule (Eq. 48-49).

  m forgets what it holds along the gradients of this step:

  .. math::
    m_t = (\alpha I - \epsilon_t \, G_t G_t^T) \, m_{t-1} + P_t \, g_t, \qquad
    \epsilon_t = \frac{e}{1 + e \|G_t\|_F^2}, \qquad u_t = \sigma(m_t)

  Choice: the step is normalised as in Eq. 56, so that no direction of m is
  multiplied by less than alpha - 1 or more than alpha, for gradients of any
  size; the paper has :math:`\epsilon = 1`.

  One tree of the size of the parameters is kept.

  Args:
    decay: alpha.
    erase: e, >= 0. With 0 this is `scale_by_preconditioned_momentum`.
    precondition: as in `scale_by_preconditioned_momentum`.
    output: sigma, as in `scale_by_preconditioned_momentum`.
    accumulator_dtype: of m; None: that of the parameters.
    axes: tree of `MatrixAxes` or `SplitAxes`, or a function from a tree to one.
      G is the matrix [input, output] of a leaf, each of a stack by itself; a
      leaf whose axes are None is one column. None: the last two axes.

  Returns:
    A transformation; extra arguments are passed to the preconditioner.

  Raises:
    ValueError: if decay or erase are out of their bounds or, when used, naming
      a leaf that is complex or whose axes cannot be.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  arguments.check(decay=decay, erase=erase)
  axes = matrices.stacked_matrix_axes if axes is None else axes

  def forget(trace, updates):
    paths.check_real(updates)
    return matrices.map_matrices(
      lambda g, a, m: decay * m - _erase(m, g, a, erase), axes, updates, trace
    )

  return _momentum(
    _decay(decay) if is_zero(erase) else forget,
    precondition,
    None,
    output,
    accumulator_dtype,
  )


def is_zero(x: Any) -> bool:
  """Whether an argument is the number 0, and not one that is injected."""
  return isinstance(x, (int, float)) and x == 0


def with_learning_rate(
  rule: optax.GradientTransformation,
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: optax.ScalarOrSchedule,
  weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """A rule with decoupled weight decay and a learning rate.

  The chain is the same with and without decay, so that the state does not
  depend on the decay; `optax.inject_hyperparams` needs this. Only decay needs
  the parameters.

  Args:
    rule: without a learning rate.
    learning_rate: a number or a schedule.
    weight_decay: multiplied with the learning rate.
    weight_decay_mask: which leaves decay: a tree of bools with the paths of the
      parameters, or a prefix of one, in containers of any type; or a function
      from the parameters to one. None: all.
  """
  arguments.check(learning_rate=learning_rate, weight_decay=weight_decay)
  decay = optax.add_decayed_weights(weight_decay)
  if is_zero(weight_decay):
    decay = optax.identity()
  if weight_decay_mask is not None:

    def mask(tree):
      return paths.find_tree('weight_decay_mask', weight_decay_mask, tree)

    decay = optax.masked(decay, mask)
  return optax.with_extra_args_support(
    optax.chain(rule, decay, optax.scale_by_learning_rate(learning_rate))
  )


def preconditioned_momentum(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  precondition: Precondition | None = None,
  *,
  output: Output | None = None,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  weight_decay_mask: Any = None,
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_preconditioned_momentum` with a learning rate.

  Args:
    learning_rate: a number or a schedule.
    decay: alpha.
    precondition: P.
    output: sigma.
    weight_decay: decoupled, multiplied with the learning rate.
    weight_decay_mask: which leaves decay, a tree of bools or a function from
      the parameters to one; None: all.
    accumulator_dtype: of m; None: that of the parameters.

  Returns:
    A transformation.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from optimizers import preconditioned_momentum
    >>> params = jnp.array([1.0, 2.0])
    >>> tx = preconditioned_momentum(0.1, precondition=optax.scale_by_rms())
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> bool((updates < 0).all())
    True
  """
  return with_learning_rate(
    scale_by_preconditioned_momentum(
      decay,
      precondition,
      output=output,
      accumulator_dtype=accumulator_dtype,
    ),
    learning_rate,
    weight_decay,
    weight_decay_mask,
  )


def feature_momentum(
  learning_rate: optax.ScalarOrSchedule,
  feature: Elementwise | None = None,
  decay: float = 0.9,
  precondition: Precondition | None = None,
  *,
  output: Output | None = None,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  weight_decay_mask: Any = None,
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_feature_momentum` with a learning rate.

  Args:
    learning_rate: a number or a schedule.
    feature: phi; None: tanh.
    decay: alpha.
    precondition: P.
    output: sigma.
    weight_decay: decoupled, multiplied with the learning rate.
    weight_decay_mask: which leaves decay, a tree of bools or a function from
      the parameters to one; None: all.
    accumulator_dtype: of m; None: that of the parameters.

  Returns:
    A transformation.

  Examples:
    >>> import jax.numpy as jnp
    >>> from optimizers import feature_momentum
    >>> params = jnp.array([1.0, -200.0])
    >>> tx = feature_momentum(0.5)
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> [round(float(x), 2) for x in updates]
    [-0.38, 0.5]
  """
  return with_learning_rate(
    scale_by_feature_momentum(
      feature,
      decay,
      precondition,
      output=output,
      accumulator_dtype=accumulator_dtype,
    ),
    learning_rate,
    weight_decay,
    weight_decay_mask,
  )


def delta_momentum(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  erase: float = 1.0,
  precondition: Precondition | None = None,
  *,
  output: Output | None = None,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  weight_decay_mask: Any = None,
  accumulator_dtype: Any = None,
  axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_delta_momentum` with a learning rate.

  Args:
    learning_rate: a number or a schedule.
    decay: alpha.
    erase: strength of the delta rule.
    precondition: P.
    output: sigma.
    weight_decay: decoupled, multiplied with the learning rate.
    weight_decay_mask: which leaves decay, a tree of bools or a function from
      the parameters to one; None: all.
    accumulator_dtype: of m; None: that of the parameters.
    axes: of the matrices; None: the last two axes of a leaf.

  Returns:
    A transformation.

  Examples:
    >>> import jax.numpy as jnp
    >>> from optimizers import delta_momentum
    >>> params = jnp.array([3.0, 4.0])
    >>> tx = delta_momentum(0.1)
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> [round(float(x), 2) for x in updates]
    [-0.3, -0.4]
  """
  return with_learning_rate(
    scale_by_delta_momentum(
      decay,
      erase,
      precondition,
      output=output,
      accumulator_dtype=accumulator_dtype,
      axes=axes,
    ),
    learning_rate,
    weight_decay,
    weight_decay_mask,
  )
