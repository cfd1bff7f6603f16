"""Documents that share a row: how far each token is from its document's start.

A batch may come with `starts`, bool [b, t], True at the first token of a
document. Every fast state is then the initial one before that token, so that a
document computes the same in any row and at any place.
"""

import jax
from jax import lax
import jax.numpy as jnp


def since_start(starts: jax.Array, position: jax.Array | int) -> jax.Array:
  """Tokens since the start of each token's document, 0 at its first token.

  Args:
    starts: bool [b, t].
    position: int32 [] or [b], not negative: the same count for the piece's
      first token, if it starts no document.

  Returns:
    int32 [b, t].
  """
  place = jnp.arange(starts.shape[1], dtype=jnp.int32)
  before = -jnp.broadcast_to(position, starts.shape[:1])[:, None]
  return place - lax.cummax(jnp.where(starts, place, before), axis=1)


def positions(
  position: jax.Array, t: int, starts: jax.Array | None
) -> jax.Array:
  """Place of each token of a piece in its document, 0 at the first one.

  Args:
    position: int32 [] or [b], that of the piece's first token, if it starts no
      document.
    t: tokens of the piece.
    starts: bool [b, t], True where a document starts; None: nowhere.

  Returns:
    int32 [t] or [b, t].
  """
  if starts is None:
    return position[..., None] + jnp.arange(t, dtype=jnp.int32)
  return since_start(starts, position)
