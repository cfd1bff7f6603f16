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


def memory_reads(p, head, q, k, v, rates, objective):
  """Outputs of one head, token by token; (y, up, down)."""
  up, down = p['memory/up'][head], p['memory/down'][head]
  surprise = [np.zeros_like(up), np.zeros_like(down)]
  ys = []
  for t in range(LENGTH):
    z = k[t] @ up
    u = reference.silu(z)
    g = shortened(-v[t] if objective == 'dot' else k[t] + u @ down - v[t])
    g_up = shortened(g @ down.T) * reference.silu_derivative(z)
    steps = []
    for j, (x, error) in enumerate(((k[t], g_up), (u, g))):
      eta = rates['eta'][j, t]
      step = eta / (1 + eta * np.sum(x * x))
      surprise[j] = rates['beta'][t] * surprise[j] - step * np.outer(x, error)
      steps.append(surprise[j])
    up = rates['alpha'][t] * up + steps[0]
    down = rates['alpha'][t] * down + steps[1]
    ys.append(q[t] + reference.silu(q[t] @ up) @ down)
  return np.stack(ys), up, down


def oracle(layer, x, objective):
  """(y, final (up, down) of each head) of x [t, width]."""
  p = {
    '/'.join(map(str, path)): np.asarray(leaf[...])
    for path, leaf in nnx.to_flat_state(nnx.state(layer, nnx.Param))
  }
  mixed = x @ p['mix/kernel']
  padded = np.concatenate([np.zeros((3, mixed.shape[1])), mixed])
  mixed = sum(padded[j : j + len(x)] * p['conv/kernel'][j] for j in range(4))
  qkv = unit(reference.silu(mixed).reshape(len(x), HEADS, 3, -1))
  eta = sigmoid(x @ p['eta/kernel'] + p['eta_bias'])
  alpha, beta = np.ones((2, len(x), HEADS))
  if objective == 'l2':
    alpha = sigmoid(x @ p['alpha/kernel'] + p['alpha_bias'])
    beta = 0.95 * sigmoid(x @ p['beta/kernel'] + p['beta/bias'])
    eta = eta * (1 - beta)
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
    y, up, down = memory_reads(p, n, q, k, v, rates, objective)
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
