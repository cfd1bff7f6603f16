"""Leaves of a tree as stacks of matrices.

`MatrixAxes` says which axes of a leaf form a matrix. It is
`optax.contrib.MuonDimensionNumbers(reduction_axis, output_axis)`: the axes of
the layer's input and those of its output. All other axes are a stack.
`SplitAxes` is for a fused kernel, which consists of several matrices.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import optax

from . import paths

MatrixAxes = optax.contrib.MuonDimensionNumbers


class SplitAxes(NamedTuple):
  """The matrices of a kernel one axis of which holds several side by side.

  Attributes:
    axis: that is split.
    sizes: of the axes that it is split into; one of them may be -1.
    axes: of the leaf after the split; what they do not name is a stack.

  Examples:
    A kernel [width, 3 * width] of queries, keys and values, one matrix each:

    >>> from optimizers import MatrixAxes, SplitAxes
    >>> axes = SplitAxes(-1, (3, -1), MatrixAxes(0, 2))

    The same with 8 heads, the heads outermost, and one matrix
    [width, width / 8] for each of them:

    >>> axes = SplitAxes(-1, (8, 3, -1), MatrixAxes(0, 3))
  """

  axis: int
  sizes: tuple[int, ...]
  axes: MatrixAxes


Axes = MatrixAxes | SplitAxes


def is_axes(x: Any) -> bool:
  """Whether x says what the axes of a leaf are; None: not a matrix."""
  return x is None or isinstance(x, Axes)


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


def no_matrix_axes(params: optax.Params) -> Any:
  """None for every leaf."""
  return jax.tree.map(lambda _: None, params)


def axes_of_leaves(axes: Any, tree: Any) -> list[Axes | None]:
  """The axes of each leaf of a tree, in the order of `jax.tree.leaves`.

  Args:
    axes: tree of MatrixAxes, SplitAxes or None with the paths of `tree`, in
      containers of any type, or a prefix of one; or a function from a tree to
      one.
    tree: whose leaves are meant. Leaves that `optax.masked` or
      `optax.partition` took out need no axes.

  Raises:
    ValueError: naming a leaf whose axes are missing or impossible.
  """
  wanted = paths.find('axes', axes, tree, is_value=is_axes)
  leaves = paths.leaves_with_path(tree)
  for (path, x), a in zip(leaves, wanted, strict=True):
    if not is_axes(a):
      raise ValueError(
        f'axes has {a!r} for {paths.text(path)!r}; it must be MatrixAxes, '
        'SplitAxes or None.'
      )
    if a is not None:
      try:
        _layout(jnp.shape(x), a)
      except ValueError as error:
        raise ValueError(f'{paths.text(path)!r}: {error}') from None
  return wanted


def map_matrices(
  function: Callable[..., Any], axes: Any, tree: Any, *others: Any
) -> Any:
  """`function(leaf, axes of the leaf, *leaves of others)` for a tree's leaves.

  Args:
    function: of a leaf.
    axes: see `axes_of_leaves`.
    tree: whose structure the result has.
    *others: trees like it.
  """
  leaves, structure = jax.tree.flatten(tree)
  columns = [structure.flatten_up_to(other) for other in others]
  wanted = axes_of_leaves(axes, tree)
  return structure.unflatten(
    [function(*x) for x in zip(leaves, wanted, *columns, strict=True)]
  )


class _Layout(NamedTuple):
  """How a leaf becomes a stack of matrices.

  Attributes:
    split: shape after an axis is split; else that of the leaf.
    order: of its axes: stack, rows, columns.
    stack: shape [b, i, o].
  """

  split: tuple[int, ...]
  order: tuple[int, ...]
  stack: tuple[int, int, int]


def _layout(shape: tuple[int, ...], axes: Axes) -> _Layout:
  """Raises ValueError if the axes cannot be those of this shape."""
  split = shape
  if isinstance(axes, SplitAxes):
    if not -len(shape) <= axes.axis < len(shape):
      raise ValueError(f'{axes} names an axis that shape {shape} lacks.')
    at, sizes = axes.axis % len(shape), list(axes.sizes)
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0:
      sizes[sizes.index(-1)] = shape[at] // known
    if min(sizes) < 0 or math.prod(sizes) != shape[at]:
      raise ValueError(f'{axes} does not split an axis of size {shape[at]}.')
    split, axes = (*shape[:at], *sizes, *shape[at + 1 :]), axes.axes
  rank, wanted = len(split), []
  for group in (axes.reduction_axis, axes.output_axis):
    group = (group,) if isinstance(group, int) else tuple(group)
    if any(not -rank <= axis < rank for axis in group):
      raise ValueError(f'{axes} names an axis that shape {split} lacks.')
    wanted.append(tuple(axis % rank for axis in group))
  rows, columns = wanted
  named = rows + columns
  if len(set(named)) != len(named):
    raise ValueError(f'{axes} names an axis of shape {split} twice.')
  above = tuple(a for a in range(rank) if a not in named)

  def size(group):
    return math.prod(split[axis] for axis in group)

  return _Layout(split, above + named, (size(above), size(rows), size(columns)))


def stack_shape(x: Any, axes: Axes | None) -> tuple[int, int, int]:
  """Shape of `to_stack_of_any`: count, inputs and outputs of the matrices."""
  if axes is None:
    return (1, math.prod(jnp.shape(x)), 1)
  return _layout(jnp.shape(x), axes).stack


def to_stack_of_any(
  x: jax.Array, axes: Axes | None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """`to_stack` for any x [...]; if not a matrix, a column [1, i, 1]."""
  if axes is not None:
    return to_stack(x, axes)
  gathered, restore_sharding = _gather(x)
  return (
    gathered.reshape(1, x.size, 1),
    lambda y: restore_sharding(y.reshape(x.shape)),
  )


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
  x: jax.Array, axes: Axes
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """A leaf as a stack of matrices.

  Args:
    x: any array.
    axes: of its matrices.

  Returns:
    (stack [b, i, o], restore): restore takes [b, i, o] back to the shape of x.

  Raises:
    ValueError: if an axis is out of range or named twice, or if sizes do not
      split it.
  """
  layout = _layout(x.shape, axes)
  gathered, restore_sharding = _gather(x)
  moved = tuple(layout.split[axis] for axis in layout.order)
  back = tuple(layout.order.index(axis) for axis in range(len(moved)))
  stack = gathered.reshape(layout.split).transpose(layout.order)

  def restore(y):
    leaf = y.reshape(moved).transpose(back).reshape(x.shape)
    return restore_sharding(leaf)

  return stack.reshape(layout.stack), restore


def at_least_float32(x: jax.Array) -> jax.Array:
  """x [...] in its own dtype, or in float32 where that is narrower."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def largest(x: jax.Array) -> jax.Array:
  """The largest absolute entry of each matrix of x [..., m, n]: [..., 1, 1]."""
  return jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)


def divide(x: jax.typing.ArrayLike, y: jax.Array) -> jax.Array:
  """x / y, of shapes [...] that broadcast; x where y is 0.

  What is not finite stays so.
  """
  return jnp.divide(x, jnp.where(y == 0, 1, y))


def norm(x: jax.Array) -> jax.Array:
  """Frobenius norms of the matrices of x [..., m, n]: [..., 1, 1].

  No square of an entry overflows or vanishes: entries are divided by the
  largest one first.
  """
  x = at_least_float32(x)
  most = largest(x)
  squares = jnp.square(divide(x, most))
  return most * jnp.sqrt(jnp.sum(squares, axis=(-2, -1), keepdims=True))


def unit(x: jax.Array) -> jax.Array:
  """x [..., m, n] scaled to Frobenius norms of 1; zero stays zero."""
  x = at_least_float32(x)
  x = divide(x, largest(x))
  squares = jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)
  return divide(x, jnp.sqrt(squares))


def check_matrices(wanted: Sequence[Axes | None], tree: Any) -> None:
  """Refuses leaves that are not matrices, or complex.

  Args:
    wanted: axes of the leaves, from `axes_of_leaves`.
    tree: of arrays.

  Raises:
    ValueError: naming the first such leaf.
  """
  paths.check_real(tree)
  leaves = paths.leaves_with_path(tree)
  for (path, x), a in zip(leaves, wanted, strict=True):
    if a is None:
      raise ValueError(
        f'{paths.text(path)!r} of shape {jnp.shape(x)} is not a matrix: give '
        'its `axes`, or leave it to another transformation by optax.partition '
        'or optax.masked.'
      )


def on_matrices(
  inner: optax.GradientTransformation, axes: Any
) -> optax.GradientTransformationExtraArgs:
  """A rule of matrices for leaves that are matrices in another form.

  The inner rule sees each leaf as a stack [b, inputs, outputs], so it needs to
  know nothing about fused kernels, heads or transposed axes. State of the size
  of the parameters is stored in the parameters' shapes, and so can be sharded
  like them.

  Args:
    inner: a rule whose state has trees like the parameters, and others that do
      not depend on their shapes; for Muon, `optax.contrib.scale_by_muon(
      weight_dimension_numbers=stacked_matrix_axes)`.
    axes: tree of `MatrixAxes` or `SplitAxes`, or a function from a tree to one;
      all leaves have to be matrices.

  Returns:
    A transformation; extra arguments are passed on.

  Raises:
    ValueError: when used, naming a leaf that is not a matrix.

  Examples:
    Muon for a kernel of 2 heads with 3 projections each:

    >>> import jax.numpy as jnp, optax
    >>> from optimizers import MatrixAxes, SplitAxes
    >>> from optimizers import on_matrices, stacked_matrix_axes
    >>> params = {'qkv': jnp.ones((4, 12))}
    >>> muon = optax.contrib.scale_by_muon(
    ...   weight_dimension_numbers=stacked_matrix_axes
    ... )
    >>> tx = on_matrices(
    ...   muon, {'qkv': SplitAxes(-1, (2, 3, -1), MatrixAxes(0, 3))}
    ... )
    >>> updates, state = tx.update(params, tx.init(params))
    >>> updates['qkv'].shape
    (4, 12)
  """
  inner = optax.with_extra_args_support(inner)

  def ways(tree):
    """(to a stack, back from one) of each leaf, as trees of functions."""
    check_matrices(axes_of_leaves(axes, tree), tree)
    there = map_matrices(lambda x, a: lambda y: to_stack(y, a)[0], axes, tree)
    back = map_matrices(lambda x, a: to_stack(x, a)[1], axes, tree)
    return there, back

  def apply(functions, tree):
    return jax.tree.map(lambda f, x: f(x), functions, tree)

  def of_state(functions, state):
    """Its trees like the parameters are mapped, all else stays."""
    return optax.tree.map_params(
      inner.init, lambda x, f: f(x), state, functions
    )

  def init_fn(params):
    if not jax.tree.leaves(params):
      return inner.init(params)
    there, back = ways(params)
    return of_state(back, inner.init(apply(there, params)))

  def update_fn(updates, state, params=None, **extra_args):
    if not jax.tree.leaves(updates):
      return inner.update(updates, state, params, **extra_args)
    there, back = ways(updates)
    updates, state = inner.update(
      apply(there, updates),
      of_state(there, state),
      None if params is None else apply(there, params),
      **extra_args,
    )
    return apply(back, updates), of_state(back, state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
