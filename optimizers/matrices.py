"""Leaves of a tree as stacks of matrices, and their orthogonalisation.

Which axes of a leaf are a matrix is said by `MatrixAxes`, which is
`optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`: the axes of
the layer's input and those of its output. All other axes are a stack.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import optax

MatrixAxes = optax.contrib.MuonDimensionNumbers

# The quintic of Keller Jordan et al., "Muon" (2024): singular values in (0, 1]
# end within [0.3, 1.3] after five steps, whatever they were above 1e-3.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def is_axes(x: Any) -> bool:
  """Whether x says what the axes of a leaf are; None: it is no matrix."""
  return x is None or isinstance(x, MatrixAxes)


def matrix_axes(params: optax.Params) -> Any:
  """MatrixAxes for leaves of two axes, (input, output), and None for others."""
  return jax.tree.map(
    lambda x: MatrixAxes(0, 1) if jnp.ndim(x) == 2 else None, params
  )


def stacked_matrix_axes(params: optax.Params) -> Any:
  """As `matrix_axes`, for leaves of two axes or more: the last two count."""
  return jax.tree.map(
    lambda x: MatrixAxes(-2, -1) if jnp.ndim(x) >= 2 else None, params
  )


def resolve_axes(axes: Any, tree: Any) -> Any:
  """The axes of each leaf of a tree.

  Args:
    axes: tree of MatrixAxes or None, or a function from a tree to one.
    tree: whose leaves are meant. Of leaves that `optax.masked` or
      `optax.partition` took out, nothing is asked.

  Returns:
    A tree like `tree`.
  """
  if callable(axes):
    return axes(tree)
  is_masked = lambda x: isinstance(x, optax.MaskedNode)
  return jax.tree.map(
    lambda x, a: x if is_masked(x) else a, tree, axes, is_leaf=is_masked
  )


def to_stack_of_any(
  x: jax.Array, axes: MatrixAxes | None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """As `to_stack`; a leaf that is no matrix is one column, [1, i, 1]."""
  if axes is not None:
    return to_stack(x, axes)
  gathered, split = _gather(x)
  return gathered.reshape(1, -1, 1), lambda y: split(y.reshape(x.shape))


def _gather(
  x: jax.Array,
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """x whole on every device, and the way back, on a mesh of explicit axes.

  There, products over split axes are errors. On other meshes the compiler
  decides, and x is left as it is.
  """
  sharding = jax.typeof(x).sharding
  if AxisType.Explicit not in sharding.mesh.axis_types:
    return x, lambda y: y
  whole = NamedSharding(sharding.mesh, PartitionSpec())
  return (
    jax.sharding.reshard(x, whole),
    lambda y: jax.sharding.reshard(y, sharding),
  )


def to_stack(
  x: jax.Array, axes: MatrixAxes
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """A leaf as a stack of matrices.

  Args:
    x: any array.
    axes: of its matrices.

  Returns:
    (stack [b, i, o], restore): restore takes [b, i, o] back to the shape of x.

  Raises:
    ValueError: if an axis is out of range or named twice.
  """
  wanted = []
  for group in (axes.reduction_axis, axes.output_axis):
    group = (group,) if isinstance(group, int) else tuple(group)
    if any(not -x.ndim <= axis < x.ndim for axis in group):
      raise ValueError(f'{axes} names an axis that shape {x.shape} lacks.')
    wanted.append(tuple(axis % x.ndim for axis in group))
  rows, columns = wanted
  named = rows + columns
  if len(set(named)) != len(named):
    raise ValueError(f'{axes} names an axis of shape {x.shape} twice.')
  gathered, split = _gather(x)
  order = tuple(a for a in range(x.ndim) if a not in named) + named
  size = lambda group: math.prod(x.shape[axis] for axis in group)
  moved = tuple(x.shape[axis] for axis in order)
  back = tuple(order.index(axis) for axis in range(x.ndim))
  stack = gathered.transpose(order).reshape(-1, size(rows), size(columns))
  return stack, lambda y: split(y.reshape(moved).transpose(back))


def newton_schulz(
  x: jax.Array,
  *,
  steps: int = 5,
  coefficients: Sequence[float] | Sequence[Sequence[float]] = COEFFICIENTS,
  dtype: Any = None,
  eps: float = 1e-8,
) -> jax.Array:
  r"""Moves the singular values of matrices towards 1.

  .. math::
    X_0 = X / (\|X\|_F + \epsilon), \quad
    X_{k+1} = a X_k + (b A + c A^2) X_k, \quad A = X_k X_k^T

  Args:
    x: [..., m, n].
    steps: of the iteration; not read where each has coefficients of its own.
    coefficients: (a, b, c), or one such triple per step.
    dtype: of the iteration; None: that of x. Norms are of x's own.
    eps: added to the Frobenius norm; zero stays zero.

  Returns:
    Like x.

  Raises:
    ValueError: if the coefficients are no triples.

  References:
    Jordan et al., `Muon <https://kellerjordan.github.io/posts/muon/>`_, 2024
  """
  triples = jnp.asarray(coefficients, x.dtype if dtype is None else dtype)
  if triples.ndim == 1:
    triples = jnp.broadcast_to(triples, (steps, *triples.shape))
  if triples.ndim != 2 or triples.shape[-1] != 3:
    raise ValueError(
      f'coefficients={coefficients} must be (a, b, c) or one triple per step.'
    )
  tall = x.shape[-2] > x.shape[-1]
  y = jnp.swapaxes(x, -1, -2) if tall else x
  y = y / (jnp.linalg.norm(y, axis=(-2, -1), keepdims=True) + eps)
  y = y.astype(triples.dtype)

  def step(y, triple):
    a, b, c = triple
    gram = y @ jnp.swapaxes(y, -1, -2)
    return a * y + (b * gram + c * gram @ gram) @ y, None

  y, _ = lax.scan(step, y, triples)
  y = y.astype(x.dtype)
  return jnp.swapaxes(y, -1, -2) if tall else y


def _place(x: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
  """x laid out on the mesh as `spec` says."""
  sharding = NamedSharding(mesh, spec)
  if AxisType.Explicit in mesh.axis_types:
    return jax.sharding.reshard(x, sharding)
  return lax.with_sharding_constraint(x, sharding)


def orthogonalize(
  tree: optax.Updates, axes: Any, *, mesh: Mesh | None = None, **options: Any
) -> optax.Updates:
  """`newton_schulz` of every matrix of a tree, same shapes in one batch.

  Args:
    tree: of arrays.
    axes: tree of MatrixAxes, one for each of them.
    mesh: whose devices share a batch, whole matrices each, so that an iteration
      needs no collective. None: the compiler chooses.
    **options: of `newton_schulz`.

  Returns:
    Like tree.

  Raises:
    ValueError: naming a leaf that has no axes.
  """
  paths, structure = jax.tree.flatten_with_path(tree)
  leaves = [x for _, x in paths]
  batches: dict[Any, list] = {}
  for place, ((keys, x), a) in enumerate(
    zip(paths, structure.flatten_up_to(axes), strict=True)
  ):
    if a is None:
      path = jax.tree_util.keystr(keys, simple=True, separator='/')
      raise ValueError(
        f'{path} of shape {x.shape} is no matrix; leave it out by '
        'optax.partition or optax.masked.'
      )
    stack, restore = to_stack(x, a)
    tall = stack.shape[-2] > stack.shape[-1]
    if tall:
      stack = jnp.swapaxes(stack, -1, -2)
    key = (stack.shape[1:], stack.dtype)
    batches.setdefault(key, []).append((place, stack, restore, tall))
  for members in batches.values():
    stack = jnp.concatenate([stack for _, stack, _, _ in members])
    count = stack.shape[0]
    if mesh is not None:
      stack = jnp.pad(stack, ((0, -count % mesh.size), (0, 0), (0, 0)))
      stack = _place(stack, mesh, PartitionSpec(mesh.axis_names))
    stack = newton_schulz(stack, **options)
    if mesh is not None and AxisType.Explicit in mesh.axis_types:
      # Explicit sharding cannot take uneven parts of a split axis.
      stack = _place(stack, mesh, PartitionSpec())
    stack = stack[:count]
    sizes = [x.shape[0] for _, x, _, _ in members]
    parts = jnp.split(stack, [sum(sizes[:j]) for j in range(1, len(sizes))])
    for part, (place, _, restore, tall) in zip(parts, members, strict=True):
      leaves[place] = restore(jnp.swapaxes(part, -1, -2) if tall else part)
  return structure.unflatten(leaves)
