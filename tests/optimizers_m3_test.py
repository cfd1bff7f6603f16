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
  s = s / np.linalg.norm(x)
  a, b, c = coefficients
  for _ in range(steps):
    s = a * s + b * s**3 + c * s**5
  return u @ np.diag(s) @ vt


def algorithm_1(gradients, b1, b2, b3, alpha, period, eps_root, nesterov):
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
    read = fast + b1 * g if nesterov else fast
    step = newton_schulz(read) + alpha * direction
    out.append(step / np.sqrt(nu + eps_root))
  return out


def averaged(gradients, b1, b2, b3, alpha, period, eps, eps_root, nesterov):
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
    read = fast
    if nesterov:
      read = b1 * fast / (1 - b1 ** (t + 2))
      read = read + (1 - b1) * g / (1 - b1 ** (t + 1))
    step = newton_schulz(read) + alpha * direction
    root = np.sqrt(nu / (1 - b2 ** (t + 1)) + eps_root) + eps
    scaled = step / root
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
  s /= np.linalg.norm(s)
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


def test_the_parts_of_a_fused_kernel_are_matrices_of_their_own(x64):
  """Outputs by head, and within a head q, k, v; also [heads, 3, width]."""
  kernel = jnp.asarray(gradients((4, 2 * 3 * 2), 1)[0])
  parts = np.asarray(kernel).reshape(4, 2, 3, 2)
  by_head = optimizers.SplitAxes(-1, (2, 3, -1), optimizers.MatrixAxes(0, 3))
  out = optimizers.orthogonalize({'qkv': kernel}, {'qkv': by_head})['qkv']
  for head in range(2):
    for part in range(3):
      np.testing.assert_allclose(
        np.asarray(out).reshape(4, 2, 3, 2)[:, head, part],
        newton_schulz(parts[:, head, part]),
        rtol=1e-9,
      )
  by_part = optimizers.SplitAxes(
    1, (2, 3, -1), optimizers.MatrixAxes(0, (1, 3))
  )
  out = optimizers.orthogonalize(kernel, by_part)
  for part in range(3):
    np.testing.assert_allclose(
      np.asarray(out).reshape(4, 2, 3, 2)[:, :, part].reshape(4, 4),
      newton_schulz(parts[:, :, part].reshape(4, 4)),
      rtol=1e-9,
    )


def test_muon_of_optax_on_the_parts_of_a_kernel(x64):
  """Each part as if it were a leaf; what is kept has the kernel's shape."""
  params = {'qkv': jnp.zeros((4, 6))}
  muon = optax.contrib.scale_by_muon
  tx = optimizers.on_matrices(
    muon(weight_dimension_numbers=optimizers.stacked_matrix_axes),
    {'qkv': optimizers.SplitAxes(-1, (3, -1), optimizers.MatrixAxes(0, 2))},
  )
  sequence = [{'qkv': jnp.asarray(g)} for g in gradients((4, 6), 5)]
  out, state = run(tx, params, sequence)
  assert state.mu['qkv'].shape == (4, 6)
  for j in range(3):
    part = slice(2 * j, 2 * j + 2)
    alone = muon(weight_dimension_numbers=optimizers.MatrixAxes(0, 1))
    expected, _ = run(
      alone, jnp.zeros((4, 2)), [g['qkv'][:, part] for g in sequence]
    )
    for x, y in zip(out, expected, strict=True):
      np.testing.assert_allclose(x['qkv'][:, part], y, rtol=1e-9)


@pytest.mark.parametrize(
  ('axes', 'message'),
  [
    (matrices.MatrixAxes(0, 2), 'lacks'),
    (matrices.MatrixAxes(0, -2), 'twice'),
    (matrices.SplitAxes(2, (1, 3), matrices.MatrixAxes(0, 1)), 'lacks'),
    (matrices.SplitAxes(1, (2, -1), matrices.MatrixAxes(0, 1)), 'not split'),
    (matrices.SplitAxes(1, (-1, -1), matrices.MatrixAxes(0, 1)), 'not split'),
    (matrices.SplitAxes(1, (1, 3), matrices.MatrixAxes(0, 3)), 'lacks'),
  ],
)
def test_axes_that_cannot_be(axes, message):
  with pytest.raises(ValueError, match=message):
    matrices.to_stack(jnp.ones((2, 3)), axes)


# ------------------------------------------------------------------------ M3

RATES = {'b1': 0.9, 'b2': 0.95, 'b3': 0.8, 'alpha': 0.7, 'period': 3}


@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('shape', [(3, 6), (6, 3)])
@pytest.mark.parametrize(
  ('sum_gradients', 'eps', 'eps_root'),
  [(True, 0.0, 0.1), (False, 0.2, 0.0), (False, 0.01, 0.1)],
)
def test_m3_is_the_transcription(
  shape, sum_gradients, eps, eps_root, nesterov, x64
):
  options = RATES | {'eps_root': eps_root, 'nesterov': nesterov}
  tx = optimizers.scale_by_m3(
    sum_gradients=sum_gradients,
    second_moment=True,
    eps=eps,
    axes=optimizers.stacked_matrix_axes,
    **options,
  )
  sequence = gradients((2, *shape), 11)
  out, _ = run(tx, jnp.zeros((2, *shape)), jnp.asarray(sequence))
  for j in range(2):
    if sum_gradients:
      expected = algorithm_1(sequence[:, j], **options)
    else:
      expected = averaged(sequence[:, j], eps=eps, **options)
    np.testing.assert_allclose(
      np.stack(out)[:, j], expected, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize('nesterov', [False, True])
def test_reduces_to_muon(nesterov, x64):
  sequence = jnp.asarray(gradients((5, 3), 20))
  ours = optimizers.scale_by_m3(alpha=0, nesterov=nesterov)
  theirs = optax.contrib.scale_by_muon(
    beta=0.9,
    nesterov=nesterov,
    weight_dimension_numbers=optimizers.MatrixAxes(0, 1),
  )
  params = jnp.zeros((5, 3))
  np.testing.assert_allclose(
    np.stack(run(ours, params, sequence)[0]),
    np.stack(run(theirs, params, sequence)[0]),
    atol=1e-6,  # of matrices whose singular values are about 1
  )


@pytest.mark.parametrize('consistent_rms', [None, 0.2])
def test_with_the_helpers_of_muon_it_is_the_alias_of_optax(consistent_rms, x64):
  """All that `optax.contrib.muon` does besides: shapes, decay, other leaves."""
  params = {
    'wide': jnp.ones((3, 7)),
    'tall': jnp.ones((6, 2)),
    'bias': jnp.ones(4),
  }
  sequence = [
    jax.tree.map(
      lambda x, k=k: jnp.asarray(gradients(x.shape, 1, k)[0]), params
    )
    for k in range(12)
  ]
  decays = {'wide': True, 'tall': False, 'bias': False}
  ours = optimizers.m3(
    0.1,
    b1=0.95,
    alpha=0.0,
    nesterov=True,
    scale_by_shape=True,
    consistent_rms=consistent_rms,
    weight_decay=0.3,
    weight_decay_mask=decays,
    adam_learning_rate=0.02,
    adam_b1=0.8,
    adam_b2=0.9,
  )
  theirs = optax.contrib.muon(
    0.1,
    weight_decay=0.3,
    # Theirs is asked with the leaves of Muon alone.
    weight_decay_mask=lambda tree: {
      k: x if isinstance(x, optax.MaskedNode) else decays[k]
      for k, x in tree.items()
    },
    consistent_rms=consistent_rms,
    adam_learning_rate=0.02,
    adam_b1=0.8,
    adam_b2=0.9,
  )
  for x, y in zip(
    run(ours, params, sequence)[0],
    run(theirs, params, sequence)[0],
    strict=True,
  ):
    # AdamW of theirs has Nesterov's momentum, ours has not.
    for name in ('wide', 'tall'):
      np.testing.assert_allclose(x[name], y[name], atol=1e-6)


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
  with pytest.raises(ValueError, match="'b' of shape .* is not a matrix"):
    tx.init(params)


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
  tx = optimizers.scale_by_m3(
    mu_dtype=jnp.float32, second_moment=True, period=1
  )
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
  tx = optimizers.scale_by_m3(
    axes=axes, mesh=mesh, second_moment=True, period=1
  )
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
  with pytest.raises(ValueError, match="'layer/bias' .* is not a matrix"):
    optimizers.orthogonalize(tree, optimizers.matrix_axes(tree))


@pytest.mark.parametrize('kind', ['auto', 'explicit'])
def test_no_collective_in_the_iteration(kind):
  result = run_program(MESH_PROGRAM, kind, devices=8)
  assert result['bodies'] >= 1
  assert result['inside'] == []
  assert result['error'] < 1e-5
