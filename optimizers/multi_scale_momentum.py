"""M3, Multi-scale Momentum Muon (Algorithm 1 of arXiv:2512.24695)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from . import matrices
from .momentum import with_learning_rate


class ScaleByM3State(NamedTuple):
  """State of `scale_by_m3`; every tree is shaped like the parameters.

  Attributes:
    count: int32 scalar, steps so far.
    fast: M1, of every step.
    slow: M2, of whole windows of `period` steps.
    direction: O2, the slow memory orthogonalised when its last window ended.
    nu: V, of squared gradients; None without a second moment.
  """

  count: jax.Array
  fast: optax.Updates
  slow: optax.Updates
  direction: optax.Updates
  nu: Any


def scale_by_m3(
  b1: float = 0.95,
  b2: float = 0.999,
  b3: float = 0.95,
  alpha: float = 0.5,
  period: int = 8,
  *,
  sum_gradients: bool = False,
  second_moment: bool = True,
  eps: float = 1e-8,
  ns_steps: int = 5,
  ns_coefficients: Sequence[Any] = matrices.COEFFICIENTS,
  ns_dtype: Any = None,
  mu_dtype: Any = None,
  axes: Any = None,
  mesh: Mesh | None = None,
) -> optax.GradientTransformation:
  r"""Rescales updates by two orthogonalised momenta of different time scales.

  At step t, in the window :math:`k = \lfloor t / f \rfloor` of f steps:

  .. math::
    M^{(1)}_t &= \beta_1 M^{(1)}_{t-1} + (1 - \beta_1) g_t \\
    M^{(2)}_k &= \beta_3 M^{(2)}_{k-1} + \frac{1 - \beta_3}{f}
      \sum_{i \in \text{window } k-1} g_i \\
    V_t &= \beta_2 V_{t-1} + (1 - \beta_2) g_t^2 \\
    D_t &= \mathrm{NS}(M^{(1)}_t) + \alpha \, \mathrm{NS}(M^{(2)}_k) \\
    u_t &= \|D_t\|_F \frac{E_t}{\|E_t\|_F}, \quad
      E_t = \frac{D_t}{\sqrt{V_t / (1 - \beta_2^t) + \epsilon}}

  Choice: averages, as above, are the default. Algorithm 1 as printed
  (`sum_gradients=True`) adds :math:`\beta_1 g_t`, :math:`\beta_3 \sum g_i` and
  :math:`\beta_2 g_t^2` to what was there and forgets nothing, so that V only
  grows and steps shrink as :math:`1 / \sqrt{t}`; its update is
  :math:`D_t / \sqrt{V_t + \epsilon}`, whose size depends on that of the
  gradients. Averages keep the length of :math:`D_t`, so that a learning rate of
  Muon serves.

  Four trees of the size of the parameters are kept (three without a second
  moment). The slow memory is orthogonalised once every `period` steps.

  Args:
    b1: decay of the fast memory.
    b2: decay of the second moment.
    b3: decay of the slow memory, per window.
    alpha: weight of the slow memory.
    period: f, steps of a window.
    sum_gradients: sums as printed instead of averages.
    second_moment: whether to divide by the root of V.
    eps: added to V before the root.
    ns_steps: steps of Newton-Schulz.
    ns_coefficients: of Newton-Schulz; see `matrices.newton_schulz`.
    ns_dtype: of the iteration; None: that of the gradients.
    mu_dtype: of the two memories; None: that of the parameters.
    axes: tree of `MatrixAxes`, or a function from a tree to one; all leaves
      have to be matrices or stacks of them. None: `matrix_axes`.
    mesh: whose devices share the matrices of one shape; see
      `matrices.orthogonalize`.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    ValueError: if `period` is below 1 or, when used, if a leaf is no matrix.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  axes = matrices.matrix_axes if axes is None else axes
  if isinstance(period, int) and period < 1:
    raise ValueError(f'period={period} must be at least 1.')

  def axes_of(tree):
    wanted = matrices.resolve_axes(axes, tree)
    for path, x in jax.tree_util.tree_leaves_with_path(
      wanted, is_leaf=matrices.is_axes
    ):
      if x is None:
        raise ValueError(
          f'{jax.tree_util.keystr(path)} is no matrix: give its `axes`, or '
          'leave it to another transformation, as m3() does.'
        )
    return wanted

  def orthogonalize(tree):
    return matrices.orthogonalize(
      tree,
      axes_of(tree),
      mesh=mesh,
      steps=ns_steps,
      coefficients=ns_coefficients,
      dtype=ns_dtype,
    )

  def init_fn(params):
    zeros = lambda dtype=None: optax.tree.zeros_like(params, dtype=dtype)
    return ScaleByM3State(
      jnp.zeros([], jnp.int32),
      zeros(mu_dtype),
      zeros(mu_dtype),
      zeros(),
      zeros() if second_moment else None,
    )

  def update_fn(updates, state, params=None):
    del params
    place = state.count % period
    # The slow memory, of all windows that are complete.
    direction = lax.cond(
      (place == 0) & (state.count > 0),
      lambda slow, old: optax.tree.cast_like(
        orthogonalize(optax.tree.cast_like(slow, updates)), old
      ),
      lambda slow, old: old,
      state.slow,
      state.direction,
    )
    if sum_gradients:
      fast_keep, fast_add = 1.0, b1
      slow_keep, slow_add = 1.0, b3
      nu_keep, nu_add = 1.0, b2
    else:
      fast_keep, fast_add = b1, 1 - b1
      slow_keep, slow_add = jnp.where(place == 0, b3, 1.0), (1 - b3) / period
      nu_keep, nu_add = b2, 1 - b2
    add = lambda keep, new: lambda m, g: keep * m + new * g
    fast = jax.tree.map(add(fast_keep, fast_add), state.fast, updates)
    slow = jax.tree.map(add(slow_keep, slow_add), state.slow, updates)
    count = jnp.asarray(optax.safe_increment(state.count))

    new = jax.tree.map(
      lambda o1, o2: o1 + alpha * o2,
      orthogonalize(optax.tree.cast_like(fast, updates)),
      direction,
    )
    nu = None
    if second_moment:
      nu = jax.tree.map(
        lambda v, g: nu_keep * v + nu_add * jnp.square(g), state.nu, updates
      )
      nu_hat = nu
      if not sum_gradients:
        nu_hat = optax.tree.bias_correction(nu, b2, count)
      scaled = jax.tree.map(lambda d, v: d / jnp.sqrt(v + eps), new, nu_hat)
      if not sum_gradients:
        scaled = jax.tree.map(_with_norm_of, scaled, new, axes_of(new))
      new = scaled
    cast = lambda tree, like: optax.tree.cast_like(tree, like)
    return cast(new, updates), ScaleByM3State(
      count,
      cast(fast, state.fast),
      cast(slow, state.slow),
      direction,
      None if nu is None else cast(nu, state.nu),
    )

  return optax.GradientTransformation(init_fn, update_fn)


def _with_norm_of(
  x: jax.Array, like: jax.Array, axes: matrices.MatrixAxes
) -> jax.Array:
  """x, each matrix with the Frobenius norm that it has in `like`."""
  stack, restore = matrices.to_stack(x, axes)
  norms = lambda y: jnp.linalg.norm(y, axis=(-2, -1), keepdims=True)
  ratio = norms(matrices.to_stack(like, axes)[0]) / norms(stack)
  return restore(jnp.where(norms(stack) > 0, ratio * stack, 0))


def m3(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.95,
  b2: float = 0.999,
  b3: float = 0.95,
  alpha: float = 0.5,
  period: int = 8,
  *,
  weight_decay: float = 0.0,
  axes: Any = None,
  others: optax.GradientTransformation | None = None,
  sum_gradients: bool = False,
  second_moment: bool = True,
  eps: float = 1e-8,
  ns_steps: int = 5,
  ns_coefficients: Sequence[Any] = matrices.COEFFICIENTS,
  ns_dtype: Any = None,
  mu_dtype: Any = None,
  mesh: Mesh | None = None,
) -> optax.GradientTransformation:
  """M3 for matrices; other leaves take another transformation.

  Args:
    learning_rate: a number or a schedule.
    b1: as in `scale_by_m3`, like the four below.
    b2: see above.
    b3: see above.
    alpha: see above.
    period: see above.
    weight_decay: strength of decoupled decay, multiplied with learning_rate.
    axes: tree of `MatrixAxes`, None where a leaf is no matrix; or a function
      from the parameters to one. None: `matrix_axes`, leaves of two axes.
    others: for the leaves that are no matrices, learning rate and all; None:
      `optax.adamw` with the same learning rate and weight decay.
    sum_gradients: as in `scale_by_m3`, like all below.
    second_moment: see above.
    eps: see above.
    ns_steps: see above.
    ns_coefficients: see above.
    ns_dtype: see above.
    mu_dtype: see above.
    mesh: see above.

  Returns:
    An `optax.GradientTransformation`.

  Examples:
    >>> import jax, jax.numpy as jnp, optax
    >>> from optimizers import m3
    >>> params = {'kernel': jnp.ones((3, 2)), 'bias': jnp.ones(2)}
    >>> tx = m3(learning_rate=0.02)
    >>> state = tx.init(params)
    >>> grads = jax.grad(optax.tree.norm)(params)
    >>> updates, state = tx.update(grads, state, params)
    >>> params = optax.apply_updates(params, updates)

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  axes = matrices.matrix_axes if axes is None else axes
  if others is None:
    others = with_learning_rate(
      optax.scale_by_adam(), learning_rate, weight_decay
    )

  def labels(params):
    return jax.tree.map(
      lambda a: 'others' if a is None else 'm3',
      matrices.resolve_axes(axes, params),
      is_leaf=matrices.is_axes,
    )

  return optax.partition(
    {
      'm3': with_learning_rate(
        scale_by_m3(
          b1,
          b2,
          b3,
          alpha,
          period,
          sum_gradients=sum_gradients,
          second_moment=second_moment,
          eps=eps,
          ns_steps=ns_steps,
          ns_coefficients=ns_coefficients,
          ns_dtype=ns_dtype,
          mu_dtype=mu_dtype,
          axes=axes,
          mesh=mesh,
        ),
        learning_rate,
        weight_decay,
      ),
      'others': others,
    },
    labels,
  )
