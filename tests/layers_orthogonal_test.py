"""Orthogonal initial matrices: of any shape, evenly drawn, on two devices."""

from conftest import run_program
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope.layers.orthogonal import orthogonal


@pytest.mark.parametrize('shape', [(64, 64), (3, 16, 48), (2, 2, 48, 16)])
@pytest.mark.parametrize('x64', [False, True])
def test_the_shorter_side_is_orthonormal(shape, x64):
  with jax.enable_x64(x64):
    x = orthogonal(3.0)(jax.random.key(1), shape) / 3
    assert x.shape == shape
    assert x.dtype == (jnp.float64 if x64 else jnp.float32)
    if shape[-2] > shape[-1]:
      x = jnp.swapaxes(x, -1, -2)
    error = x @ jnp.swapaxes(x, -1, -2) - jnp.eye(x.shape[-2])
    assert jnp.abs(error).max() < (1e-14 if x64 else 2e-6)


def test_draws_are_even():
  """E[q_ij^2 q_kl^2] tells rotations drawn evenly from others of that size."""
  n, draws = 4, 4000
  q = np.asarray(orthogonal()(jax.random.key(0), (draws, n, n)), np.float64)
  within = 4 / draws**0.5
  np.testing.assert_allclose(q.mean(0), 0, atol=within / n**0.5)
  np.testing.assert_allclose((q**2).mean(0), 1 / n, atol=within / n)
  # Of a unit vector drawn evenly: E[q_i^4] = 3 / (n (n + 2)).
  np.testing.assert_allclose((q**4).mean(0), 3 / (n * (n + 2)), atol=within / n)
  # And of two columns: E[q_ij^2 q_kl^2] = (n + 1) / (n (n - 1) (n + 2)).
  both = (q[:, 0, 0] ** 2 * q[:, 1, 1] ** 2).mean()
  assert abs(both - (n + 1) / (n * (n - 1) * (n + 2))) < within / n**2


def test_a_model_starts_on_two_devices():
  """Where QR decompositions would wait for each other for ever."""
  norms = run_program(
    """
import json
import jax
from experiments import smoke
from hope.config import resolve
from hope.parallel import mesh
from hope.training import step
norms = []
for pattern in ('titans+cms', 'lstm+swiglu', 'rwkv7+swiglu'):
  config = smoke.get_config()
  config.model.pattern = pattern
  config = resolve(config, 256)
  _, abstract = step.abstract_state(config, mesh.make_mesh(config))
  state = jax.block_until_ready(step.init_state(config, abstract))
  norms.append(float(sum(abs(x).sum() for x in jax.tree.leaves(state.params))))
print(json.dumps(norms))
""",
    devices=2,
  )
  assert all(np.isfinite(norms)), norms
