"""Titans' memory alone ('lmm') and deep linear attention ('dla') in NumPy."""

from flax import nnx
import jax.numpy as jnp
from layer_cases import BAR, call, inputs, relative, titans
import numpy as np
import pytest
import reference

from hope.mixers.titans_options import DLA, LMM, TitansOptions
from hope.mixers.titans_part import PART
from hope.parts import Sizes

WIDTH, HEADS, LENGTH = 8, 2, 9


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def unit(x):
  return x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def shortened(x, bound=2.0):
  return x * min(1, bound / np.sqrt(np.sum(x * x) + 1e-12))


def write(start, now, surprise, k, v, rates, objective):
  """What a token writes: (now, surprise), of both layers.

  Args:
    start: kernels at the chunk's start, where gradients are taken.
    now: kernels before the token.
    surprise: of both layers.
    k: [d].
    v: [d].
    rates: eta of both layers, alpha, beta.
    objective: 'l2' or 'dot'.
  """
  up, down = start
  eta, alpha, beta = rates
  z = k @ up
  u = reference.silu(z)
  g = shortened(-v if objective == 'dot' else k + u @ down - v)
  g_up = shortened(g @ down.T) * reference.silu_derivative(z)
  surprise = [
    beta * s - n / (1 + n * np.sum(x * x)) * np.outer(x, error)
    for s, n, x, error in zip(surprise, eta, (k, u), (g_up, g), strict=True)
  ]
  now = [alpha * x + s for x, s in zip(now, surprise, strict=True)]
  return now, surprise


def read(now, q):
  return q + reference.silu(q @ now[0]) @ now[1]


def memory_reads(p, head, q, k, v, rates, objective, chunk):
  """Outputs of one head, token by token; (y, up, down)."""
  now = [p['memory/up'][head], p['memory/down'][head]]
  surprise = [np.zeros_like(x) for x in now]
  ys = []
  for t in range(len(q)):
    if t % chunk == 0:
      start = now
    of_token = rates['eta'][:, t], rates['alpha'][t], rates['beta'][t]
    now, surprise = write(start, now, surprise, k[t], v[t], of_token, objective)
    ys.append(read(now, q[t]))
  return np.stack(ys), *now


def parameters(layer):
  return {
    '/'.join(map(str, path)): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))
  }


def oracle(layer, x, objective, chunk=1):
  """(y, final (up, down) of each head) of x [t, width]."""
  p = parameters(layer)
  mixed = x @ p['mix/kernel']
  padded = np.concatenate([np.zeros((3, mixed.shape[1])), mixed])
  mixed = sum(padded[j : j + len(x)] * p['conv/kernel'][j] for j in range(4))
  qkv = unit(reference.silu(mixed).reshape(len(x), HEADS, 3, -1))
  eta = sigmoid(x @ p['slow_eta/kernel'] + p['eta_bias'])
  alpha, beta = np.ones((2, len(x), HEADS))
  if objective == 'l2':
    alpha = sigmoid(x @ p['slow_alpha/kernel'] + p['alpha_bias'])
    beta = 0.95 * sigmoid(x @ p['beta/kernel'] + p['beta/bias'])
    eta = eta * (1 - beta) / chunk
  else:
    beta = 0 * beta
  ys, final = [], []
  for n in range(HEADS):
    rates = {
      'eta': sigmoid(p['memory_rate'][:, n, None]) * eta[:, n],
      'alpha': alpha[:, n],
      'beta': beta[:, n],
    }
    q, k, v = np.moveaxis(qkv[:, n], 1, 0)
    y, up, down = memory_reads(p, n, q, k, v, rates, objective, chunk)
    y /= np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-6)
    ys.append(y * p['norm/scale'])
    final.append((up, down))
  y = np.concatenate(ys, axis=-1) * reference.silu(
    x @ p['gate/kernel'] + 1.2784645
  )
  return y @ p['output/kernel'], final


@pytest.mark.parametrize('name', ['lmm', 'dla'])
def test_it_is_the_published_recurrence(name, x64):
  setting = {'lmm': LMM, 'dla': DLA}[name]
  layer = titans(dtype=jnp.float64, chunk_size=1, **setting)
  x = inputs(2, LENGTH, WIDTH, np.float64)
  y, state = call(layer)(x, None)
  for row in range(2):
    expected, final = oracle(layer, np.asarray(x[row]), setting['objective'])
    assert relative(y[row], expected) <= BAR
    now = state.memory.now
    for n, (up, down) in enumerate(final):
      base = 0.0, 0.0
      if setting['anchor'] == 'initial':
        base = layer.memory.up[n], layer.memory.down[n]
      assert relative(now.up[row, n] + base[0], up) <= BAR
      assert relative(now.down[0][row, n, 0] + base[1], down) <= BAR


def test_slow_projections_leave_nothing_to_learn():
  sizes = Sizes(
    width=WIDTH, num_heads=HEADS, seq_len=8, dtype=jnp.float32, kernel='xla'
  )
  PART.check(sizes, TitansOptions(**LMM))
  with pytest.raises(ValueError, match=r'set titans\.self_modifying=False'):
    PART.check(sizes, TitansOptions(projections='slow'))
