"""The scan over the blocks of a memory as one Pallas kernel for TPU.

The state of a head (kernels and traces) stays in VMEM from the first block of a
sequence to the last; inputs and outputs are streamed. The kernel traces the
same functions as the XLA form, on the values of one head, so that the
mathematics is written once; `mosaic.FORM` holds the few operations that need
another form.

The forward pass saves the state before each block. The backward pass visits the
blocks in reverse order, holds the cotangent of the state in VMEM, and
recomputes each block for its vector-Jacobian product.

On a CPU the kernel is interpreted, which is slow and meant for tests. The
platform that a program is lowered for decides, not the machine that lowers it.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from hope.parallel import placement

# The kernel's limit: v5e and v6e have 128 MiB, v5p has 64 MiB.
_VMEM_BYTES = 48 * 2**20


def scan(
  body: Callable[..., tuple[Any, Any]],
  consts: Any,
  carry: Any,
  xs: Any,
  block: int,
) -> tuple[Any, Any]:
  """Scans `body` over the blocks of a sequence, for each head by itself.

  Args:
    body: (consts, carry, x, j) -> (carry, y) of one head at block j, all of
      them without the two leading dimensions; y [c, ...] at each token. It may
      close over nothing that is traced.
    consts: tree of [b, n, ..., r, s].
    carry: tree of [b, n, ..., r, s].
    xs: tree of [b, n, t, s], t a multiple of `block`.
    block: c, tokens of a block; a power of two, at least 8.

  Returns:
    (carry, ys): ys a tree of [b, n, t, s].
  """
  b, n, t = jax.tree.leaves(xs)[0].shape[:3]
  xs = jax.tree.map(
    lambda x: x.reshape(b, n, t // block, block, *x.shape[3:]), xs
  )
  _, y = jax.eval_shape(body, _one(consts, 2), _one(carry, 2), _one(xs, 3), 0)
  as_consts, as_carry, as_x, as_y = map(_unpacking, (consts, carry, xs, y))

  def packed(consts, carry, x, j):
    carry, y = body(as_consts(consts), as_carry(carry), as_x(x), j)
    return _packed(carry), _packed(y)

  carry, ys = _scan(packed, _packed(consts), _packed(carry), _packed(xs))
  ys = jax.tree.map(lambda y: y.reshape(b, n, t, *y.shape[4:]), as_y(ys))
  return as_carry(carry), ys


def _one(tree: Any, lead: int) -> Any:
  """Shapes of a tree without its first `lead` dimensions."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[lead:], x.dtype), tree
  )


# A column [.., r, 1] would fill a tile of 128 lanes per row; it is kept as a
# row [.., 1, r].


def _turn(x):
  return jnp.swapaxes(x, -1, -2)


def _packed(tree: Any) -> list[jax.Array]:
  """The leaves of a tree, columns as rows."""
  return [_turn(x) if x.shape[-1] == 1 else x for x in jax.tree.leaves(tree)]


def _unpacking(tree: Any) -> Callable[[list[jax.Array]], Any]:
  """The inverse of `_packed` for trees like this one."""
  leaves, structure = jax.tree.flatten(tree)
  columns = [x.shape[-1] == 1 for x in leaves]

  def unpack(xs):
    xs = [_turn(x) if c else x for x, c in zip(xs, columns, strict=True)]
    return jax.tree.unflatten(structure, xs)

  return unpack


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(body, consts, carry, xs):
  carry, ys, _ = _forward(body, consts, carry, xs, save=False)
  return carry, ys


def _scan_fwd(body, consts, carry, xs):
  carry, ys, saved = _forward(body, consts, carry, xs, save=True)
  return (carry, ys), (consts, saved, xs)


def _scan_bwd(body, residuals, cotangents):
  return _backward(body, *residuals, *cotangents)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _read(refs):
  return [ref[...] for ref in refs]


def _write(refs, values):
  for ref, value in zip(refs, values, strict=True):
    ref[...] = value


def _at_first(refs, start):
  """Fills refs at a head's first step; start: refs, or None for zeros."""

  @pl.when(pl.program_id(2) == 0)
  def _():
    for j, ref in enumerate(refs):
      ref[...] = jnp.zeros_like(ref) if start is None else start[j][...]


def _forward(body, consts, carry, xs, save):
  """(carry, ys, saved), saved the state before each block if `save`."""
  state = _one(carry, 2)
  _, y = jax.eval_shape(body, _one(consts, 2), state, _one(xs, 3), 0)

  def per_block(values):
    lead = xs[0].shape[:3]
    return [jax.ShapeDtypeStruct((*lead, *v.shape), v.dtype) for v in values]

  def kernel(consts, start, x, now, y, saved):
    _at_first(now, start)
    before = _read(now)
    if save:
      _write(saved, before)
    after, values = body(_read(consts), before, _read(x), pl.program_id(2))
    _write(now, after)
    _write(y, values)

  return _call(
    kernel,
    name='memory_forward',
    count=xs[0].shape[2],
    reverse=False,
    args=(consts, carry, xs),
    leads=(2, 2, 3),
    out=(carry, per_block(y), per_block(state) if save else []),
    out_leads=(2, 3, 3),
  )


def _backward(body, consts, saved, xs, carry_bar, y_bar):
  """Cotangents of (consts, carry, xs)."""
  count = xs[0].shape[2]

  def kernel(consts, before, x, end_bar, y_bar, consts_bar, now_bar, x_bar):
    _at_first(now_bar, end_bar)
    _at_first(consts_bar, None)
    j = count - 1 - pl.program_id(2)
    at_block = functools.partial(body, j=j)
    _, vjp = jax.vjp(at_block, _read(consts), _read(before), _read(x))
    bars = vjp((_read(now_bar), _read(y_bar)))
    sums = [a + b for a, b in zip(_read(consts_bar), bars[0], strict=True)]
    _write(consts_bar, sums)
    _write(now_bar, bars[1])
    _write(x_bar, bars[2])

  return _call(
    kernel,
    name='memory_backward',
    count=count,
    reverse=True,
    args=(consts, saved, xs, carry_bar, y_bar),
    leads=(2, 3, 3, 2, 3),
    out=(consts, carry_bar, xs),
    out_leads=(2, 2, 3),
  )


def _call(kernel, *, name, count, reverse, args, leads, out, out_leads):
  """Runs a kernel at (sequence, head, block); the last runs in order.

  Args:
    kernel: of lists of refs, those of args and then those of out.
    name: of the kernel.
    count: blocks of a sequence.
    reverse: whether the last block comes first.
    args: lists of arrays.
    leads: for each list 2 or 3, its leading dimensions: (sequence, head), and
      block. What has two stays in VMEM from block to block.
    out: lists of what the results are like.
    out_leads: for each of these lists, as `leads`.
  """

  def spec(x, lead):
    rest = x.shape[lead:]

    def index(i, h, j):
      at = (i, h, count - 1 - j if reverse else j)
      return (*at[:lead], *(0 for _ in rest))

    return pl.BlockSpec((*(None,) * lead, *rest), index)

  def specs(lists, leads):
    return [
      [spec(x, lead) for x in xs] for xs, lead in zip(lists, leads, strict=True)
    ]

  def run(*args):
    """The kernel on as many sequences and heads as there are here."""
    here = next(x for xs in args for x in xs).shape[:2]

    def like(x):
      return jax.ShapeDtypeStruct((*here, *x.shape[2:]), x.dtype)

    call = functools.partial(
      pl.pallas_call,
      kernel,
      grid=(*here, count),
      in_specs=specs(args, leads),
      out_specs=specs(out, out_leads),
      out_shape=[[like(x) for x in xs] for xs in out],
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'parallel', 'arbitrary'),
        vmem_limit_bytes=_VMEM_BYTES,
      ),
      name=name,
    )
    return lax.platform_dependent(
      *args,
      cpu=lambda *args: call(interpret=True)(*args),
      tpu=lambda *args: call()(*args),
    )

  return _per_device(run, args)


def _per_device(run, args):
  """Calls run(*args) on each device of a mesh, with its sequences and heads."""
  leaves = jax.tree.leaves(args)
  meshes = [jax.typeof(x).sharding.mesh for x in leaves]
  meshes.append(jax.sharding.get_abstract_mesh())
  mesh = next((mesh for mesh in meshes if not mesh.empty), None)
  if mesh is None or mesh.size == 1 or mesh.manual_axes:
    return run(*args)
  spec = placement.on_mesh(placement.ACTIVATIONS['memory'], mesh)
  try:
    NamedSharding(mesh, spec).shard_shape(leaves[0].shape)
  except ValueError:
    spec = PartitionSpec()  # every device computes all of them, as XLA would
  return jax.shard_map(
    run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )(*args)
