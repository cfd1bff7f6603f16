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
  place = jnp.arange(starts.shape[1])
  before = -jnp.broadcast_to(position, starts.shape[:1])[:, None]
  return place - lax.cummax(jnp.where(starts, place, before), axis=1)
