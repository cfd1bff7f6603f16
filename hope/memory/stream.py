"""Runs a memory over a piece of a stream, block by block.

A chunk (in tokens) is the span whose gradients are taken at one state. A block,
at most 64 tokens and a divisor of the chunk, is what one step of the scan
computes; blocks of one token (chunks of one, and decoding) need neither tables
nor a solve. A piece of a stream may start and end anywhere within a chunk: its
tokens are laid on the grid of blocks, and the places around them are masked.

Documents that share a row each have a grid of their own, so a document must
start at the first place of a block. Training rows are packed like that
(`alignment`). In a stream, the first token of a piece may always start a
document; so tokens that are fed one by one can start a document anywhere.
"""

from collections.abc import Callable, Iterable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from hope.memory import mlp, rule
from hope.memory.segments import since_start

# Tokens that one step of the scan computes at most: its tables are [block,
# block] per head.
MAX_BLOCK = 64
# Blocks of one token between those whose states are saved for the backward
# pass, in pieces of more than twice as many; in shorter ones all are.
_GROUP = 32
KERNELS = ('xla', 'pallas')


def block_size(chunk: int) -> int:
  """The largest divisor of `chunk` that is at most MAX_BLOCK, in tokens."""
  return max(b for b in range(1, min(chunk, MAX_BLOCK) + 1) if chunk % b == 0)


def alignment(chunks: Iterable[int]) -> int:
  """Tokens at whose multiples documents may start within a row.

  Args:
    chunks: the chunk size of each memory that reads the row, in tokens.
  """
  return math.lcm(*map(block_size, chunks))


def check_kernel(kernel: str, chunk: int) -> None:
  """Raises ValueError if a kernel is unknown or cannot run these chunks."""
  if kernel not in KERNELS:
    raise ValueError(
      f'kernel={kernel!r} is unknown; choose one of {", ".join(KERNELS)}.'
    )
  block = block_size(chunk)
  if kernel == 'pallas' and (block < 8 or block & (block - 1)):
    raise ValueError(
      f"kernel='pallas' computes blocks of 8, 16, 32 or 64 tokens; chunks of "
      f"{chunk} tokens have blocks of {block}. Try 64, or kernel='xla'."
    )


def check_whole(kernel: str, seq_len: int, chunk: int) -> None:
  """Raises ValueError if a kernel cannot run sequences of this length.

  Args:
    kernel: one of KERNELS.
    seq_len: tokens of a training sequence.
    chunk: tokens of the longest chunk.
  """
  if kernel == 'pallas' and seq_len % chunk:
    raise ValueError(
      f"compute.kernel='pallas' runs whole chunks: data.seq_len={seq_len} is "
      f'not a multiple of {chunk}; try {-(-seq_len // chunk) * chunk}, or '
      "kernel='xla'."
    )


class _Marks(NamedTuple):
  """The events of each block, in rows that hold several documents.

  Attributes:
    reset: bool [count, b], the block starts a document.
    complete: bool [count, b], the block ends a chunk.
    valid: bool [count, b, 1, block], tokens that count; None: all.
  """

  reset: jax.Array
  complete: jax.Array
  valid: jax.Array | None


class Step(NamedTuple):
  """What a memory computes one block of tokens from.

  Attributes:
    consts: tree of [b, n, ...], the same at every block.
    start: kernels at the chunk's start; None where the state has none.
    now: kernels before the block.
    trace: momentum traces before the block, or None.
    x: the block's tokens, a tree of [b, n, c, ...].
    valid: bool [c] or [b, 1, c], which of them count; None: all.
    form: of the rule.
  """

  consts: Any
  start: Any
  now: Any
  trace: Any
  x: Any
  valid: jax.Array | None
  form: rule.Form

  def counted(self, rate: jax.Array) -> jax.Array:
    """A rate [b, n, c, 1] of writes, set to 0 where a token does not count."""
    if self.valid is None:
      return rate
    return jnp.where(self.valid[..., None], rate, 0)


def run(
  body: Callable[[Step], tuple[Any, Any, Any]],
  consts: Any,
  state: Any,
  position: jax.Array | None,
  xs: Any,
  *,
  chunk: int,
  kernel: str = 'xla',
  starts: jax.Array | None = None,
  initial: Any = None,
) -> tuple[Any, jax.Array, Any]:
  """Scans `body` over the blocks of a piece.

  Args:
    body: of a `Step`, gives (now, trace, y), y a tree of [b, n, c, ...]. For
      'pallas' it is called without b and n.
    consts: tree of [b, n, ...], the same at every block.
    state: mlp.State; its kernels may be any tree of [b, n, ...]. A memory
      that reads nothing from the state at its chunk's start keeps none: its
      state has `start=None`.
    position: int32 [] or [b], tokens since the chunk began; None: zero, known
      before compilation.
    xs: tree of [b, t, n, ...].
    chunk: tokens of a chunk.
    kernel: 'xla', or 'pallas': where position is None, whole chunks are run by
      `kernels.scan`. All other tokens (those after the last whole chunk, and
      pieces that continue a stream, as in decoding) are run as with 'xla'.
    starts: bool [b, t], True at the first token of a document; None: nowhere.
      Such a token must be the first of the piece, or a multiple of
      `block_size(chunk)` tokens after the document before it started. In a row
      where one is not, all outputs are NaN.
    initial: mlp.Kernels [b, n, ...] that a document starts from; None: zeros.

  Returns:
    (state, position, ys): ys a tree of [b, t, n, ...]. The position is [b] if
    there are starts or the given position is [b], else [].
  """
  batch, t = jax.tree.leaves(xs)[0].shape[:2]
  if kernel == 'pallas' and position is None and t >= chunk:
    whole = t - t % chunk
    chunks, after = slice(None, whole), slice(whole, None)
    state, position, ys = _run_whole(
      body,
      consts,
      state,
      _part(xs, chunks),
      chunk=chunk,
      starts=_part(starts, chunks),
      initial=initial,
    )
    if whole == t:
      return state, position, ys
    state, position, rest = run(
      body,
      consts,
      state,
      None if starts is None else position,
      _part(xs, after),
      chunk=chunk,
      starts=_part(starts, after),
      initial=initial,
    )
    ys = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), ys, rest)
    return state, position, ys
  block = 1 if t == 1 else block_size(chunk)
  aligned = position is None
  full = aligned and t % chunk == 0
  if aligned:
    position = jnp.int32(0)
  if starts is None and position.ndim:
    starts = jnp.zeros((batch, t), bool)
  if starts is not None:
    position = jnp.where(starts[:, 0], 0, position)
  offset = 0 if aligned or block == 1 else position % block
  count = -(-t // block) if aligned or block == 1 else -(-(t - 1) // block) + 1

  def lay(x):
    x = _lay(x, offset, count * block)
    x = x.reshape(x.shape[0], count, block, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))

  marks, misplaced, after = None, None, position + t
  if starts is not None:
    marks, misplaced = _marks(starts, position, offset, count, block, chunk)
    after = since_start(starts, position)[:, -1] + 1

  def compute(**of_block):
    form = rule.TOKEN if block == 1 else rule.XLA
    return body(Step(consts=consts, form=form, **of_block))

  def step(carry, x):
    x, j, marks = x
    if marks is not None:
      carry = _reset(marks.reset, carry, initial)
    start, now, trace = carry
    if full and block == chunk:
      seen = now if keeps_start else None
      now, trace, y = compute(start=seen, now=now, trace=trace, x=x, valid=None)
      return (start, now, trace), y
    if marks is not None:
      valid, complete = marks.valid, marks.complete
    else:
      place = j * block + jnp.arange(block)
      valid = None
      if count * block != t:
        valid = (place >= offset) & (place < offset + t)
      end = (j + 1) * block - offset
      complete = (end <= t) & ((position + end) % chunk == 0)
    now, trace, y = compute(start=start, now=now, trace=trace, x=x, valid=valid)
    if keeps_start:
      start = _where(complete, now, start)
    return (start, now, trace), y

  start, now, trace = state
  keeps_start = start is not None
  if full and block == chunk:
    start = None  # not carried: it is `now` at every block
  (start, now, trace), ys = _scan(
    step,
    (start, now, trace),
    (jax.tree.map(lay, xs), jnp.arange(count), marks),
    group=_GROUP if block == 1 and count > 2 * _GROUP else 1,
  )
  if full and block == chunk and keeps_start:
    start = now

  def unlay(y):
    y = jnp.moveaxis(y, (0, 2), (1, 3))
    y = y.reshape(y.shape[0], count * block, *y.shape[3:])
    return _unlay(y, offset, t)

  state = mlp.State(start, now, trace)
  return state, after % chunk, _spoil(misplaced, jax.tree.map(unlay, ys))


def _scan(step: Callable, carry: Any, xs: Any, group: int) -> tuple[Any, Any]:
  """`lax.scan` whose backward pass computes each step again, except its solve.

  Args:
    step: of the scan.
    carry: at first.
    xs: tree of [count, ...].
    group: steps between the carries that are saved. Where it is not 1, the
      carries between them are computed again as well.
  """
  save = jax.checkpoint_policies.save_only_these_names('solve')
  step = jax.checkpoint(step, policy=save)
  count = jax.tree.leaves(xs)[0].shape[0]
  if group == 1:
    return lax.scan(step, carry, xs)

  @jax.checkpoint
  def steps(carry, xs):
    return lax.scan(step, carry, xs)

  rest = count % group
  groups, ys = jax.tree.map(lambda x: x[: count - rest], xs), []
  groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), groups)
  carry, y = lax.scan(steps, carry, groups)
  ys.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), y))
  if rest:
    carry, y = steps(carry, jax.tree.map(lambda x: x[-rest:], xs))
    ys.append(y)
  return carry, jax.tree.map(lambda *y: jnp.concatenate(y), *ys)


def _part(tree: Any, tokens: slice) -> Any:
  """The tokens of a slice, of a tree of [b, t, ...]."""
  return jax.tree.map(lambda x: x[:, tokens], tree)


def _lay(x: jax.Array, offset: jax.Array | int, size: int) -> jax.Array:
  """Puts x [b, t, ...] on a grid of zeros, [b, size, ...].

  Args:
    x: a piece.
    offset: [] or [b], place of the piece's first token.
    size: places of the grid.
  """
  if size == x.shape[1]:
    return x
  grid = jnp.zeros((x.shape[0], size, *x.shape[2:]), x.dtype)
  if not jnp.ndim(offset):
    return lax.dynamic_update_slice_in_dim(grid, x, offset, axis=1)
  update = functools.partial(lax.dynamic_update_slice_in_dim, axis=0)
  return jax.vmap(update)(grid, x, offset)


def _unlay(grid: jax.Array, offset: jax.Array | int, t: int) -> jax.Array:
  """The inverse of `_lay`."""
  if not jnp.ndim(offset):
    return lax.dynamic_slice_in_dim(grid, offset, t, axis=1)
  take = functools.partial(lax.dynamic_slice_in_dim, slice_size=t, axis=0)
  return jax.vmap(take)(grid, offset)


def _marks(
  starts: jax.Array,
  position: jax.Array,
  offset: jax.Array | int,
  count: int,
  block: int,
  chunk: int,
) -> tuple[_Marks, jax.Array]:
  """The marks of a piece; bool [b], which rows have a start within a block.

  Args:
    starts: as in `run`.
    position: as in `run`, [b].
    offset: [] or [b], place of the piece's first token on the grid.
    count: blocks of the grid.
    block: tokens of a block.
    chunk: tokens of a chunk.
  """
  batch, t = starts.shape
  laid = _lay(starts, offset, count * block)
  since = since_start(laid, position - offset)[:, ::block]
  laid = laid.reshape(batch, count, block)
  place = jnp.arange(count * block) - jnp.expand_dims(offset, -1)
  ends_inside = place[..., block - 1 :: block] < t
  valid = None
  if count * block != t:
    valid = jnp.broadcast_to((place >= 0) & (place < t), (batch, count * block))
    valid = valid.reshape(batch, count, 1, block).swapaxes(0, 1)
  complete = ends_inside & ((since + block) % chunk == 0)
  marks = _Marks(reset=laid[..., 0].T, complete=complete.T, valid=valid)
  return marks, laid[..., 1:].any((1, 2))


def _where(flag: jax.Array, new: Any, old: Any) -> Any:
  """Takes leaves [b, ...] of `new` where a flag, [] or [b], is set."""

  def choose(new, old):
    here = flag
    if rank := jnp.ndim(flag):
      here = flag.reshape(flag.shape + (1,) * (old.ndim - rank))
    return jnp.where(here, new, old)

  return jax.tree.map(choose, new, old)


def _reset(flag: jax.Array, carry: Any, initial: Any) -> Any:
  """(start, now, trace), a document's initial state where a flag is set."""
  start, now, trace = carry
  zeros = jax.tree.map(jnp.zeros_like, (now, trace))
  fresh = zeros[0] if initial is None else initial
  begin = (None if start is None else fresh, fresh, zeros[1])
  return _where(flag, begin, carry)


def _spoil(misplaced: jax.Array | None, ys: Any) -> Any:
  """Turns the rows [b, ...] where documents are misplaced into NaN."""
  if misplaced is None:
    return ys
  nan = jax.tree.map(lambda y: jnp.full_like(y, jnp.nan), ys)
  return _where(misplaced, nan, ys)


def _run_whole(body, consts, state, xs, chunk, starts, initial):
  """Whole chunks from a chunk's start, by `kernels.scan`; returns as `run`."""
  # Imported here, since few runs use Pallas and its import takes 0.25 s.
  from hope.memory.kernels import mosaic, scan

  block = block_size(chunk)
  batch, t, heads = jax.tree.leaves(xs)[0].shape[:3]
  marks, misplaced, position = None, None, jnp.int32(0)
  if starts is not None:
    zero = jnp.zeros(batch, jnp.int32)
    marks, misplaced = _marks(starts, zero, 0, t // block, block, chunk)
    position = (since_start(starts, zero)[:, -1] + 1) % chunk

    def column(flag: jax.Array) -> jax.Array:
      """A flag [count, b] per token, as the kernel streams it: [b, n, t, 1]."""
      flag = jnp.repeat(flag.T, block, axis=1)[:, None, :, None]
      flag = flag.astype(jnp.float32)
      return jnp.broadcast_to(flag, (batch, heads, t, 1))

    marks = column(marks.reset), column(marks.complete)

  def compute(consts, **of_block):
    step = Step(consts=consts, valid=None, form=mosaic.FORM, **of_block)
    return body(step)

  def step(consts, carry, x, j):
    consts, initial = consts
    x, marks = x
    complete = (j + 1) * block % chunk == 0
    if marks is not None:
      # Flags of one head, [1, 1].
      reset, complete = (flag[:1] > 0 for flag in marks)
      carry = _reset(reset, carry, initial)
    start, now, trace = carry
    if block == chunk:
      seen = now if keeps_start else None
      now, trace, y = compute(consts, start=seen, now=now, trace=trace, x=x)
      return (None, now, trace), y
    now, trace, y = compute(consts, start=start, now=now, trace=trace, x=x)
    if keeps_start:
      start = _where(complete, now, start)
    return (start, now, trace), y

  start, now, trace = state
  keeps_start = start is not None
  if block == chunk:
    start = None
  xs = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2), xs)
  (start, now, trace), ys = scan.scan(
    step, (consts, initial), (start, now, trace), (xs, marks), block
  )
  if block == chunk and keeps_start:
    start = now
  ys = jax.tree.map(lambda y: jnp.moveaxis(y, 2, 1), ys)
  return mlp.State(start, now, trace), position, _spoil(misplaced, ys)
