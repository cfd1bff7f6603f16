"""The product with a backward pass of its own."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hope.layers.dense import dot_general


def test_gradients_are_those_of_a_plain_product(x64):
  del x64
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
  gradients = []
  for option in ({}, {'dot_general': dot_general}):
    layer = nnx.Linear(
      3, 7, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **option
    )
    loss = lambda layer, x: jnp.sum(jnp.sin(layer(x)))
    gradients.append(nnx.grad(loss, argnums=(0, 1))(layer, x))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), *gradients
  )
