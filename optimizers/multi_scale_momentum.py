"""M3, Multi-scale Momentum Muon (Algorithm 1 of arXiv:2512.24695)."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from . import arguments, matrices, orthogonalization
from .momentum import with_learning_rate


class ScaleByM3State(NamedTuple):
  """State of `scale_by_m3`; every tree is shaped like the parameters.

  Attributes:
    count: int32 [], steps so far.
    fast: M1, of every step.
    slow: M2, of whole windows of `period` steps.
    direction: O2, the slow memory orthogonalised when its last window ended.
    root: V^(1/2), in the unit of the gradients; None without a second moment.
  """

  count: jax.Array
  fast: optax.Updates
  slow: optax.Updates
  direction: optax.Updates
  root: Any


def scale_by_m3(
  b1: float = 0.9,
  b2: float = 0.999,
  b3: float = 0.95,
  alpha: float = 0.5,
  period: int = 8,
  *,
  nesterov: bool = False,
  sum_gradients: bool = False,
  second_moment: bool = False,
  eps: float = 1e-8,
  eps_root: float = 0.0,
  scale_by_shape: bool = False,
  consistent_rms: float | None = None,
  ns_steps: int = 5,
  ns_coefficients: Sequence[Any] = orthogonalization.COEFFICIENTS,
  ns_dtype: Any = None,
  mu_dtype: Any = None,
  slow_dtype: Any = None,
  nu_dtype: Any = None,
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
      E_t = \frac{D_t}{\sqrt{V_t / (1 - \beta_2^t) + \epsilon_r} + \epsilon}

  Choice: averages, as above, are the default. Algorithm 1 as printed
  (`sum_gradients=True, second_moment=True`, with its :math:`\epsilon` as
  `eps_root`) adds :math:`\beta_1 g_t`, :math:`\beta_3 \sum g_i` and
  :math:`\beta_2 g_t^2` to what was there; its update is
  :math:`D_t / \sqrt{V_t + \epsilon}`, whose size depends on that of the
  gradients. Averages keep the length of :math:`D_t`, so that Muon's learning
  rates work.

  Warning: sums forget nothing. V only grows, so that steps shrink as
  :math:`1 / \sqrt{t}`, and the momenta hold the first gradients for ever: on a
  quadratic of a single 2 x 2 matrix, `sum_gradients=True` circles
  around the minimum and does not converge, even where the learning rate decays
  to 0. It is there for comparison.

  Choice: :math:`\epsilon` is added to the root of V, as in Adam. The paper adds
  it to V; there, 1e-8 outweighs V wherever gradients are below 1e-4, and V does
  nothing. An entry of V's root below the rounding error of the largest entry of
  its matrix is replaced by that rounding error.

  Choice: the second moment, which Algorithm 1 has, is off by default, so that
  :math:`u_t = D_t`: with it M3 was worse or no better in nearly every race that
  was run (`optimizers/README.md`).

  With `alpha=0, b1=0.95, nesterov=True` this is
  `optax.contrib.scale_by_muon()`. With `scale_by_shape=True` as well, it is the
  rule of `optax.contrib.muon()`.

  Three trees of the size of the parameters are kept (four with a second
  moment). The slow memory is orthogonalised once every `period` steps. The
  update does not depend on the scale of the gradients, if eps is 0.

  Args:
    b1: decay of the fast memory.
    b2: decay of the second moment; b2, eps, eps_root and nu_dtype matter only
      with second_moment=True.
    b3: decay of the slow memory, per window.
    alpha: weight of the slow memory.
    period: f, steps of a window.
    nesterov: whether the fast memory is orthogonalised as it would be if the
      gradient of this step came once more.
    sum_gradients: sums as printed instead of averages; see the warning.
    second_moment: whether to divide by the root of V.
    eps: added to the root of V.
    eps_root: added to V.
    scale_by_shape: whether updates are multiplied by
      sqrt(max(1, outputs / inputs)) of their matrices, as by
      `optax.contrib.muon`.
    consistent_rms: if given, updates are multiplied by this and by
      sqrt(max(inputs, outputs)) instead; 0.2 gives them the size of those of
      AdamW.
    ns_steps: steps of Newton-Schulz.
    ns_coefficients: of Newton-Schulz; see `orthogonalization.newton_schulz`.
    ns_dtype: of the iteration; None: that of the gradients.
    mu_dtype: of the two memories; None: that of the parameters.
    slow_dtype: of the slow memory and its direction; None: `mu_dtype` and that
      of the parameters.
    nu_dtype: of the root of V; None: that of the parameters.
    axes: tree of `MatrixAxes` or `SplitAxes` with the paths of the parameters,
      or a function from a tree to one; all leaves have to be matrices or stacks
      of them. None: `matrix_axes`.
    mesh: whose devices share the matrices of one shape; see
      `orthogonalization.orthogonalize`.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    ValueError: if an argument is out of its bounds or, when used, naming a leaf
      that is not a matrix, or is complex.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  decays = arguments.SHARE if sum_gradients else arguments.FRACTION
  arguments.check(
    {'b1': decays, 'b2': decays, 'b3': decays},
    b1=b1,
    b2=b2,
    b3=b3,
    alpha=alpha,
    period=period,
    nesterov=nesterov,
    sum_gradients=sum_gradients,
    second_moment=second_moment,
    eps=eps,
    eps_root=eps_root,
    scale_by_shape=scale_by_shape,
    consistent_rms=consistent_rms,
    ns_steps=ns_steps,
    ns_coefficients=ns_coefficients,
    ns_dtype=ns_dtype,
    mu_dtype=mu_dtype,
    slow_dtype=slow_dtype,
    nu_dtype=nu_dtype,
  )
  axes = matrices.matrix_axes if axes is None else axes
  wide = matrices.at_least_float32

  def orthogonalize(tree, like):
    """Of a memory, in the type of the gradients."""
    return orthogonalization.orthogonalize(
      optax.tree.cast_like(tree, like),
      axes,
      mesh=mesh,
      steps=ns_steps,
      coefficients=ns_coefficients,
      dtype=ns_dtype,
    )

  def init_fn(params):
    matrices.check_matrices(matrices.axes_of_leaves(axes, params), params)

    def zeros(*dtypes):
      dtype = next((x for x in dtypes if x is not None), None)
      return optax.tree.zeros_like(params, dtype=dtype)

    return ScaleByM3State(
      count=jnp.zeros([], jnp.int32),
      fast=zeros(mu_dtype),
      slow=zeros(slow_dtype, mu_dtype),
      direction=zeros(slow_dtype),
      root=zeros(nu_dtype) if second_moment else None,
    )

  def update_fn(updates, state, params=None):
    del params
    place = state.count % period
    # The slow memory, of all windows that are complete.
    direction = lax.cond(
      (place == 0) & (state.count > 0),
      lambda slow, old: optax.tree.cast_like(orthogonalize(slow, updates), old),
      lambda slow, old: old,
      state.slow,
      state.direction,
    )
    if sum_gradients:
      fast_keep, fast_add = 1.0, b1
      slow_keep, slow_add = 1.0, b3
      root_keep, root_add = 1.0, b2
    else:
      fast_keep, fast_add = b1, 1 - b1
      slow_keep, slow_add = jnp.where(place == 0, b3, 1.0), (1 - b3) / period
      root_keep, root_add = b2, 1 - b2

    def add(keep, share):
      return lambda m, g: keep * wide(m) + share * wide(g)

    fast = jax.tree.map(add(fast_keep, fast_add), state.fast, updates)
    slow = jax.tree.map(add(slow_keep, slow_add), state.slow, updates)
    count = jnp.asarray(optax.safe_increment(state.count))

    read = fast
    if nesterov:
      known, next_known = 1.0, 1.0
      if not sum_gradients:
        known, next_known = 1 - b1**count, 1 - b1 ** (count + 1)
      read = jax.tree.map(
        lambda m, g: fast_keep * m / next_known + fast_add * wide(g) / known,
        fast,
        updates,
      )
    new = jax.tree.map(
      lambda o1, o2: wide(o1) + alpha * wide(o2),
      orthogonalize(read, updates),
      direction,
    )
    root = None
    if second_moment:
      root = jax.tree.map(
        lambda r, g: jnp.hypot(
          jnp.sqrt(root_keep) * wide(r), jnp.sqrt(root_add) * wide(g)
        ),
        state.root,
        updates,
      )
      if sum_gradients:
        new = jax.tree.map(
          lambda d, r: d / (jnp.hypot(r, jnp.sqrt(eps_root)) + eps), new, root
        )
      else:
        known = jnp.sqrt(1 - b2**count)

        def precondition(d, a, r):
          r = jnp.hypot(r / known, jnp.sqrt(eps_root)) + eps
          return _divided(d, a, r)

        new = matrices.map_matrices(precondition, axes, new, root)
    if scale_by_shape or consistent_rms is not None:
      new = matrices.map_matrices(
        lambda d, a: _shape_factor(d, a, consistent_rms) * d, axes, new
      )
    cast = optax.tree.cast_like
    return cast(new, updates), ScaleByM3State(
      count=count,
      fast=cast(fast, state.fast),
      slow=cast(slow, state.slow),
      direction=direction,
      root=None if root is None else cast(root, state.root),
    )

  return optax.GradientTransformation(init_fn, update_fn)


def _divided(d: jax.Array, axes: matrices.Axes, root: jax.Array) -> jax.Array:
  """d / root, each matrix with the Frobenius norm that it has in d."""
  stack, restore = matrices.to_stack(d, axes)
  root, _ = matrices.to_stack(root, axes)
  # Only ratios of entries count. Where the root is 0, so is the matrix.
  root = matrices.divide(root, matrices.largest(root))
  ratio = stack / jnp.maximum(root, jnp.finfo(root.dtype).eps)
  return restore(matrices.norm(stack) * matrices.unit(ratio))


def _shape_factor(
  x: jax.Array, axes: matrices.Axes, consistent_rms: float | None
) -> Any:
  """As `optax.contrib.scale_by_shape` has it."""
  _, inputs, outputs = matrices.stack_shape(x, axes)
  if consistent_rms is not None:
    return math.sqrt(max(inputs, outputs)) * consistent_rms
  return math.sqrt(max(1.0, outputs / max(inputs, 1)))


def m3(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  b3: float = 0.95,
  alpha: float = 0.5,
  period: int = 8,
  *,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  weight_decay_mask: Any = None,
  axes: Any = None,
  others: optax.GradientTransformation | None = None,
  adam_learning_rate: optax.ScalarOrSchedule | None = None,
  adam_b1: float = 0.9,
  adam_b2: float = 0.999,
  adam_eps: float = 1e-8,
  adam_weight_decay: optax.ScalarOrSchedule | None = None,
  nesterov: bool = False,
  sum_gradients: bool = False,
  second_moment: bool = False,
  eps: float = 1e-8,
  eps_root: float = 0.0,
  scale_by_shape: bool = False,
  consistent_rms: float | None = None,
  ns_steps: int = 5,
  ns_coefficients: Sequence[Any] = orthogonalization.COEFFICIENTS,
  ns_dtype: Any = None,
  mu_dtype: Any = None,
  slow_dtype: Any = None,
  nu_dtype: Any = None,
  mesh: Mesh | None = None,
) -> optax.GradientTransformation:
  """M3 for matrices; other leaves take another transformation.

  Args:
    learning_rate: a number or a schedule.
    b1: decay of the fast memory.
    b2: decay of the second moment; b2, eps, eps_root and nu_dtype matter only
      with second_moment=True.
    b3: decay of the slow memory, per window.
    alpha: weight of the slow memory.
    period: steps of a window of the slow memory.
    weight_decay: strength of decoupled decay, multiplied with learning_rate.
    weight_decay_mask: which leaves decay, a tree of bools or a function from
      the parameters to one; None: all.
    axes: tree of `MatrixAxes` or `SplitAxes` with the paths of the parameters,
      None where a leaf is not a matrix; or a function from the parameters to
      such a tree. None: `matrix_axes`, leaves of two axes.
    others: for the leaves that are not matrices, with a learning rate; None:
      AdamW with the five arguments below. It is optax's, which squares the
      gradient: in float32, an entry above 1.8e19 makes its second moment
      infinite, and that entry does not move again. `scale_by_m3` keeps the
      root of V, and has no such bound.
    adam_learning_rate: None: learning_rate.
    adam_b1: decay of AdamW's first moment.
    adam_b2: decay of its second moment.
    adam_eps: added to its root.
    adam_weight_decay: None: weight_decay. Its mask is that of the others.
    nesterov: whether the fast memory is orthogonalised with the gradient of
      this step once more.
    sum_gradients: sums as printed instead of averages; see `scale_by_m3`.
    second_moment: whether to divide by the root of the second moment.
    eps: added to that root.
    eps_root: added to the second moment.
    scale_by_shape: whether updates are multiplied by
      sqrt(max(1, outputs / inputs)) of their matrices.
    consistent_rms: a factor of sqrt(max(inputs, outputs)) instead; None: none.
    ns_steps: steps of Newton-Schulz.
    ns_coefficients: of Newton-Schulz; see `orthogonalization.newton_schulz`.
    ns_dtype: of the iteration; None: that of the gradients.
    mu_dtype: of the two memories, and of AdamW's first moment; None: that of
      the parameters.
    slow_dtype: of the slow memory and its direction; None: `mu_dtype` and that
      of the parameters.
    nu_dtype: of the root of the second moment; None: that of the parameters.
    mesh: whose devices share the matrices of one shape; see
      `orthogonalization.orthogonalize`.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    ValueError: as `scale_by_m3`, and if AdamW's learning rate or weight decay
      are given beside `others`, which has its own.

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
  arguments.check(
    adam_learning_rate=adam_learning_rate,
    adam_b1=adam_b1,
    adam_b2=adam_b2,
    adam_eps=adam_eps,
    adam_weight_decay=adam_weight_decay,
    mu_dtype=mu_dtype,
  )
  axes = matrices.matrix_axes if axes is None else axes

  def or_ours(value, ours):
    return ours if value is None else value

  if others is None:
    others = with_learning_rate(
      optax.scale_by_adam(adam_b1, adam_b2, adam_eps, mu_dtype=mu_dtype),
      or_ours(adam_learning_rate, learning_rate),
      or_ours(adam_weight_decay, weight_decay),
      weight_decay_mask,
    )
  elif adam_learning_rate is not None or adam_weight_decay is not None:
    raise ValueError(
      'adam_learning_rate and adam_weight_decay are for the default `others`: '
      'give them to the transformation that is passed as `others`.'
    )

  def labels(params):
    wanted = matrices.axes_of_leaves(axes, params)
    return jax.tree.structure(params).unflatten(
      ['others' if a is None else 'm3' for a in wanted]
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
          nesterov=nesterov,
          sum_gradients=sum_gradients,
          second_moment=second_moment,
          eps=eps,
          eps_root=eps_root,
          scale_by_shape=scale_by_shape,
          consistent_rms=consistent_rms,
          ns_steps=ns_steps,
          ns_coefficients=ns_coefficients,
          ns_dtype=ns_dtype,
          mu_dtype=mu_dtype,
          slow_dtype=slow_dtype,
          nu_dtype=nu_dtype,
          axes=axes,
          mesh=mesh,
        ),
        learning_rate,
        weight_decay,
        weight_decay_mask,
      ),
      'others': others,
    },
    labels,
  )
