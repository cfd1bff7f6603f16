"""Small layers and models, and what runs them."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hope import config as config_lib
from hope.mixers.titans import SelfReferentialTitans, TitansOptions
from hope.model import Hope

BAR = 1e-10
GRADIENT_BAR = 1e-6
STREAM_BAR = 1e-4
MEMORIES = ('k', 'v', 'eta', 'alpha', 'memory')
# The rule of the paper: gradients of l2, momentum, self-generated targets.
FROZEN = {'objective': 'l2', 'target': 'self'}


def relative(actual, expected):
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  assert np.isfinite(actual).all()
  scale = np.abs(expected).max()
  return np.abs(actual - expected).max() / (scale or 1.0)


def assert_same(actual, expected, bar):
  """Every leaf within `bar`; integers and statics exactly."""
  actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected, strict=True):
    if jnp.issubdtype(e.dtype, jnp.integer):
      np.testing.assert_array_equal(a, e)
    else:
      assert relative(a, e) <= bar


def randomize(module, dtype, seed=1):
  """Casts a module and moves its constants, so that each of them shows."""
  rng = np.random.default_rng(seed)

  def move(x):
    noise = 0.3 * rng.standard_normal(x.shape)
    return jnp.asarray(np.asarray(x) + noise, dtype)

  nnx.update(module, jax.tree.map(move, nnx.state(module)))
  return module


def titans(
  width=8, heads=2, dtype=jnp.float32, seed=0, kernel='xla', **options
):
  layer = SelfReferentialTitans(
    width,
    heads,
    TitansOptions(**options),
    dtype=dtype,
    kernel=kernel,
    rngs=nnx.Rngs(seed),
  )
  return randomize(layer, dtype)


def inputs(batch, tokens, width, dtype=np.float32, seed=2):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((batch, tokens, width)), dtype)


# Nearly all of the time is compilation.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def call(module, jit=jit):
  """The module as one jitted function of (x, state)."""
  graph, params = nnx.split(module)
  run = jit(lambda params, x, state: nnx.merge(graph, params)(x, state))
  return functools.partial(run, params)


def assert_gradients_are_differences(module, x):
  """Those of every parameter, each along a random direction, in float64."""
  graph, params = nnx.split(module, nnx.Param)
  rng = np.random.default_rng(5)
  draw = lambda shape: jnp.asarray(rng.standard_normal(shape))
  probe = draw(x.shape)

  def loss(params):
    return jnp.sum(probe * nnx.merge(graph, params)(x)[0])

  gradients = jax.tree.leaves(jit(jax.grad(loss))(params))
  leaves, tree = jax.tree.flatten(params)
  run = jit(lambda leaves: loss(tree.unflatten(leaves)))
  for place, gradient in enumerate(gradients):
    way = draw(gradient.shape)
    ahead, behind = (
      run([*leaves[:place], leaves[place] + step * way, *leaves[place + 1 :]])
      for step in (1e-5, -1e-5)
    )
    expected = (ahead - behind) / 2e-5
    assert abs(jnp.vdot(gradient, way) - expected) <= GRADIENT_BAR * max(
      1, abs(expected)
    )


def small_config(**fields):
  config = config_lib.base_config()
  config.model.width, config.model.num_heads = 16, 2
  config.model.num_layers = 2
  config.compute.remat = False
  config.update_from_flattened_dict(fields)
  return config_lib.resolve(config, 64)


def model_module(**fields):
  fields = {
    'model.titans.chunk_size': 8,
    'model.titans.projection_chunk_size': 4,
    'model.cms.mode': 'in_context',
    'model.cms.periods': (2, 8),
    'model.vocab_size': 64,
    **fields,
  }
  return Hope(small_config(**fields), rngs=nnx.Rngs(0))


def embedding_sensitivity(model, tokens):
  """`sensitivity` of the logit of an unused symbol to distinct tokens.

  The embedding is tied to the output, so only a symbol that is nowhere in the
  input lets the gradient of the others' rows be that of the inputs alone.
  """
  graph, embedding, rest = nnx.split(
    model, lambda path, _: 'embed' in path, ...
  )

  def function(rows):
    table = jax.tree.map(lambda e: e.at[: rows.shape[0]].set(rows), embedding)
    logits, _ = nnx.merge(graph, table, rest)(tokens)
    return logits[..., -1]

  rows = jax.tree.leaves(embedding)[0][: tokens.size]
  return function, rows
