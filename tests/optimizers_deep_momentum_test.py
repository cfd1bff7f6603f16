"""Deep momentum against NumPy in float64 and against momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import gradients, run
import pytest

import optimizers


def forward(kernels, keys):
  """The input of every layer, and the output."""
  inputs = [keys]
  for kernel in kernels[:-1]:
    inputs.append(np.maximum(inputs[-1] @ kernel, 0))
  return inputs, inputs[-1] @ kernels[-1]


def backward(kernels, inputs, d):
  """Gradients of the kernels, and that of the keys."""
  out = []
  for layer in reversed(range(len(kernels))):
    out.insert(0, inputs[layer].T @ d)
    d = d @ kernels[layer].T
    if layer:
      d = d * (inputs[layer] > 0)
  return out, d


def by_hand(sequence, initial, decay, rate, objective, normalize):
  """Updates for one matrix [i, o] at a time, by backpropagation."""
  kernels, out = [k.copy() for k in initial], []
  for g in sequence:
    keys, identity = g.T, np.eye(g.shape[1])
    if normalize:
      keys = keys * np.sqrt(g.shape[1]) / np.linalg.norm(g)
    inputs, output = forward(kernels, keys)
    error = -identity if objective == 'dot' else output - identity
    changes, _ = backward(kernels, inputs, error)
    rates = [rate] * len(kernels)
    if normalize and objective == 'l2':
      for layer, x in enumerate(inputs):
        above = [np.sum(k**2) for k in kernels[layer + 1 :]]
        rates[layer] = rate / (1 + rate * np.prod(above) * np.sum(x**2))
    kernels = [
      k0 + decay * (k - k0) - r * d
      for k0, k, r, d in zip(initial, kernels, rates, changes, strict=True)
    ]
    inputs, _ = forward(kernels, keys)
    u = backward(kernels, inputs, identity)[1].T
    if normalize:
      u = u * np.linalg.norm(g) / np.linalg.norm(u)
    out.append(u)
  return out


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('objective', ['l2', 'dot'])
@pytest.mark.parametrize('depth', [1, 2, 3])
def test_is_the_transcription(depth, objective, normalize, x64):
  params = {'w': jnp.zeros((4, 3)), 'stack': jnp.zeros((2, 3, 5))}
  params['b'] = jnp.zeros(6)
  sequence = gradients(params, 10)
  tx = optimizers.scale_by_deep_momentum(
    0.8, 0.05, objective, depth=depth, width=7, normalize=normalize
  )
  state = tx.init(params)
  out, _ = run(tx, params, sequence)
  as_stack = {
    'w': lambda x: x[None],
    'stack': lambda x: x,
    'b': lambda x: x.reshape(1, -1, 1),
  }
  for name, stack in as_stack.items():
    start = [x[name] for x in state.initial]
    start.append(np.zeros_like(state.change[-1][name]))
    g = np.stack([stack(np.asarray(x[name])) for x in sequence])
    ours = np.stack([stack(np.asarray(x[name])) for x in out])
    for j in range(g.shape[1]):
      initial = [np.asarray(x[j]) for x in start]
      expected = by_hand(g[:, j], initial, 0.8, 0.05, objective, normalize)
      np.testing.assert_allclose(ours[:, j], expected, rtol=1e-9, atol=1e-11)


def test_linear_with_the_dot_product_is_momentum():
  params = {'w': jnp.zeros((4, 3)), 'b': jnp.zeros(3), 's': jnp.zeros(())}
  sequence = gradients(params, 20)
  ours = optimizers.scale_by_deep_momentum(
    0.9, 1.0, 'dot', depth=1, normalize=False
  )
  for x, y in zip(
    run(ours, params, sequence)[0],
    run(optax.trace(0.9), params, sequence)[0],
    strict=True,
  ):
    for name in params:
      np.testing.assert_allclose(x[name], y[name], rtol=1e-6, atol=1e-6)


def test_a_memory_that_recalls_descends(x64):
  """<u, G> is tr m(G^T) |G| / |u|: positive from the first step on."""
  w = jnp.zeros((6, 4))
  sequence = gradients(w, 30, seed=3)
  tx = optimizers.scale_by_deep_momentum()
  out, _ = run(tx, w, sequence)
  cosine = [
    jnp.sum(u * g) / jnp.linalg.norm(u) / jnp.linalg.norm(g)
    for u, g in zip(out, sequence, strict=True)
  ]
  assert min(cosine) > 0
  for u, g in zip(out, sequence, strict=True):
    np.testing.assert_allclose(jnp.linalg.norm(u), jnp.linalg.norm(g))


def test_the_update_remembers_gradients_before():
  first, second = gradients(jnp.zeros((6, 4)), 2)
  tx = optimizers.scale_by_deep_momentum()
  w = jnp.zeros((6, 4))
  after_another = run(tx, w, [first, second])[0][1]
  fresh = run(tx, w, [second])[0][0]
  assert jnp.linalg.norm(after_another - fresh) > 0.1 * jnp.linalg.norm(fresh)


def test_nonlinear_output(x64):
  w = jnp.zeros((4, 3))
  sequence = gradients(w, 3)
  output = lambda tree: jax.tree.map(optimizers.newton_schulz, tree)
  ours, _ = run(optimizers.scale_by_deep_momentum(output=output), w, sequence)
  plain, _ = run(optimizers.scale_by_deep_momentum(), w, sequence)
  for x, y in zip(ours, plain, strict=True):
    np.testing.assert_allclose(x, optimizers.newton_schulz(y), rtol=1e-9)


@pytest.mark.parametrize(
  ('depth', 'size'),
  [
    (1, 20 * 30),
    (2, 8 * (2 * 20 + 30)),
    (3, 8 * (2 * 20 + 30) + 2 * 8**2),
  ],
)
def test_the_state_has_the_size_of_its_docstring(depth, size):
  tx = optimizers.scale_by_deep_momentum(depth=depth, width=8)
  state = jax.eval_shape(tx.init, jnp.zeros((20, 30)))
  assert sum(x.size for x in jax.tree.leaves(state)) == size


def test_the_memory_has_the_type_that_is_asked_for():
  w = jnp.ones((3, 2), jnp.bfloat16)
  tx = optimizers.scale_by_deep_momentum(accumulator_dtype=jnp.float32)
  updates, state = tx.update(w, tx.init(w))
  assert updates.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(state)} == {jnp.dtype('float32')}


def test_errors():
  with pytest.raises(ValueError, match="objective='l1' must be one of"):
    optimizers.deep_momentum(0.1, objective='l1')
  with pytest.raises(ValueError, match='depth=0'):
    optimizers.deep_momentum(0.1, depth=0)
