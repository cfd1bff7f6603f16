"""Running a memory over a piece of a stream, block by block.

A chunk (in tokens) is the span whose gradients share one state. A block, at
most 64 tokens and a divisor of the chunk, is what one step of the scan
computes. A piece of a stream may start and end anywhere within a chunk: its
tokens are laid on the grid of blocks, and the places around them are masked.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from hope.memory import mlp, pallas, rule

MAX_BLOCK = 64
KERNELS = ('xla', 'pallas')


def block_size(chunk: int) -> int:
  """The largest divisor of `chunk` that is at most MAX_BLOCK, in tokens."""
  return max(b for b in range(1, min(chunk, MAX_BLOCK) + 1) if chunk % b == 0)


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


def run(
  body: Callable[..., tuple[Any, Any, Any]],
  consts: Any,
  state: Any,
  position: jax.Array | None,
  xs: Any,
  chunk: int,
  kernel: str = 'xla',
) -> tuple[Any, jax.Array, Any]:
  """Scans `body` over the blocks of a piece.

  Args:
    body: (consts, start, now, trace, x, valid, form) -> (now, trace, y), where
      x holds one block of xs, [b, n, c, ...], `valid` [c] says which of its
      tokens count (None: all), `form` is of the rule's parts, and y is
      [b, n, c, ...]. For 'pallas' it is called without b and n.
    consts: tree of [b, n, ...], the same at every block.
    state: mlp.State, or a tree of them (any tree with start, now and trace).
    position: int32 scalar, tokens since the chunk began; None: zero, known
      before compilation.
    xs: tree of [b, t, n, ...].
    chunk: tokens of a chunk.
    kernel: 'xla', or 'pallas': where position is None, whole chunks are run by
      `pallas.scan`. All other tokens (those after the last whole chunk, and
      pieces that continue a stream, as in decoding) are run as with 'xla'.

  Returns:
    (state, position, ys): ys a tree of [b, t, n, ...].
  """
  t = jax.tree.leaves(xs)[0].shape[1]
  if kernel == 'pallas' and position is None and t >= chunk:
    whole = t - t % chunk
    part = lambda tree, *ends: jax.tree.map(lambda x: x[:, slice(*ends)], tree)
    state, ys = _run_whole(body, consts, state, part(xs, whole), chunk)
    if whole == t:
      return state, jnp.int32(0), ys
    state, position, rest = run(
      body, consts, state, None, part(xs, whole, None), chunk
    )
    join = lambda *ys: jnp.concatenate(ys, axis=1)
    return state, position, jax.tree.map(join, ys, rest)
  block = 1 if t == 1 else block_size(chunk)
  aligned = position is None
  full = aligned and t % chunk == 0
  if aligned:
    position = jnp.int32(0)
  offset = 0 if aligned else position % block
  count = -(-t // block) if aligned or block == 1 else -(-(t - 1) // block) + 1

  def lay(x):
    if count * block != t:
      grid = jnp.zeros((x.shape[0], count * block, *x.shape[2:]), x.dtype)
      x = lax.dynamic_update_slice_in_dim(grid, x, offset, axis=1)
    x = x.reshape(x.shape[0], count, block, *x.shape[2:])
    return jnp.moveaxis(x, (1, 3), (0, 2))

  def step(carry, x):
    start, now, trace = carry
    x, j = x
    if full and block == chunk:
      now, trace, y = body(consts, now, now, trace, x, None, rule.XLA)
      return (start, now, trace), y
    place = j * block + jnp.arange(block)
    valid = None
    if count * block != t:
      valid = (place >= offset) & (place < offset + t)
    now, trace, y = body(consts, start, now, trace, x, valid, rule.XLA)
    end = (j + 1) * block - offset
    complete = (end <= t) & ((position + end) % chunk == 0)
    start = jax.tree.map(lambda s, n: jnp.where(complete, n, s), start, now)
    return (start, now, trace), y

  start, now, trace = state
  if full and block == chunk:
    start = None  # not carried: it is `now` at every block
  # Of a block, the backward pass keeps the state before it and what was solved
  # for, and computes the rest anew.
  (start, now, trace), ys = lax.scan(
    jax.checkpoint(
      step, policy=jax.checkpoint_policies.save_only_these_names('solve')
    ),
    (start, now, trace),
    (jax.tree.map(lay, xs), jnp.arange(count)),
  )
  if full and block == chunk:
    start = now

  def unlay(y):
    y = jnp.moveaxis(y, (0, 2), (1, 3))
    y = y.reshape(y.shape[0], count * block, *y.shape[3:])
    return lax.dynamic_slice_in_dim(y, offset, t, axis=1)

  state = mlp.State(start, now, trace)
  return state, (position + t) % chunk, jax.tree.map(unlay, ys)


def _run_whole(body, consts, state, xs, chunk):
  """Whole chunks from a chunk's start, by `pallas.scan`."""
  block = block_size(chunk)

  def step(consts, carry, x, j):
    start, now, trace = carry
    if block == chunk:
      now, trace, y = body(consts, now, now, trace, x, None, pallas.FORM)
      return (None, now, trace), y
    now, trace, y = body(consts, start, now, trace, x, None, pallas.FORM)
    complete = (j + 1) * block % chunk == 0
    start = jax.tree.map(lambda s, n: jnp.where(complete, n, s), start, now)
    return (start, now, trace), y

  start, now, trace = state
  if block == chunk:
    start = None
  (start, now, trace), ys = pallas.scan(
    step,
    consts,
    (start, now, trace),
    jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2), xs),
    block,
  )
  if block == chunk:
    start = now
  ys = jax.tree.map(lambda y: jnp.moveaxis(y, 2, 1), ys)
  return mlp.State(start, now, trace), ys
