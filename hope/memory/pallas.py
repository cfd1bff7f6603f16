"""The scan over the blocks of a memory as one Pallas kernel for TPU.

The state of a head (kernels and traces) stays in VMEM from the first block of a
sequence to the last; inputs and outputs are streamed. The kernel traces the
same functions as the XLA form, on the values of one head, so that the
mathematics is written once; `FORM` holds the few operations that Mosaic, the
compiler of such kernels, needs in another form.

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

from hope.memory import rule
from hope.parallel import placement

# Smallest decay factor, so that its logarithm is finite.
_SMALLEST_FACTOR = 1e-30
# The kernel's limit: v5e and v6e have 128 MiB, v5p has 64 MiB.
_VMEM_BYTES = 48 * 2**20
# Rows of the diagonal blocks that are inverted by forward substitution.
_BASE = 8


def _places(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Row and column of each entry of a matrix, or of a stack of them."""
  row, column = len(shape) - 2, len(shape) - 1
  iota = functools.partial(lax.broadcasted_iota, jnp.int32, shape)
  return iota(row), iota(column)


def decays(
  alpha: jax.Array,
  beta: jax.Array | None,
  valid: None = None,
  read_after: bool = False,
) -> rule.Decays:
  """`rule.decays` of one head, without cumulative sums and odd slices.

  Factors below 1e-30 count as 1e-30; `rule.decays` is exact there.

  Args:
    alpha: [c, 1].
    beta: [c, 1]; None: no momentum.
    valid: None, since all tokens of whole chunks count.
    read_after: as in `rule.decays`.
  """
  del valid
  c = alpha.shape[0]
  t, j = _places((c, c))

  def sums(x):
    """Sums of log x up to each token: as a column, as a row, and of all."""
    log = jnp.log(jnp.maximum(x, _SMALLEST_FACTOR))
    along = jnp.where(j <= t, jnp.swapaxes(log, 0, 1), 0)
    down = jnp.where(t <= j, log, 0)
    column = jnp.sum(along, axis=1, keepdims=True)
    row = jnp.sum(down, axis=0, keepdims=True)
    return log, column, row, jnp.sum(log, axis=0, keepdims=True)

  def table(mask, column, row):
    """exp(column - row) where the mask is set, else 0: [c, c]."""
    # The exponent is masked as well: above the diagonal it may overflow.
    exponent = jnp.where(mask, column - row, 0)
    return jnp.where(mask, jnp.exp(exponent), 0)

  through, sums_beta = None, None
  if beta is not None:
    sums_beta = sums(beta)
    through = table(j <= t, sums_beta[1], sums_beta[2])

  def factors(start, keep):
    """Factors of one row per token, with those of the trace."""
    if sums_beta is None:
      return rule.Factors(start=start, keep=keep, write=keep)
    return rule.Factors(
      start=start,
      keep=keep,
      write=keep @ through,
      trace=jnp.sum(keep * jnp.exp(sums_beta[2]), axis=1, keepdims=True),
    )

  log, column, row, total = sums(alpha)
  before = factors(jnp.exp(column - log), table(j < t, column - log, row))
  read = None
  if read_after:
    read = factors(jnp.exp(column), table(j <= t, column, row))
  end_start, end_keep = jnp.exp(total), jnp.exp(total - column)
  if sums_beta is None:
    end = rule.Factors(start=end_start, keep=end_keep, write=end_keep)
    return rule.Decays(before=before, end=end, read=read)
  _, column, row, total = sums_beta
  end_write = jnp.sum(end_keep * through, axis=0, keepdims=True)
  end = rule.Factors(
    start=end_start,
    keep=end_keep,
    write=jnp.swapaxes(end_write, 0, 1),
    trace=jnp.sum(end_keep * jnp.exp(column), axis=0, keepdims=True),
  )
  return rule.Decays(
    before=before,
    end=end,
    trace_start=jnp.exp(total),
    trace_write=jnp.exp(total - column),
    read=read,
  )


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def invert_unit_lower(lower: jax.Array) -> jax.Array:
  """`solve.invert_unit_lower` of whole rows, without odd slices.

  Diagonal blocks of 8 rows are inverted by forward substitution and merged two
  by two: with X and Y the inverses of a pair and M the block left of the
  second, the merged inverse has -Y M X there.

  Args:
    lower: [..., c, c], strictly lower triangular; c a power of two, at least 8.
  """
  *lead, c, _ = lower.shape
  t, j = _places(lower.shape)
  apart = t ^ j

  def pairs(x: jax.Array, size: int) -> jax.Array:
    return x.reshape(*lead, -1, 2, size, c)

  def flat(x: jax.Array) -> jax.Array:
    return x.reshape(*lead, -1, c)

  inverse = jnp.where(apart == 0, 1.0, 0.0).astype(lower.dtype)
  inverse = inverse.reshape(*lead, -1, _BASE, c)
  near = jnp.where(apart < _BASE, lower, 0)
  for s in range(_BASE - 1):
    column = jnp.where((j & (_BASE - 1)) == s, near, 0)
    column = jnp.sum(column, axis=-1, keepdims=True)
    column = column.reshape(*inverse.shape[:-1], 1)
    inverse -= column * inverse[..., s : s + 1, :]
  inverse, size = flat(inverse), _BASE
  while size < c:
    left = jnp.where((apart >= size) & (apart < 2 * size), lower, 0)
    left = pairs(left, size)[..., 1, :, :]
    first, second = (pairs(inverse, size)[..., k, :, :] for k in (0, 1))
    product = _matmul(flat(left), inverse).reshape(second.shape)
    product = jnp.stack([jnp.zeros_like(product), product], axis=-3)
    product = _matmul(flat(second), flat(product)).reshape(second.shape)
    inverse = flat(jnp.stack([first, second - product], axis=-3))
    size *= 2
  return inverse


@jax.custom_vjp
def solve_unit_lower(lower: jax.Array, rhs: jax.Array) -> jax.Array:
  """As `solve.solve_unit_lower`: [..., c, c] and [..., c, o] -> [..., c, o]."""
  return _matmul(invert_unit_lower(lower), rhs)


def _solve_fwd(lower, rhs):
  inverse = invert_unit_lower(lower)
  z = _matmul(inverse, rhs)
  return z, (inverse, z)


def _solve_bwd(residuals, z_bar):
  inverse, z = residuals
  rhs_bar = _matmul(jnp.swapaxes(inverse, -1, -2), z_bar)
  lower_bar = _matmul(rhs_bar, jnp.swapaxes(z, -1, -2))
  t, j = _places(lower_bar.shape)
  return jnp.where(j < t, -lower_bar, 0), rhs_bar


solve_unit_lower.defvjp(_solve_fwd, _solve_bwd)


def _separate_dot(xs: list[jax.Array], ys: list[jax.Array]) -> jax.Array:
  """`Form.dot` as a sum of matmuls: [..., c, o]."""
  products = [x @ y for x, y in zip(xs, ys, strict=True)]
  return functools.reduce(jnp.add, products)


FORM = rule.Form(decays=decays, solve=solve_unit_lower, dot=_separate_dot)


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
