"""Step sizes softplus(x + bias) of recurrences, as Mamba draws their biases."""

import jax
import jax.numpy as jnp


def draw_bias(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Biases for which softplus(bias) is from 1e-3 to 1e-1, evenly in its log.

  Args:
    key: of the draw, [].
    shape: of the biases.

  Returns:
    [*shape].
  """
  low, high = jnp.log(1e-3), jnp.log(1e-1)
  step = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
  return step + jnp.log(-jnp.expm1(-step))
