"""MAD's decoder: its equations, and a model that has one."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope.config import base_config, resolve
from hope.data import open_data
from hope.layers.decoder import Decoder, positions
from hope.loss import loss_and_metrics
from hope.model import Hope

EPS = 1e-6


def decoded(x, params):
  """The equations token by token, in NumPy and float64."""
  _, length, width = x.shape
  half = width // 2
  rows = []
  for e in x[:, -1]:
    for i in range(length):
      h = e.copy()
      for j in range(half):
        rate = math.exp(-math.log(10000) * j / (half - 1))
        h[j] += math.sin(i * rate)
        h[half + j] += math.cos(i * rate)
      for n in '12':
        h = h / np.sqrt(np.mean(h**2) + EPS) * params[f'norm_{n}']['scale']
        linear = params[f'linear_{n}']
        h = h @ linear['kernel'] + linear['bias']
        h = np.array([y / 2 * (1 + math.erf(y / math.sqrt(2))) for y in h])
      rows.append(h)
  return np.stack(rows).reshape(x.shape)


@pytest.mark.parametrize(('length', 'width'), [(1, 4), (7, 6), (20, 9)])
def test_the_decoder_is_that_of_its_equations(length, width, x64):
  del x64
  rng = np.random.default_rng(0)
  graph, params = nnx.split(Decoder(width, EPS, jnp.float64, rngs=nnx.Rngs(0)))
  params = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape)), nnx.to_pure_dict(params)
  )
  x = rng.normal(size=(2, length, width))
  got = nnx.merge(graph, params)(jnp.asarray(x))
  expected = decoded(x, jax.tree.map(np.asarray, params))
  # The positions are rounded to float32.
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_positions_of_a_width_of_two():
  """One sine and one cosine, of frequency 1."""
  angles = np.arange(5)
  expected = np.stack([np.sin(angles), np.cos(angles), 0 * angles], axis=1)
  np.testing.assert_allclose(positions(5, 3), expected, rtol=1e-6)
  np.testing.assert_allclose(positions(5, 2), expected[:, :2], rtol=1e-6)
  assert positions(5, 1).shape == (5, 1)


def make(**fields):
  config = base_config()
  config.update_from_flattened_dict(
    {
      'data.source': 'synthetic:compression',
      'data.seq_len': 12,
      'data.task.vocab_size': 16,
      'model.decoder': True,
      'model.tied_head': False,
      'model.pattern': 'attention(max_context=1)+swiglu',
      'model.num_layers': 1,
      'model.width': 16,
      'model.num_heads': 2,
    }
    | fields
  )
  return resolve(config, 16)


def test_a_model_sees_one_vector():
  """Of a mixer that sees two tokens, all logits are of the last two."""
  config = make()
  model = Hope(config, rngs=nnx.Rngs(0))
  tokens = jax.random.randint(jax.random.key(0), (4, 12), 0, 15)
  last = jnp.arange(4).at[3].set(0)  # rows 0 and 3 end alike
  tokens = tokens.at[:, -2:].set(last[:, None])
  logits, _ = model(tokens)
  assert logits.shape == (4, 12, 16)
  np.testing.assert_array_equal(logits[0], logits[3])
  assert np.abs(logits[0] - logits[1]).max() > 1e-3
  assert np.abs(logits[0, 2] - logits[0, 9]).max() > 1e-3
  only, _ = model(tokens, last_only=True)
  np.testing.assert_allclose(only, logits[:, -1:], rtol=1e-6, atol=1e-6)


def test_every_parameter_learns():
  config = make()
  batch = open_data(config).eval_batches()[0]
  graph, params = nnx.split(Hope(config, rngs=nnx.Rngs(0)))

  def loss(params):
    return loss_and_metrics(nnx.merge(graph, params), batch)[0]

  gradients = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
  for gradient in jax.tree.leaves(gradients['decoder']):
    assert np.abs(gradient).max() > 0


def test_nothing_goes_on_from_a_state():
  model = Hope(make(), rngs=nnx.Rngs(0))
  tokens = jnp.zeros((1, 12), int)
  _, state = model(tokens)
  with pytest.raises(ValueError, match='decodes whole sequences.*at once'):
    model(tokens, state)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'data.source': 'stdlib'}, 'data.source=stdlib: the decoder sees'),
    ({'data.source': 'synthetic:copy'}, 'model.decoder=True and data.source'),
    ({'model.decoder': False}, 'set model.decoder=True for it'),
  ],
)
def test_it_is_for_one_task_and_the_task_for_it(fields, message):
  with pytest.raises(ValueError, match=message):
    make(**fields)
