"""What the tests of the optimizers share."""

import jax
import jax.numpy as jnp
import numpy as np


def gradients(params, count, seed=0):
  """A sequence of `count` random trees like params."""
  rng = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype)
  return [jax.tree.map(draw, params) for _ in range(count)]


def run(tx, params, sequence):
  """The updates of a sequence of gradients, and the state after it."""
  update, state, out = jax.jit(tx.update), tx.init(params), []
  for g in sequence:
    updates, state = update(g, state, params)
    out.append(updates)
  return out, state
