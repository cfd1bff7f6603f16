"""The layer of hope.mixers.ttt against the published recurrence in NumPy."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import BAR, GRADIENT_BAR, jit, randomize, relative
import numpy as np
import pytest

from hope.mixers.ttt import PART, TTTLayer, TTTOptions
from hope.parts import Sizes

WIDTH, HEADS, LENGTH, CHUNK = 12, 3, 14, 4
SIZES = Sizes(
  width=WIDTH, num_heads=HEADS, seq_len=LENGTH, dtype=jnp.float64, kernel='xla'
)


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
  tanh = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
  inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
  return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * inner


def normalized(z, scale, bias):
  spread = np.sqrt(np.var(z) + 1e-6)
  return scale * (z - z.mean()) / spread + bias


def norm_gradient(z, g, scale):
  """Of LN(z) . g with respect to z, one token."""
  spread = np.sqrt(np.var(z) + 1e-6)
  unit, g = (z - z.mean()) / spread, g * scale
  return (g - g.mean() - unit * np.mean(g * unit)) / spread


def rotated(x, position):
  half = len(x) // 2
  turned = np.zeros_like(x)
  for j in range(half):
    angle = position * 10_000.0 ** (-j / half)
    a, b = x[j], x[j + half]
    turned[j] = a * np.cos(angle) - b * np.sin(angle)
    turned[j + half] = a * np.sin(angle) + b * np.cos(angle)
  return turned


def head_reads(p, head, q, k, v, rate, taus):
  """Outputs of one head, token by token, every W_t summed again; (y, W)."""
  scale, bias = p['inner_scale'][head, 0], p['inner_bias'][head, 0]
  layers = [j for j in (0, 1) if f'w{j}' in p]
  weights = [p[f'w{j}'][head] for j in layers]
  biases = [p[f'b{j}'][head, 0] for j in layers]
  ys = []
  for first in range(0, len(q), CHUNK):
    sums = [
      (np.zeros_like(w), np.zeros_like(b))
      for w, b in zip(weights, biases, strict=True)
    ]
    for t in range(first, min(first + CHUNK, len(q))):
      # The gradients at the mini-batch's start.
      inputs, outs, u = [], [], k[t]
      for w, b in zip(weights, biases, strict=True):
        inputs.append(u)
        outs.append(u @ w + b)
        u = gelu(outs[-1])
      error = k[t] + normalized(outs[-1], scale, bias) - v[t]
      g = norm_gradient(outs[-1], error, scale)
      gradients = [g]
      if len(layers) == 2:
        gradients.insert(0, (g @ weights[1].T) * gelu_slope(outs[0]))
      sums = [
        (w + rate[t] * np.outer(u, g), b + rate[t] * g)
        for (w, b), u, g in zip(sums, inputs, gradients, strict=True)
      ]
      tau = taus[t - first]
      u = q[t]
      for j in layers:
        z = u @ (weights[j] - tau * sums[j][0]) + biases[j] - tau * sums[j][1]
        u = gelu(z)
      ys.append(q[t] + normalized(z, scale, bias))
    if first + CHUNK <= len(q):
      weights = [
        w - taus[-1] * s for w, (s, _) in zip(weights, sums, strict=True)
      ]
      biases = [
        b - taus[-1] * s for b, (_, s) in zip(biases, sums, strict=True)
      ]
      sums = [(0 * w, 0 * b) for w, b in sums]
  return np.stack(ys), [
    np.concatenate([w - sw, (b - sb)[None]])
    for w, b, (sw, sb) in zip(weights, biases, sums, strict=True)
  ]


def oracle(layer, x):
  """(y, final kernels) of x [t, width]."""
  p = {
    '/'.join(map(str, path)): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))
  }
  d = WIDTH // HEADS
  shared = (x @ p['qk/kernel']).reshape(len(x), HEADS, 1, d)
  shared = np.repeat(shared, 2, axis=2).reshape(len(x), -1)
  padded = np.concatenate([np.zeros((3, shared.shape[1])), shared])
  mixed = sum(padded[j : j + len(x)] * p['conv/kernel'][j] for j in range(4))
  mixed = mixed.reshape(len(x), HEADS, 2, d)
  v = (x @ p['v/kernel']).reshape(len(x), HEADS, d)
  base = {True: 0.1, False: 1.0}['w1' in p]
  rate = 1 / (1 + np.exp(-(x @ p['rate/kernel'] + p['rate/bias'])))
  taus = np.maximum(0, 1 / np.arange(1, CHUNK + 1) + p['tau'])
  heads, kernels = [], []
  for n in range(HEADS):
    q, k = (
      np.stack([rotated(z, t % CHUNK) for t, z in enumerate(mixed[:, n, j])])
      for j in (0, 1)
    )
    y, kernel = head_reads(p, n, q, k, v[:, n], base / d * rate[:, n], taus)
    heads.append(y)
    kernels.append(kernel)
  y = np.concatenate(heads, axis=-1)
  y = np.stack([normalized(z, p['norm/scale'], p['norm/bias']) for z in y])
  return (y * gelu(x @ p['gate/kernel'])) @ p['output/kernel'], kernels


def build(model):
  options = TTTOptions(model=model, chunk_size=CHUNK, hidden_multiple=2)
  return randomize(TTTLayer(SIZES, options, rngs=nnx.Rngs(0)), jnp.float64)


@pytest.mark.parametrize('model', ['linear', 'mlp'])
def test_it_is_the_published_recurrence(model, x64):
  layer = build(model)
  x = np.random.default_rng(3).standard_normal((2, LENGTH, WIDTH))
  y, state = jit(lambda x: layer(x, None, None))(jnp.asarray(x))
  for row in range(2):
    expected, kernels = oracle(layer, x[row])
    assert relative(y[row], expected) <= BAR
    for n, of_head in enumerate(kernels):
      for j, kernel in enumerate(of_head):
        assert relative(state.memory.now[j][row, n], kernel) <= BAR


@pytest.mark.parametrize('model', ['linear', 'mlp'])
def test_the_gradient_is_the_oracles(model, x64):
  layer = build(model)
  rng = np.random.default_rng(4)
  x, probe, move = rng.standard_normal((3, LENGTH, WIDTH))
  gradient = jit(
    jax.grad(lambda x: jnp.sum(probe * layer(x[None], None, None)[0][0]))
  )(jnp.asarray(x))
  up, down = (oracle(layer, x + e * move)[0] for e in (1e-5, -1e-5))
  expected = np.sum(probe * (up - down)) / 2e-5
  assert relative(np.sum(gradient * move), expected) <= GRADIENT_BAR


def test_a_kernel_that_has_no_biases_is_refused():
  with pytest.raises(ValueError, match="use kernel='xla'"):
    PART.check(dataclasses.replace(SIZES, kernel='pallas'), TTTOptions())
