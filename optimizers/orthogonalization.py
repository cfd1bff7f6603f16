"""Newton-Schulz, of one matrix or of all matrices of a tree at once."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import optax

from . import matrices

# The quintic of Keller Jordan et al., "Muon" (2024): singular values in (0, 1]
# end within [0.3, 1.3] after five steps, whatever they were above 1e-3.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(
  x: jax.Array,
  *,
  steps: int = 5,
  coefficients: Sequence[float] | Sequence[Sequence[float]] = COEFFICIENTS,
  dtype: Any = None,
) -> jax.Array:
  r"""Moves the singular values of matrices towards 1.

  .. math::
    X_0 = X / \|X\|_F, \quad
    X_{k+1} = a X_k + (b A + c A^2) X_k, \quad A = X_k X_k^T

  Args:
    x: [..., m, n], of any size: the result for c x is that for x. Zero stays
      zero.
    steps: of the iteration; not read where each has coefficients of its own.
    coefficients: (a, b, c), or one such triple per step.
    dtype: of the iteration; None: that of x.

  Returns:
    Like x.

  Raises:
    ValueError: if the coefficients are not triples.

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
  y = matrices.unit(y).astype(triples.dtype)

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
    axes: of their matrices; see `matrices.axes_of_leaves`.
    mesh: whose devices share a batch, whole matrices each, so that an iteration
      needs no collective. None: the compiler chooses.
    **options: of `newton_schulz`.

  Returns:
    Like tree.

  Raises:
    ValueError: naming a leaf that has no axes.
  """
  leaves, structure = jax.tree.flatten(tree)
  wanted = matrices.axes_of_leaves(axes, tree)
  matrices.check_matrices(wanted, tree)
  batches: dict[Any, list] = {}
  for place, (x, a) in enumerate(zip(leaves, wanted, strict=True)):
    stack, restore = matrices.to_stack_of_any(x, a)
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
