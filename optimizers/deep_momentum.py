"""Momentum whose memory is an MLP (Eq. 50 of arXiv:2512.24695)."""

import math
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
import optax

from . import arguments, matrices, paths
from .momentum import Output, with_learning_rate


class DeepMomentumState(NamedTuple):
  """State of `scale_by_deep_momentum`.

  Attributes:
    initial: of each layer but the last, a tree of its kernels at the start, for
      every matrix of a stack: [stack, in, width], then [stack, width, width].
    change: of each layer, what was learned since, the last [stack, width, out].
  """

  initial: tuple[Any, ...]
  change: tuple[Any, ...]


def _read(
  kernels: list[jax.Array], keys: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
  """tr m(K) for keys K [..., o, i], and the input of each layer."""
  inputs = [keys]
  for kernel in kernels[:-1]:
    inputs.append(jax.nn.relu(inputs[-1] @ kernel))
  return jnp.einsum('...oh,...ho->...', inputs[-1], kernels[-1]), inputs


def _loss(
  kernels: list[jax.Array], keys: jax.Array, objective: str
) -> jax.Array:
  """The inner objective, less what does not depend on the kernels."""
  match, inputs = _read(kernels, keys)
  if objective == 'dot':
    return -match
  # 1/2 |H B - I|^2 without the product H B, which has [o, o] entries.
  h, b = inputs[-1], kernels[-1]
  gram = jnp.einsum('...oh,...og->...hg', h, h)
  square = jnp.sum(gram * jnp.einsum('...ho,...go->...hg', b, b), axis=(-2, -1))
  return 0.5 * square - match


def _square(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.square(x), axis=(-2, -1), keepdims=True)


def _rates(
  kernels: list[jax.Array], inputs: list[jax.Array], rate: float
) -> list[jax.Array]:
  """eta / (1 + eta c) of each layer, c a bound of the curvature of L2."""
  rates, above = [], 1.0
  for x, kernel in zip(reversed(inputs), reversed(kernels), strict=True):
    rates.append(rate / (1 + rate * above * _square(x)))
    above = above * _square(kernel)
  return rates[::-1]


def scale_by_deep_momentum(
  decay: float = 0.9,
  inner_learning_rate: float = 1.0,
  objective: str = 'l2',
  *,
  depth: int = 2,
  width: int = 64,
  normalize: bool = True,
  output: Output | None = None,
  seed: int = 0,
  accumulator_dtype: Any = None,
  axes: Any = None,
) -> optax.GradientTransformation:
  r"""Momentum whose memory is an MLP that learns the gradients (Eq. 50).

  Every kernel has a memory m, an MLP that its columns share. At each step m
  learns which column each column of the gradient is, the map from
  :math:`G^T` [out, in] to the identity, and is then read:

  .. math::
    \theta_t &= \theta_0 + \alpha (\theta_{t-1} - \theta_0) -
      \eta \nabla_\theta L(\theta_{t-1}; G_t), \qquad
      L = \tfrac12 \|m_\theta(G_t^T) - I\|^2 \text{ or }
      -\mathrm{tr}\, m_\theta(G_t^T) \\
    u_t &= \sigma(\nabla_G \mathrm{tr}\, m_{\theta_t}(G_t^T))

  A linear memory with the dot product is momentum: then
  :math:`\mathrm{tr}\, m(G^T) = \langle M, G \rangle`, whose gradients are
  :math:`G` and :math:`M`.

  Deviation: Eq. 50 adds :math:`m(g)` itself to the weights. But the paper's
  memory maps gradients to the identity, and its output does not have the shape
  of the weights. Its derivative does, and for the linear memory it is Eq. 46.
  Choice: the MLP has no biases and ReLU, so that
  :math:`\langle \nabla_G \mathrm{tr}\, m, G \rangle = \mathrm{tr}\, m(G^T)`:
  the loss falls along u as long as the memory recalls the gradient. Retention
  pulls towards the initial kernels, without which the memory would die.
  Choice: with `normalize`, keys have a mean square of 1 and u has the norm of
  G, so that the memory decides the direction and the gradient the length; with
  'l2' each layer's eta is divided by 1 + eta c, c the square of its inputs
  times those of the kernels above it, as in Eq. 56.

  The state of a kernel [in, out] has `width` (2 in + out) numbers at depth 2,
  twice `width`^2 more for each further layer, in * out at depth 1.

  Args:
    decay: alpha, retention of what was learned.
    inner_learning_rate: eta, of the memory.
    objective: 'l2' or 'dot'. With 'dot' only a linear memory is sure to be
      bounded.
    depth: layers of the memory; 1: linear.
    width: hidden width of the memory.
    normalize: whether keys have a mean square of 1 and u the norm of G.
    output: sigma (Eq. 52), from the tree of u to the tree of updates, such as
      `orthogonalize`; None: u itself.
    seed: of the memory's initial kernels.
    accumulator_dtype: of the memory; None: that of the parameters.
    axes: tree of `MatrixAxes` or `SplitAxes`, or a function from a tree to one:
      in and out of a leaf, each of a stack by itself; a leaf whose axes are
      None is one column. None: the last two axes.

  Returns:
    An `optax.GradientTransformation`.

  Raises:
    ValueError: if an argument is out of its bounds or, when used, naming a leaf
      that is complex or whose axes cannot be.

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  arguments.check(
    decay=decay,
    inner_learning_rate=inner_learning_rate,
    objective=objective,
    depth=depth,
    width=width,
    normalize=normalize,
    output=output,
    seed=seed,
    accumulator_dtype=accumulator_dtype,
  )
  axes = matrices.stacked_matrix_axes if axes is None else axes

  def shapes(x, a):
    """Of the memory's kernels for a leaf."""
    b, i, o = matrices.stack_shape(x, a)
    sizes = [i, *[width] * (depth - 1), o]
    return [(b, sizes[j], sizes[j + 1]) for j in range(depth)]

  def dtype(x):
    return x.dtype if accumulator_dtype is None else accumulator_dtype

  def init_fn(params):
    paths.check_real(params)
    # The numbers of a leaf come from its path.
    names = jax.tree.structure(params).unflatten(
      [
        zlib.crc32(paths.text(path).encode())
        for path, _ in paths.leaves_with_path(params)
      ]
    )

    def start(layer):
      key = jax.random.fold_in(jax.random.key(seed), layer)

      def kernel(x, a, name):
        shape = shapes(x, a)[layer]
        normal = jax.random.normal(jax.random.fold_in(key, name), shape)
        # Features of keys of norm 1 have a norm of about 1.
        return (math.sqrt(2 / width) * normal).astype(dtype(x))

      return matrices.map_matrices(kernel, axes, params, names)

    def zeros(layer):
      return matrices.map_matrices(
        lambda x, a: jnp.zeros(shapes(x, a)[layer], dtype(x)), axes, params
      )

    return DeepMomentumState(
      tuple(start(layer) for layer in range(depth - 1)),
      tuple(zeros(layer) for layer in range(depth)),
    )

  def learn_and_read(g, a, initial, change):
    """(u, change) of one leaf."""
    wide = matrices.at_least_float32
    stack, restore = matrices.to_stack_of_any(wide(g), a)
    keys = jnp.swapaxes(stack, -1, -2)
    if normalize:
      keys = math.sqrt(keys.shape[-2]) * matrices.unit(keys)
    old = [wide(c) for c in change]
    base = [*map(wide, initial), jnp.zeros_like(old[-1])]
    kernels = [b + c for b, c in zip(base, old, strict=True)]
    total = lambda kernels: jnp.sum(_loss(kernels, keys, objective))
    rates = [inner_learning_rate] * depth
    if normalize and objective == 'l2':
      rates = _rates(kernels, _read(kernels, keys)[1], inner_learning_rate)
    new = [
      decay * c - rate * d
      for c, rate, d in zip(old, rates, jax.grad(total)(kernels), strict=True)
    ]
    new = [x.astype(c.dtype) for x, c in zip(new, change, strict=True)]
    kernels = [b + wide(c) for b, c in zip(base, new, strict=True)]
    u = jax.grad(lambda keys: jnp.sum(_read(kernels, keys)[0]))(keys)
    if normalize:
      u = matrices.norm(stack) * matrices.unit(u)
    return restore(jnp.swapaxes(u, -1, -2)), new

  def update_fn(updates, state, params=None):
    del params
    paths.check_real(updates)
    leaves, structure = jax.tree.flatten(updates)
    wanted = matrices.axes_of_leaves(axes, updates)
    flat = lambda trees: list(
      zip(*[structure.flatten_up_to(tree) for tree in trees], strict=True)
    )
    initial = flat(state.initial) if depth > 1 else [()] * len(leaves)
    results = [
      learn_and_read(*leaf)
      for leaf in zip(leaves, wanted, initial, flat(state.change), strict=True)
    ]
    read = structure.unflatten([u for u, _ in results])
    if output is not None:
      read = output(read)
    change = tuple(
      structure.unflatten([c[layer] for _, c in results])
      for layer in range(depth)
    )
    return (
      optax.tree.cast_like(read, updates),
      DeepMomentumState(state.initial, change),
    )

  return optax.GradientTransformation(init_fn, update_fn)


def deep_momentum(
  learning_rate: optax.ScalarOrSchedule,
  decay: float = 0.9,
  inner_learning_rate: float = 1.0,
  objective: str = 'l2',
  *,
  depth: int = 2,
  width: int = 64,
  normalize: bool = True,
  output: Output | None = None,
  weight_decay: optax.ScalarOrSchedule = 0.0,
  weight_decay_mask: Any = None,
  seed: int = 0,
  accumulator_dtype: Any = None,
  axes: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """`scale_by_deep_momentum` with a learning rate.

  Args:
    learning_rate: a number or a schedule, of the parameters.
    decay: alpha, retention of the memory.
    inner_learning_rate: eta, of the memory.
    objective: of the memory, 'l2' or 'dot'.
    depth: layers of the memory.
    width: hidden width of the memory.
    normalize: whether the memory decides the direction alone.
    output: sigma.
    weight_decay: decoupled, multiplied with the learning rate.
    weight_decay_mask: which leaves decay, a tree of bools or a function from
      the parameters to one; None: all.
    seed: of the memory's initial kernels.
    accumulator_dtype: of the memory; None: that of the parameters.
    axes: of the matrices; None: the last two axes of a leaf.

  Returns:
    A transformation.

  Examples:
    >>> import jax.numpy as jnp
    >>> from optimizers import deep_momentum
    >>> params = jnp.array([[3.0, 0.0], [0.0, 4.0]])
    >>> tx = deep_momentum(0.1, width=16)
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> round(float(jnp.linalg.norm(updates)), 3)
    0.5
    >>> bool(jnp.sum(updates * params) < 0)
    True
  """
  return with_learning_rate(
    scale_by_deep_momentum(
      decay,
      inner_learning_rate,
      objective,
      depth=depth,
      width=width,
      normalize=normalize,
      output=output,
      seed=seed,
      accumulator_dtype=accumulator_dtype,
      axes=axes,
    ),
    learning_rate,
    weight_decay,
    weight_decay_mask,
  )
