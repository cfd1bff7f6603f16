"""Published special cases of rule (A), frozen gradients, and the oracle."""

import jax
import numpy as np
import pytest
import reference
from rule_cases import BAR, UPDATES, assert_close, compute

from hope.memory import objectives, rule

# ------------------------------------------------------ published special cases


def sequence(tokens=41, width=6, output=5, seed=7):
  rng = np.random.default_rng(seed)
  k = rng.normal(size=(tokens, width))
  return {
    'state': rng.normal(size=(output, width)),
    'k': k / np.linalg.norm(k, axis=-1, keepdims=True),
    'v': rng.normal(size=(tokens, output)),
    'q': rng.normal(size=(tokens, width)),
    'rate': rng.uniform(0.05, 0.9, size=tokens),
    'alpha': rng.uniform(0.8, 1.0, size=tokens),
  }


def drive(
  data,
  *,
  objective,
  eta,
  alpha,
  erase,
  chunk,
  name,
  trace=None,
  beta=None,
  read='before',
):
  """A linear memory over a sequence; errors at each chunk's start.

  An erase of None means no erase. Returns the kernel, the trace and the reads
  before or after each token's write.
  """
  state = {'kernel': data['state'].T}
  if beta is not None:
    state['trace'] = trace
  case = 'plain' if erase is None else 'gated'
  if read == 'after':
    case += '_after'
  reads = []
  for start in range(0, len(data['k']), chunk):
    at = slice(start, start + chunk)
    k, v = data['k'][at], data['v'][at]
    inputs = {
      'u': k,
      'g': objectives.error(objective, k @ state['kernel'], v),
      'eta': eta[at],
      'alpha': alpha[at],
      'queries': data['q'][at],
    }
    if erase is not None:
      inputs['erase'] = erase[at]
    if beta is not None:
      inputs['beta'] = beta[at]
    *outputs, read = compute(name, case, inputs | state)
    state = dict(zip(state, outputs, strict=True))
    reads.append(np.asarray(read))
  return state['kernel'], state.get('trace'), np.concatenate(reads)


def assert_states(kernel, reads, states, data, read='before'):
  """Against the published states [t + 1, o, i], with o_t = S_{t-1} q_t.

  With `read='after'`, o_t = S_t q_t, as the papers of linear memories have it.
  """
  assert_close(kernel, states[-1].T, BAR)
  seen = states[:-1] if read == 'before' else states[1:]
  expected = [s @ q for s, q in zip(seen, data['q'], strict=True)]
  assert_close(reads, np.stack(expected), BAR)


STATE_FREE = [('chunk', 16), ('chunk', 41), ('chunk', 1), ('token', 41)]


@pytest.mark.parametrize('read', ['before', 'after'])
@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_delta_net(x64, name, chunk, read):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=data['rate'],
    alpha=np.ones(41),
    erase=data['rate'],
    chunk=chunk,
    name=name,
    read=read,
  )
  states = reference.delta_net(
    data['state'], data['k'], data['v'], data['rate']
  )
  assert_states(kernel, reads, states, data, read)


@pytest.mark.parametrize('read', ['before', 'after'])
@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_gated_delta_net(x64, name, chunk, read):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=data['rate'],
    alpha=data['alpha'],
    erase=data['alpha'] * data['rate'],
    chunk=chunk,
    name=name,
    read=read,
  )
  states = reference.gated_delta_net(
    data['state'], data['k'], data['v'], data['alpha'], data['rate']
  )
  assert_states(kernel, reads, states, data, read)


@pytest.mark.parametrize('read', ['before', 'after'])
@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_linear_attention(x64, name, chunk, read):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=np.ones(41),
    alpha=np.ones(41),
    erase=None,
    chunk=chunk,
    name=name,
    read=read,
  )
  states = reference.linear_attention(data['state'], data['k'], data['v'])
  assert_states(kernel, reads, states, data, read)


@pytest.mark.parametrize('read', ['before', 'after'])
@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_retention(x64, name, chunk, read):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=np.ones(41),
    alpha=np.full(41, 0.9),
    erase=None,
    chunk=chunk,
    name=name,
    read=read,
  )
  states = reference.retention(data['state'], data['k'], data['v'], 0.9)
  assert_states(kernel, reads, states, data, read)


@pytest.mark.parametrize('name', UPDATES)
@pytest.mark.parametrize('batch', [1, 16])
def test_ttt_linear(x64, name, batch):
  """Token by token, and in the mini-batches of the TTT paper."""
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='l2',
    eta=data['rate'],
    alpha=np.ones(41),
    erase=None,
    chunk=batch,
    name=name,
  )
  states = reference.ttt_linear(
    data['state'], data['k'], data['v'], data['rate'], batch=batch
  )
  assert_states(kernel, reads, states, data)


@pytest.mark.parametrize('name', UPDATES)
def test_titans_lmm(x64, name):
  data = sequence()
  rng = np.random.default_rng(8)
  surprise = 0.1 * rng.normal(size=data['state'].shape)
  momentum = rng.uniform(0.1, 0.9, size=41)
  kernel, trace, reads = drive(
    data,
    objective='l2',
    eta=0.2 * data['rate'],
    alpha=data['alpha'],
    erase=None,
    chunk=1,
    name=name,
    trace=surprise.T,
    beta=momentum,
  )
  states, surprise = reference.titans_lmm(
    data['state'],
    surprise,
    data['k'],
    data['v'],
    momentum=momentum,
    rate=0.1 * data['rate'],
    forget=1.0 - data['alpha'],
  )
  assert_states(kernel, reads, states, data)
  assert_close(trace, surprise.T, BAR)


# ------------------------------------------------------------ frozen gradients


@pytest.mark.parametrize('tokens', [1, 2, 8, 64])
@pytest.mark.parametrize('step', [0.01, 0.2, 0.9])
def test_frozen_gradient_map(x64, tokens, step):
  """C equal keys: x -> x - rho (2 x - w), rho = 1 - (1 - eta')^C."""
  rng = np.random.default_rng(9)
  kernel, w = rng.normal(size=(6, 5)), rng.normal(size=5)
  key = rng.normal(size=6)
  key /= np.linalg.norm(key)
  u = np.tile(key, (tokens, 1))
  inputs = {
    'kernel': kernel,
    'u': u,
    'g': objectives.error('l2', u @ kernel, np.tile(w, (tokens, 1))),
    'eta': np.full(tokens, step),
    'alpha': np.ones(tokens),
  }
  (kernel_after,) = compute('chunk', 'delta', inputs)
  x = key @ kernel
  rho = 1.0 - (1.0 - step) ** tokens
  assert_close(key @ kernel_after, x - rho * (2.0 * x - w), BAR)
  # Nothing moves off the key's direction.
  off = np.eye(6) - np.outer(key, key)
  assert_close(off @ kernel_after, off @ kernel, BAR)


# ------------------------------------------------------------------ objectives


@pytest.mark.parametrize('name', ['l2', 'dot'])
def test_objective_is_derivative(x64, name):
  rng = np.random.default_rng(10)
  prediction, target = rng.normal(size=(2, 3, 4, 5))
  expected = reference.complex_step(
    lambda p: reference.loss(name, p, target), prediction
  )
  actual = objectives.error(name, prediction, target)
  assert_close(actual, expected, BAR)
  assert_close(reference.error(name, prediction, target), expected, BAR)


@pytest.mark.parametrize('name, slope', [('l2', 1.0), ('dot', 0.0)])
def test_outer_gradient_flows_through_error(x64, name, slope):
  """Nothing is cut: the error depends on prediction and target as it says."""
  prediction, target = np.random.default_rng(11).normal(size=(2, 3, 4))
  by_prediction, by_target = jax.grad(
    lambda p, v: objectives.error(name, p, v).sum(), argnums=(0, 1)
  )(prediction, target)
  assert_close(by_prediction, np.full((3, 4), slope), BAR)
  assert_close(by_target, -np.ones((3, 4)), BAR)


@pytest.mark.parametrize('name', ['l2', 'dot'])
def test_error_is_the_derivative_of_the_loss(x64, name):
  prediction, target = np.random.default_rng(12).normal(size=(2, 3, 4))
  losses = objectives.loss(name, prediction, target)
  assert losses.shape == (3, 1)
  for row, p, v in zip(losses, prediction, target, strict=True):
    assert_close(row[0], reference.loss(name, p, v), BAR)
  slope = jax.grad(lambda p: objectives.loss(name, p, target).sum())(prediction)
  assert_close(slope, objectives.error(name, prediction, target), BAR)


@pytest.mark.parametrize('function', [objectives.error, objectives.loss])
def test_unknown_objective(function):
  with pytest.raises(ValueError, match='l2'):
    function('l1', np.ones(2), np.ones(2))


# ------------------------------------------------------------ the oracle itself


@pytest.mark.parametrize('name', reference.ACTIVATIONS)
def test_reference_activations(name):
  function, derivative = reference.ACTIVATIONS[name]
  x = np.linspace(-4.0, 4.0, 33)
  expected = reference.complex_step(lambda z: function(z).sum(), x)
  assert_close(derivative(x), expected, BAR)
  builtin = getattr(jax.nn, name)
  with jax.enable_x64(True):
    assert_close(function(x), builtin(x), BAR)


def titans(
  seed=12,
  batch=2,
  tokens=3,
  heads=2,
  width=4,
  hidden=5,
  q=False,
  objective='l2',
  momentum=False,
):
  """Arguments of `reference.self_referential_titans`."""
  rng = np.random.default_rng(seed)
  memories, rates = {}, {}
  for name in ('k', 'v', 'eta', 'alpha', 'memory') + (('q',) if q else ()):
    output = 1 if name in ('eta', 'alpha') else width
    memories[name] = (
      rng.normal(size=(heads, width, hidden)) / np.sqrt(width),
      rng.normal(size=(heads, hidden, output)) / np.sqrt(hidden),
    )
    rates[name] = tuple(rng.uniform(0.5, 1.5, size=(2, heads)))
  x = rng.normal(size=(3, batch, tokens, heads, width))
  arguments = {
    'activation': reference.ACTIVATIONS['gelu'],
    'gate_eta': lambda z: 0.5 / (1.0 + np.exp(-z)),
    'gate_alpha': lambda z: 1.0 / (1.0 + np.exp(-z - 3.0)),
    'rates': rates,
    'learning': dict.fromkeys(
      memories,
      {
        'objective': objective,
        'share': [1.0] * heads,
        'relative': False,
        'momentum': momentum,
      },
    ),
  }
  return (memories, *x), arguments


@pytest.mark.parametrize('objective', ['l2', 'dot', 'delta'])
@pytest.mark.parametrize('layer', [0, 1])
@pytest.mark.parametrize('name', ['memory', 'v', 'eta'])
def test_reference_writes_descend(name, layer, objective):
  """One token's write is -eta' times the derivative of the memory's loss."""
  for b, n in ((0, 0), (1, 1)):
    (memories, x_k, x_v, x_q), arguments = titans(tokens=1, objective=objective)
    _, final, _ = reference.self_referential_titans(
      memories,
      x_k,
      x_v,
      x_q,
      erase=False,
      **arguments,
    )
    heads = {m: [kernel[n] for kernel in memories[m]] for m in memories}
    act = reference.gelu

    def call(m, z, kernels=None, heads=heads, act=act):
      up, down = kernels or heads[m]
      output = act(z @ up) @ down
      return output if m in ('eta', 'alpha') else z + output

    k = call('k', x_k[b, 0, n])
    k /= np.linalg.norm(k)
    v = call('v', x_v[b, 0, n])
    v /= np.linalg.norm(v)
    target = call(name, v)

    def inner(x, heads=heads, k=k, target=target, call=call):
      kernels = list(heads[name])
      kernels[layer] = x
      loss = 'l2' if objective == 'delta' else objective
      return reference.loss(loss, call(name, k, kernels), target)

    slope = reference.complex_step(inner, heads[name][layer])
    u = k if layer == 0 else act(k @ heads[name][0])
    eta = arguments['gate_eta'](call('eta', x_k[b, 0, n])[0])
    eta *= arguments['rates'][name][layer][n]
    step = eta / (1.0 + eta * u @ u)
    expected = memories[name][layer][n] - step * slope
    # Retention has nothing to act on yet: the anchor is the initial state.
    assert_close(final[name][layer][b, n], expected, BAR)


def test_reference_reads_before_it_writes():
  (memories, x_k, x_v, x_q), arguments = titans(q=True)
  y, *_ = reference.self_referential_titans(
    memories, x_k, x_v, x_q, **arguments
  )
  x_k, x_v, x_q = x_k.copy(), x_v.copy(), x_q.copy()
  x_k[:, 1] += 1.0
  x_v[:, 1] += 1.0
  x_q[:, 2:] += 1.0
  changed, *_ = reference.self_referential_titans(
    memories, x_k, x_v, x_q, **arguments
  )
  assert np.array_equal(y[:, :2], changed[:, :2])
  assert np.all(np.any(y[:, 2] != changed[:, 2], axis=-1))


@pytest.mark.parametrize('anchor', ['zero', 'initial'])
@pytest.mark.parametrize('momentum', [False, True])
@pytest.mark.parametrize('erase', [False, True])
def test_reference_is_the_rule(x64, anchor, momentum, erase):
  """The same states, with every layer stepped by `rule.token_update`."""
  (memories, x_k, x_v, x_q), arguments = titans(
    batch=1, tokens=4, heads=1, momentum=momentum
  )
  beta = np.random.default_rng(13).uniform(0.1, 0.9, size=(1, 4, 1))
  act, slope = arguments['activation']
  state = {m: [w[0] for w in memories[m]] for m in memories}
  base = {m: [w[0] for w in memories[m]] for m in memories}
  if anchor == 'zero':
    base = jax.tree.map(np.zeros_like, base)
  trace = jax.tree.map(np.zeros_like, base)

  def call(m, z):
    output = act(z @ state[m][0]) @ state[m][1]
    return output if m in ('eta', 'alpha') else z + output

  for t in range(4):
    at = [x[0, t, 0] for x in (x_k, x_v)]
    k, v = call('k', at[0]), call('v', at[1])
    k, v = k / np.linalg.norm(k), v / np.linalg.norm(v)
    eta = arguments['gate_eta'](call('eta', at[0]))
    alpha = arguments['gate_alpha'](call('alpha', at[0]))
    after = {}
    for m in memories:
      g = call(m, k) - call(m, v)
      hidden = k @ state[m][0]
      pairs = ((k, g @ state[m][1].T * slope(hidden)), (act(hidden), g))
      after[m] = []
      for layer, (u, error) in enumerate(pairs):
        rate = eta * arguments['rates'][m][layer][0]
        if momentum:
          rate = rate * (1 - beta[0, t])
        inputs = {
          'kernel': state[m][layer] - base[m][layer],
          'u': u[None],
          'g': error[None],
          'eta': np.asarray(rule.normalized_step(rate, u[None])),
          'alpha': alpha,
        }
        if momentum:
          inputs |= {'trace': trace[m][layer], 'beta': beta[0, t]}
        case = 'delta' if erase else 'plain'
        deviation, *new_trace = compute('token', case, inputs)
        after[m].append(base[m][layer] + np.asarray(deviation))
        if momentum:
          trace[m][layer] = np.asarray(new_trace[0])
    state = after

  _, final, _ = reference.self_referential_titans(
    memories,
    x_k,
    x_v,
    x_q,
    beta=beta if momentum else None,
    anchor=anchor,
    erase=erase,
    **arguments,
  )
  for m in memories:
    for layer in (0, 1):
      assert_close(final[m][layer][0, 0], state[m][layer], BAR)
