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

from hope.memory import mlp

MAX_BLOCK = 64


def block_size(chunk: int) -> int:
  """The largest divisor of `chunk` that is at most MAX_BLOCK, in tokens."""
  return max(b for b in range(1, min(chunk, MAX_BLOCK) + 1) if chunk % b == 0)


def run(
  body: Callable[..., tuple[Any, Any, Any]],
  state: Any,
  position: jax.Array | None,
  xs: Any,
  chunk: int,
) -> tuple[Any, jax.Array, Any]:
  """Scans `body` over the blocks of a piece.

  Args:
    body: (start, now, trace, x, valid) -> (now, trace, y), where x holds one
      block of xs, [b, n, c, ...], `valid` [c] says which of its tokens count
      (None: all), and y is [b, n, c, ...].
    state: mlp.State, or a tree of them (any tree with start, now and trace).
    position: int32 scalar, tokens since the chunk began; None: zero, known
      before compilation.
    xs: tree of [b, t, n, ...].
    chunk: tokens of a chunk.

  Returns:
    (state, position, ys): ys a tree of [b, t, n, ...].
  """
  t = jax.tree.leaves(xs)[0].shape[1]
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
      now, trace, y = body(now, now, trace, x, None)
      return (start, now, trace), y
    place = j * block + jnp.arange(block)
    valid = None
    if count * block != t:
      valid = (place >= offset) & (place < offset + t)
    now, trace, y = body(start, now, trace, x, valid)
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
