"""Adam and AdaGrad as optimal memories (Eq. 101-111 of arXiv:2512.24695)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import arguments, matrices, paths
from .momentum import with_learning_rate


class AssociativeMomentumState(NamedTuple):
  """State of `scale_by_associative_momentum`.

  Attributes:
    count: int32 [], steps so far.
    mu: M, shaped like the parameters.
    root: H^(1/2), like the parameters; [stack, in, in] for a matrix with outer
      products. In the unit of the gradients, so that gradients whose squares
      overflow or vanish have one.
  """

  count: jax.Array
  mu: optax.Updates
  root: Any


def _denominator(root: jax.Array, eps: jax.typing.ArrayLike) -> jax.Array:
  """(H + eps) / P for P = sqrt(H) = root; infinite where H is 0."""
  return jnp.where(root == 0, jnp.inf, root + matrices.divide(eps, root))


def _root_of_squares(
  root: jax.Array, g: jax.Array, keep: jax.typing.ArrayLike, add: jax.Array
) -> jax.Array:
  """sqrt(keep root^2 + add g^2), entry by entry."""
  return jnp.hypot(jnp.sqrt(keep) * root, jnp.sqrt(add) * g)


def _root_of_outer_products(
  root: jax.Array, g: jax.Array, keep: jax.typing.ArrayLike, add: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(keep root^2 + add g g^T)^(1/2) by its eigenvalues and vectors.

  Args:
    root: symmetric, [b, i, i].
    g: [b, i, o].
    keep: of H.
    add: of the outer product.

  Returns:
    (size [b, 1, 1], values [b, i], vectors): size times values are the
    eigenvalues, and what is a rounding error is zero.
  """
  most = jnp.maximum(matrices.largest(root), matrices.largest(g))
  r, g = matrices.divide(root, most), matrices.divide(g, most)
  h = keep * r @ r + add * g @ jnp.swapaxes(g, -1, -2)
  values, vectors = jnp.linalg.eigh(h)
  least = values[..., -1:] * h.shape[-1] * jnp.finfo(h.dtype).eps
  # What is not a number stays so.
  values = jnp.where(values <= least, 0, values)
  return most, jnp.sqrt(values), vectors


def _of_eigenvalues(values: jax.Array, vectors: jax.Array) -> jax.Array:
  """The symmetric matrices of some eigenvalues and vectors."""
  return (vectors * values[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)


def scale_by_associative_momentum(
  b1: float = 0.9,
  b2: float = 0.999,
  statistic: str = 'squares',
  *,
  eps: float = 1e-16,
  debias: bool = True,
  accumulator_dtype: Any = None,
  nu_dtype: Any = None,
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

  Choice: as in Adam, each of the two sums decays at its own rate; with b2 = 1,
  H is the sum of all. For a matrix [in, out], H is [in, in]. A leaf whose axes
  are None takes 'squares'.

  Choice: the state holds the root of H and not H, so that it is finite for
  gradients of any size: at 1e20, H itself overflows in float32.

  Two trees of the size of the parameters are kept. With outer products, H of a
  matrix has in * in numbers, and each step computes its eigendecomposition. A
  program with many of them on several CPU devices can wait for ever (jax
  0.10.2); give it one.

  Args:
    b1: decay of M.
    b2: decay of H; 1: the sum of all squares.
    statistic: 'squares' or 'outer_product'.
    eps: added to H; the square of Adam's.
    debias: whether M and H are divided by 1 - decay^t.
    accumulator_dtype: of M; None: that of the parameters.
    nu_dtype: of the root of H; None: that of the parameters.
    axes: tree of `MatrixAxes` or `SplitAxes`, or a function from a tree to one,
      for outer products. None: the last two axes.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    ValueError: if an argument is out of its bounds or, when used, naming a leaf
      that is complex or whose axes cannot be.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  arguments.check(
    {'b2': arguments.FRACTION_OR_ONE},
    b1=b1,
    b2=b2,
    statistic=statistic,
    eps=eps,
    debias=debias,
    accumulator_dtype=accumulator_dtype,
    nu_dtype=nu_dtype,
  )
  if statistic == 'squares':
    axes = matrices.no_matrix_axes
  elif axes is None:
    axes = matrices.stacked_matrix_axes

  def init_fn(params):
    paths.check_real(params)

    def root(x, a):
      dtype = x.dtype if nu_dtype is None else nu_dtype
      if a is None:
        return jnp.zeros_like(x, dtype=dtype)
      b, i, _ = matrices.stack_shape(x, a)
      return jnp.zeros((b, i, i), dtype)

    return AssociativeMomentumState(
      jnp.zeros([], jnp.int32),
      optax.tree.zeros_like(params, dtype=accumulator_dtype),
      matrices.map_matrices(root, axes, params),
    )

  def update_fn(updates, state, params=None):
    del params
    paths.check_real(updates)
    count = jnp.asarray(optax.safe_increment(state.count))
    add = jnp.where(b2 < 1, 1 - b2, 1.0)
    # What the sums are divided by.
    mu_known, known = 1.0, 1.0
    if debias:
      mu_known = 1 - b1**count
      known = jnp.sqrt(jnp.where(b2 < 1, 1 - b2**count, 1.0))

    def step(g, a, m, root):
      wide = matrices.at_least_float32
      g, m, old = wide(g), wide(m), wide(root)
      m = b1 * m + (1 - b1) * g
      read = m / mu_known
      if a is None:
        new = _root_of_squares(old, g, b2, add)
        read = read / _denominator(new / known, eps)
      else:
        stack, _ = matrices.to_stack(g, a)
        size, values, vectors = _root_of_outer_products(old, stack, b2, add)
        new = size * _of_eigenvalues(values, vectors)
        # All in units of size, so that no number overflows or vanishes.
        ridge = matrices.divide(matrices.divide(eps, size), size)[..., 0]
        recall = _of_eigenvalues(
          1 / _denominator(values / known, ridge), vectors
        )
        stack, restore = matrices.to_stack(read, a)
        read = restore(recall @ matrices.divide(stack, size))
      return read, m, new.astype(root.dtype)

    structure = jax.tree.structure(updates)
    steps = structure.flatten_up_to(
      matrices.map_matrices(step, axes, updates, state.mu, state.root)
    )
    read, mu, root = (
      structure.unflatten([x[place] for x in steps]) for place in range(3)
    )
    return (
      optax.tree.cast_like(read, updates),
      AssociativeMomentumState(count, optax.tree.cast_like(mu, state.mu), root),
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
  weight_decay: optax.ScalarOrSchedule = 0.0,
  weight_decay_mask: Any = None,
  accumulator_dtype: Any = None,
  nu_dtype: Any = None,
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
    weight_decay_mask: which leaves decay, a tree of bools or a function from
      the parameters to one; None: all.
    accumulator_dtype: of M; None: that of the parameters.
    nu_dtype: of the root of H; None: that of the parameters.
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
      nu_dtype=nu_dtype,
      axes=axes,
    ),
    learning_rate,
    weight_decay,
    weight_decay_mask,
  )
