"""Newton-Schulz and M3 against NumPy in float64 and against optax."""

from conftest import run_program
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import run
import pytest

import optimizers
from optimizers import matrices

# ------------------------------------------------------------ transcriptions


def newton_schulz(x, steps=5, coefficients=(3.4445, -4.7750, 2.0315)):
  """Of one matrix, by its singular values: the iteration acts on each."""
  u, s, vt = np.linalg.svd(x, full_matrices=False)
  s = s / (np.linalg.norm(x) + 1e-8)
  a, b, c = coefficients
  for _ in range(steps):
    s = a * s + b * s**3 + c * s**5
  return u @ np.diag(s) @ vt


def algorithm_1(gradients, b1, b2, b3, alpha, period, eps):
  """Updates of Algorithm 1 as printed, for one matrix."""
  fast = slow = nu = 0 * gradients[0]
  window, direction, out = [], 0 * gradients[0], []
  for t, g in enumerate(gradients):
    if t and t % period == 0:
      slow = slow + b3 * sum(window)
      direction, window = newton_schulz(slow), []
    window.append(g)
    fast = fast + b1 * g
    nu = nu + b2 * g**2
    step = newton_schulz(fast) + alpha * direction
    out.append(step / np.sqrt(nu + eps))
  return out


def averaged(gradients, b1, b2, b3, alpha, period, eps):
  """Updates of the practical form, for one matrix."""
  fast = slow = nu = 0 * gradients[0]
  window, direction, out = [], 0 * gradients[0], []
  for t, g in enumerate(gradients):
    if t and t % period == 0:
      slow = b3 * slow + (1 - b3) * np.mean(window, axis=0)
      direction, window = newton_schulz(slow), []
    window.append(g)
    fast = b1 * fast + (1 - b1) * g
    nu = b2 * nu + (1 - b2) * g**2
    step = newton_schulz(fast) + alpha * direction
    scaled = step / np.sqrt(nu / (1 - b2 ** (t + 1)) + eps)
    out.append(scaled * np.linalg.norm(step) / np.linalg.norm(scaled))
  return out


def gradients(shape, count=10, seed=0):
  return np.random.default_rng(seed).standard_normal((count, *shape))


# ------------------------------------------------------------- Newton-Schulz


@pytest.mark.parametrize('shape', [(4, 4), (3, 7), (7, 3), (1, 5), (1, 1)])
def test_newton_schulz_is_the_transcription(shape, x64):
  x = gradients((2, *shape))[0]
  y = optimizers.newton_schulz(jnp.asarray(x))
  expected = np.stack([newton_schulz(m) for m in x])
  np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('dtype', [None, jnp.bfloat16])
def test_singular_values_are_as_promised(dtype):
  x = jnp.asarray(gradients((16, 24), 8), jnp.float32)
  values = jnp.linalg.svd(
    optimizers.newton_schulz(1e-3 * x, dtype=dtype), compute_uv=False
  )
  assert 0.3 < values.min()
  assert values.max() < 1.3


def test_a_triple_for_each_step(x64):
  x = gradients((5, 3), 1)[0]
  triples = [(3.0, -3.2, 1.2), (1.5, -0.5, 0.0)]
  u, s, vt = np.linalg.svd(x, full_matrices=False)
  s /= np.linalg.norm(s) + 1e-8
  for a, b, c in triples:
    s = a * s + b * s**3 + c * s**5
  y = optimizers.newton_schulz(jnp.asarray(x), coefficients=triples)
  np.testing.assert_allclose(y, u @ np.diag(s) @ vt, rtol=1e-9)


def test_zero_stays_zero():
  y = optimizers.newton_schulz(jnp.zeros((3, 4)))
  np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize('coefficients', [(1.0, 2.0), ((1.0, 2.0),)])
def test_coefficients_are_triples(coefficients):
  with pytest.raises(ValueError, match='must be'):
    optimizers.newton_schulz(jnp.ones((2, 2)), coefficients=coefficients)


def test_one_batch_for_matrices_of_one_shape(x64):
  tree = {
    'a': gradients((4, 6), 1)[0],
    'tall': gradients((6, 4), 1, 1)[0],
    'stack': gradients((4, 6), 3, 2),
    'heads': gradients((6, 2, 2), 1, 3)[0],
    'other': gradients((5, 5), 1, 4)[0],
  }
  axes = {
    'a': optimizers.MatrixAxes(0, 1),
    'tall': optimizers.MatrixAxes(0, 1),
    'stack': optimizers.MatrixAxes(-2, -1),
    'heads': optimizers.MatrixAxes(0, (1, 2)),
    'other': optimizers.MatrixAxes(1, 0),
  }
  out = optimizers.orthogonalize(jax.tree.map(jnp.asarray, tree), axes)
  expected = {
    'a': newton_schulz(tree['a']),
    'tall': newton_schulz(tree['tall']),
    'stack': np.stack([newton_schulz(x) for x in tree['stack']]),
    'heads': newton_schulz(tree['heads'].reshape(6, 4)).reshape(6, 2, 2),
    'other': newton_schulz(tree['other']),
  }
  for name, x in expected.items():
    np.testing.assert_allclose(out[name], x, rtol=1e-9, atol=1e-12)
  jaxpr = jax.make_jaxpr(lambda t: optimizers.orthogonalize(t, axes))(tree)
  assert str(jaxpr).count('scan[') == 2  # [4, 6] and [5, 5]


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    (matrices.MatrixAxes(0, 2), 'lacks'),
    (matrices.MatrixAxes(0, -2), 'twice'),
  ],
)
def test_axes_that_cannot_be(axes, message):
  with pytest.raises(ValueError, match=message):
    matrices.to_stack(jnp.ones((2, 3)), axes)


# ------------------------------------------------------------------------ M3

RATES = {
  'b1': 0.9,
  'b2': 0.95,
  'b3': 0.8,
  'alpha': 0.7,
  'period': 3,
  'eps': 1e-8,
}


@pytest.mark.parametrize('shape', [(4, 4), (3, 6), (6, 3)])
@pytest.mark.parametrize('sum_gradients', [True, False])
def test_m3_is_the_transcription(shape, sum_gradients, x64):
  tx = optimizers.scale_by_m3(
    sum_gradients=sum_gradients, axes=optimizers.stacked_matrix_axes, **RATES
  )
  sequence = gradients((2, *shape), 11)
  out, _ = run(tx, jnp.zeros((2, *shape)), jnp.asarray(sequence))
  form = algorithm_1 if sum_gradients else averaged
  for j in range(2):
    expected = form(sequence[:, j], **RATES)
    np.testing.assert_allclose(
      np.stack(out)[:, j], expected, rtol=1e-8, atol=1e-10
    )


def test_reduces_to_muon(x64):
  sequence = jnp.asarray(gradients((5, 3), 20))
  ours = optimizers.scale_by_m3(b1=0.9, alpha=0, second_moment=False)
  theirs = optax.contrib.scale_by_muon(
    beta=0.9,
    nesterov=False,
    weight_dimension_numbers=optimizers.MatrixAxes(0, 1),
  )
  params = jnp.zeros((5, 3))
  np.testing.assert_allclose(
    np.stack(run(ours, params, sequence)[0]),
    np.stack(run(theirs, params, sequence)[0]),
    atol=1e-6,  # of matrices whose singular values are about 1
  )


def test_slow_memory_is_orthogonalised_once_a_window():
  tx = optimizers.scale_by_m3(period=4)
  state, seen = tx.init(jnp.zeros((3, 3))), []
  for g in jnp.asarray(gradients((3, 3), 10), jnp.float32):
    _, state = tx.update(g, state)
    seen.append(np.asarray(state.direction))
  changed = [t for t in range(1, 10) if (seen[t] != seen[t - 1]).any()]
  assert not seen[0].any()
  assert changed == [4, 8]


def test_other_leaves_take_adamw():
  params = {'w': jnp.ones((3, 2)), 'b': jnp.ones(2), 's': jnp.ones(())}
  sequence = [jax.tree.map(lambda x, k=k: k + x, params) for k in range(4)]
  out, _ = run(optimizers.m3(0.1, weight_decay=0.2, period=2), params, sequence)
  expected, _ = run(optax.adamw(0.1, weight_decay=0.2), params, sequence)
  for ours, theirs in zip(out, expected, strict=True):
    for name in ('b', 's'):
      np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_a_leaf_that_is_no_matrix_is_named():
  tx = optimizers.scale_by_m3()
  params = {'w': jnp.ones((3, 2)), 'b': jnp.ones(2)}
  with pytest.raises(ValueError, match=r"\['b'\] is no matrix"):
    tx.update(params, tx.init(params))


def test_axes_as_a_tree():
  params = {'w': jnp.ones((2, 3, 2)), 'b': jnp.ones((2, 2))}
  axes = {'w': optimizers.MatrixAxes(-2, -1), 'b': None}
  tx = optimizers.m3(0.1, axes=axes)
  updates, _ = tx.update(params, tx.init(params), params)
  expected = optax.adamw(0.1, weight_decay=0.0)
  theirs, _ = expected.update(
    params['b'], expected.init(params['b']), params['b']
  )
  np.testing.assert_allclose(updates['b'], theirs)
  assert updates['w'].shape == (2, 3, 2)


def test_state_keeps_its_types():
  params = jnp.ones((3, 2), jnp.bfloat16)
  tx = optimizers.scale_by_m3(mu_dtype=jnp.float32, period=1)
  before = tx.init(params)
  updates, after = tx.update(params, before)
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert types(before) == types(after)
  assert updates.dtype == jnp.bfloat16
  assert after.fast.dtype == jnp.float32


MESH_PROGRAM = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
import optimizers
explicit = sys.argv[1] == 'explicit'
kind = AxisType.Explicit if explicit else AxisType.Auto
mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(kind,) * 2)
g = np.random.default_rng(0).standard_normal((5, 8, 16)).astype(np.float32)
axes = lambda t: optimizers.stacked_matrix_axes(t)
def updates(mesh):
  tx = optimizers.scale_by_m3(axes=axes, mesh=mesh, period=1)
  state = tx.init(jnp.zeros_like(g))
  for _ in range(3):
    u, state = jax.jit(tx.update)(jnp.asarray(g), state)
  return u
alone = updates(None)
with jax.set_mesh(mesh):
  shared = updates(mesh)
  f = jax.jit(lambda x: optimizers.orthogonalize(x, axes(x), mesh=mesh))
  text = f.lower(jnp.asarray(g)).compile().as_text()
# Computations that a loop calls, by name.
bodies = set(re.findall(r'body=%([\\w.\\-]+)', text))
inside = []
for block in re.split(r'\\n(?=%|ENTRY)', text):
  name = re.match(r'%([\\w.\\-]+) ', block)
  if name and name[1] in bodies:
    inside += re.findall(
      r'= \\S+ (all-reduce|all-gather|all-to-all|collective-permute)', block
    )
print(json.dumps({
  'error': float(jnp.abs(np.asarray(alone) - np.asarray(shared)).max()),
  'bodies': len(bodies), 'inside': inside,
}))
"""


def test_what_cannot_be_orthogonalized_is_named():
  tree = {'layer': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}}
  with pytest.raises(ValueError, match='layer/bias of shape .* is no matrix'):
    optimizers.orthogonalize(tree, optimizers.matrix_axes(tree))


@pytest.mark.parametrize('kind', ['auto', 'explicit'])
def test_no_collective_in_the_iteration(kind):
  result = run_program(MESH_PROGRAM, kind, devices=8)
  assert result['bodies'] >= 1
  assert result['inside'] == []
  assert result['error'] < 1e-5
