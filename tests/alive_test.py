"""Every initial state is learned, and long streams stay bounded."""

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import (
  GRADIENT_BAR,
  MEMORIES,
  embedding_sensitivity,
  jit,
  model_module,
)
import ml_collections
import numpy as np

from hope import config as config_lib
from hope.model import Hope

# ----------------------------------------------------------------------- alive


def deep_model(**fields):
  """Four layers of width 16 in float64, chunks of 8."""
  config = config_lib.base_config()
  config.model.width, config.model.num_heads = 16, 2
  config.model.num_layers, config.compute.remat = 4, False
  config.model.titans.chunk_size = 8
  config.model.titans.projection_chunk_size = 8
  # The bounds have corners, where finite differences say nothing.
  config.model.titans.target_max = None
  config.model.titans.error_max = None
  config.update_from_flattened_dict(fields)
  config = ml_collections.ConfigDict(config_lib.resolve(config, 32))
  config.model.dtype = 'float64'
  model = Hope(config, rngs=nnx.Rngs(0))
  to_double = lambda x: x.astype(jnp.float64)
  nnx.update(model, jax.tree.map(to_double, nnx.state(model)))
  return model


def probe_loss(model):
  """A loss in float64 of the blocks' outputs at tokens >= first of 24.

  Returns:
    (loss, params): loss a function of the blocks' parameters and first.
  """
  rng = np.random.default_rng(4)
  x = jnp.asarray(rng.standard_normal((2, 24, 16)))
  probe = jnp.asarray(rng.standard_normal((2, 24, 16)))
  graph, params = nnx.split(model.blocks[0])

  def loss(params, first):
    step = lambda x, p: (nnx.merge(graph, p)(x)[0], None)
    y, _ = jax.lax.scan(step, x, params)
    seen = (jnp.arange(24) >= first)[:, None]
    return jnp.mean(jnp.where(seen, probe * model.norm(y), 0))

  return loss, params


def test_every_initial_state_has_an_outer_gradient(x64):
  """Also when the loss sees no token of the first chunk."""
  loss, params = probe_loss(deep_model())
  loss, gradient = jit(loss), jit(jax.grad(loss))
  for first in (0, 8):
    gradients = gradient(params, first)
    check_gradients(lambda p, first=first: loss(p, first), params, gradients)


def check_gradients(loss, params, gradients):
  """Non-zero in every layer, and the central differences of `loss`."""
  rng = np.random.default_rng(5)
  for name in MEMORIES:
    for part in ('up', 'down'):
      gradient = np.asarray(gradients['mixer'][name][part][...])
      for layer in range(4):
        assert np.abs(gradient[layer]).max() > 0, (name, part, layer)
        direction = np.zeros_like(gradient)
        direction[layer] = rng.standard_normal(gradient[layer].shape)
        # Along the gradient too, lest the derivative be a small difference.
        size = np.linalg.norm(gradient[layer])
        direction[layer] += 4 * gradient[layer] / size
        direction /= np.linalg.norm(direction)

        def along(step, name=name, part=part, direction=direction):
          moved = jax.tree.map(lambda x: x, params)
          leaf = moved['mixer'][name][part]
          moved['mixer'][name][part] = leaf.replace(
            leaf[...] + step * direction
          )
          return float(loss(moved))

        # Central differences of fourth order.
        h = 2e-3
        slope = 8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))
        slope /= 12 * h
        expected = np.sum(gradient * direction)
        assert abs(slope - expected) <= GRADIENT_BAR * abs(expected), (
          name,
          part,
          layer,
          slope,
          expected,
        )


def test_generating_memories_are_learned_through_the_writes(x64):
  """What k, v, eta and alpha generate is only ever written."""
  loss, params = probe_loss(deep_model(**{'model.titans.eta_max': 0.0}))
  gradients = jit(jax.grad(loss))(params, 0)['mixer']
  for name in MEMORIES:
    for part in ('up', 'down'):
      gradient = np.asarray(gradients[name][part][...])
      if name == 'memory':
        assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()
      else:
        np.testing.assert_array_equal(gradient, 0)


def test_a_token_a_thousand_positions_back_is_seen():
  fields = {
    'model.num_layers': 1,
    'model.titans.chunk_size': 64,
    'model.titans.projection_chunk_size': 64,
    'model.cms.mode': 'outer',
    'model.cms.periods': (1,),
    'model.vocab_size': 1025,
  }
  model = model_module(**fields)
  tokens = jnp.arange(1024)[None]
  function, rows = embedding_sensitivity(model, tokens)
  gradient = jit(jax.grad(lambda rows: function(rows)[0, -1]))(rows)
  size = np.abs(gradient).max(axis=-1)
  assert np.isfinite(size).all()
  assert (size[:24] > 1e-6 * size.max()).all()
