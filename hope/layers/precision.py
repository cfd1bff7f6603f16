"""The precision that norms, gates and memories compute in."""

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
  """x [...] in its own dtype, or in float32 where that is narrower."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
