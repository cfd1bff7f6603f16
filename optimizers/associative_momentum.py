"""Adam and AdaGrad as optimal memories (Eq. 101-111 of arXiv:2512.24695)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import matrices
from .momentum import with_learning_rate

STATISTICS = ('squares', 'outer_product')


class AssociativeMomentumState(NamedTuple):
  """State of `scale_by_associative_momentum`.

  Attributes:
    count: int32 scalar, steps so far.
    mu: M, shaped like the parameters.
    nu: H, like the parameters; [stack, in, in] for a matrix with outer
      products.
  """

  count: jax.Array
  mu: optax.Updates
  nu: Any


def _recall(h: jax.Array, eps: float) -> jax.Array:
  """P / (H + eps) entry by entry, for P = sqrt(H)."""
  return jnp.sqrt(h) / (h + eps)


def _recall_matrix(h: jax.Array, eps: float) -> jax.Array:
  """(H + eps I)^-1 P for P = H^(1/2), of symmetric [..., i, i].

  Eigenvalues that are rounding errors count as zero.
  """
  dtype = h.dtype
  h = h.astype(jnp.promote_types(dtype, jnp.float32))
  values, vectors = jnp.linalg.eigh(h)
  least = values[..., -1:] * h.shape[-1] * jnp.finfo(h.dtype).eps
  known = values > least
  values = jnp.where(known, _recall(jnp.where(known, values, 1), eps), 0)
  recall = (vectors * values[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)
  return recall.astype(dtype)


def scale_by_associative_momentum(
  b1: float = 0.9,
  b2: float = 0.999,
  statistic: str = 'squares',
  *,
  eps: float = 1e-16,
  debias: bool = True,
  accumulator_dtype: Any = None,
  axes: Any = None,
) -> optax.GradientTransformation:
  r"""The memory that best maps past gradients to a statistic of them.

  Among all memories m, what maps the gradients so far to P best, in the sense
  of a ridge regression, has a closed form:

  .. math::
    m_t = \arg\min_m \sum_i \|m \, g_i - P_t\|^2 + \epsilon \|m\|^2
      = (H_t + \epsilon)^{-1} P_t M_t

  with M and H the decayed sums of :math:`g` and of :math:`g g^T`. For
  :math:`P = H^{1/2}` that is

  * 'squares', entry by entry: :math:`m = M / \sqrt{H}`, which is Adam;
  * 'outer_product', for matrices: :math:`m = H^{-1/2} M`, which with b2 = 1 is
    AdaGrad with a full matrix and momentum.

  Choice: as Adam has it, the two sums decay at rates of their own; with
  b2 = 1, H is the sum of all. For a matrix [in, out], H is [in, in]. A leaf
  whose axes are None takes 'squares'.

  Two trees of the size of the parameters are kept; with outer products H of a
  matrix has in * in numbers, and each step an eigendecomposition of it.

  Args:
    b1: decay of M.
    b2: decay of H; 1: the sum of all squares.
    statistic: 'squares' or 'outer_product'.
    eps: added to H; the square of Adam's.
    debias: whether M and H are divided by 1 - decay^t.
    accumulator_dtype: of M; None: that of the parameters.
    axes: tree of `MatrixAxes`, or a function from a tree to one, for outer
      products. None: the last two axes.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    ValueError: if the statistic is unknown.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  if statistic not in STATISTICS:
    raise ValueError(
      f'statistic={statistic!r} is unknown; choose one of {STATISTICS}.'
    )
  axes = matrices.stacked_matrix_axes if axes is None else axes

  def axes_of(tree):
    if statistic == 'outer_product':
      return matrices.resolve_axes(axes, tree)
    return jax.tree.map(lambda _: None, tree)

  def squares(g, a):
    if a is None:
      return jnp.square(g)
    stack, _ = matrices.to_stack(g, a)
    return stack @ jnp.swapaxes(stack, -1, -2)

  def init_fn(params):
    def nu(x, a):
      like = jax.eval_shape(lambda x: squares(x, a), x)
      return jnp.zeros(like.shape, like.dtype)

    return AssociativeMomentumState(
      jnp.zeros([], jnp.int32),
      optax.tree.zeros_like(params, dtype=accumulator_dtype),
      jax.tree.map(nu, params, axes_of(params)),
    )

  def update_fn(updates, state, params=None):
    del params
    wanted = axes_of(updates)
    count = jnp.asarray(optax.safe_increment(state.count))
    mu = jax.tree.map(
      lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates
    )
    add = jnp.where(b2 < 1, 1 - b2, 1.0)
    nu = jax.tree.map(
      lambda h, g, a: (b2 * h + add * squares(g, a)).astype(h.dtype),
      state.nu,
      updates,
      wanted,
    )
    mu_hat, nu_hat = mu, nu
    if debias:
      mu_hat = optax.tree.bias_correction(mu, b1, count)
      known = jnp.where(b2 < 1, 1 - b2**count, 1.0)
      nu_hat = jax.tree.map(lambda h: h / known.astype(h.dtype), nu)

    def read(m, h, a):
      if a is None:
        return _recall(h, eps) * m
      stack, restore = matrices.to_stack(m, a)
      return restore(_recall_matrix(h, eps) @ stack)

    read_updates = jax.tree.map(read, mu_hat, nu_hat, wanted)
    return (
      optax.tree.cast_like(read_updates, updates),
      AssociativeMomentumState(count, mu, nu),
    )

  return optax.GradientTransformation(init_fn, update_fn)


def associative_momentum(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.9,
  b2: float = 0.999,
  statistic: str = 'squares',
  *,
  eps: float = 1e-16,
  debias: bool = True,
  weight_decay: float = 0.0,
  accumulator_dtype: Any = None,
  axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_associative_momentum` with a learning rate.

  Args:
    learning_rate: a number or a schedule.
    b1: decay of M.
    b2: decay of H.
    statistic: 'squares' (Adam) or 'outer_product' (AdaGrad of matrices).
    eps: added to H.
    debias: whether M and H are divided by 1 - decay^t.
    weight_decay: decoupled, multiplied with the learning rate.
    accumulator_dtype: of M; None: that of the parameters.
    axes: of the matrices; None: the last two axes of a leaf.

  Returns:
    A transformation.

  Examples:
    >>> import jax.numpy as jnp
    >>> from optimizers import associative_momentum
    >>> params = jnp.array([3.0, -4.0])
    >>> tx = associative_momentum(0.1)
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> [round(float(x), 3) for x in updates]
    [-0.1, 0.1]
  """
  return with_learning_rate(
    scale_by_associative_momentum(
      b1,
      b2,
      statistic,
      eps=eps,
      debias=debias,
      accumulator_dtype=accumulator_dtype,
      axes=axes,
    ),
    learning_rate,
    weight_decay,
  )
