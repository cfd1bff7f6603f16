"""Attention within a segment of a stream, as part of a block of `stream.run`.

A segment has C tokens, each with two keys: its own, S, and one of what it read
from a memory, h. A piece of a stream may end within a segment: its state then
holds the keys and values of the tokens so far.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Seen(NamedTuple):
  """Keys and values of a segment of C tokens.

  Attributes:
    k: [..., 2, C, d], of h and of S, rotated.
    v: [..., 2, C, d].
  """

  k: jax.Array
  v: jax.Array


def attend(
  q: jax.Array,
  place: jax.Array,
  seen: Seen,
  persistent: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
  """Causal attention within a segment.

  Args:
    q: [..., c, d].
    place: int32 [..., c, 1] of the queries in the segment.
    seen: of the segment's C tokens.
    persistent: keys and values [..., p, d], always seen; None: none.

  Returns:
    [..., c, d].
  """
  *lead, parts, length, d = seen.k.shape
  scores = jnp.einsum('...qd,...scd->...qsc', q, seen.k)
  visible = jnp.arange(length) <= place
  scores = jnp.where(visible[..., None, :], scores, -jnp.inf)
  scores = scores.reshape(*scores.shape[:-2], -1)
  values = seen.v.reshape(*lead, parts * length, d)
  if persistent is not None:
    k, v = persistent
    more = jnp.einsum('...qd,...pd->...qp', q, k)
    scores = jnp.concatenate([more, scores], axis=-1)
    values = jnp.concatenate([v, values], axis=-2)
  return jax.nn.softmax(scores * d**-0.5, axis=-1) @ values


def put(
  new: Seen, held: Seen, place: jax.Array, valid: jax.Array | None
) -> tuple[Seen, Seen]:
  """Keys and values of a segment of which c tokens are new.

  Args:
    new: [..., 2, c, d], c either C or 1.
    held: [..., 2, C, d], of the segment's tokens before.
    place: int32 [..., c, 1], of the new ones.
    valid: as in `stream.Step`.

  Returns:
    (seen, held): [..., 2, C, d]; the latter zeros where the segment ends.
  """
  length = held.k.shape[-2]
  if new.k.shape[-2] < length:
    here = jnp.arange(length)[:, None] == place
  elif valid is None:
    return new, held  # A whole segment: none was held, and none will be.
  else:
    here = valid[..., None]
  here = here[..., None, :, :]
  seen = jax.tree.map(functools.partial(jnp.where, here), new, held)
  ended = here[..., -1:, :]
  return seen, jax.tree.map(lambda x: jnp.where(ended, 0, x), seen)
