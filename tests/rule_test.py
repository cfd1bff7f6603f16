"""Rule (A) of hope.memory against independent NumPy transcriptions.

The bars are never widened: 1e-12 for values and 1e-10 for gradients in
float64, 1e-4 for both in float32. An error is the largest absolute difference
over the largest absolute expected value.
"""

import functools

import jax
import numpy as np
import pytest
import reference

from hope.memory import objectives, rule

UPDATES = {'chunk': rule.chunk_update, 'token': rule.token_update}
CASES = (
  'delta',
  'plain',
  'gated',
  'momentum',
  'momentum_plain',
  'momentum_gated',
)
BAR = 1e-12
GRADIENT_BAR = 1e-10
FLOAT32_BAR = 1e-4


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def make(case, tokens, *, lead=(2,), width=6, output=5, seed=0):
  """Random inputs for a case; a dict of float64 arrays, absent means None.

  The case says whether there is momentum and how the rule erases: at eta'
  ('delta'), not at all ('plain'), or at a given alpha eta' ('gated').
  """
  rng = np.random.default_rng(seed)
  u = rng.normal(size=(*lead, tokens, width)) / np.sqrt(width)
  eta = rng.uniform(0.1, 2.0, size=(*lead, tokens))
  inputs = {
    'kernel': rng.normal(size=(*lead, width, output)),
    'u': u,
    'g': rng.normal(size=(*lead, tokens, output)),
    'eta': eta / (1.0 + eta * np.sum(u**2, axis=-1)),
    'alpha': rng.uniform(0.8, 1.0, size=(*lead, tokens)),
    'queries': rng.normal(size=(*lead, tokens, width)),
  }
  if case.startswith('momentum'):
    inputs['trace'] = rng.normal(size=(*lead, width, output))
    inputs['beta'] = rng.uniform(0.5, 0.95, size=(*lead, tokens))
  if case.endswith('gated'):
    inputs['erase'] = inputs['alpha'] * inputs['eta']
  return inputs


def call(update, case, inputs):
  """The outputs of an update that are not None, in a list."""
  erase = 0.0 if case.endswith('plain') else inputs.get('erase')
  outputs = update(
    inputs['kernel'],
    inputs.get('trace'),
    inputs['u'],
    inputs['g'],
    eta=inputs['eta'],
    alpha=inputs['alpha'],
    beta=inputs.get('beta'),
    erase=erase,
    queries=inputs.get('queries'),
  )
  assert len(outputs) == 3
  assert (outputs[1] is None) == ('trace' not in inputs)
  assert (outputs[2] is None) == ('queries' not in inputs)
  return [output for output in outputs if output is not None]


@functools.partial(jax.jit, static_argnums=(0, 1))
def compute(name, case, inputs):
  return call(UPDATES[name], case, inputs)


def functional(update, case, inputs, weights):
  """A linear functional of all the outputs, and the outputs."""
  outputs = call(update, case, inputs)
  assert len(outputs) == len(weights)
  pairs = zip(weights, outputs, strict=True)
  return sum((w * x).sum() for w, x in pairs), outputs


@functools.partial(jax.jit, static_argnums=(0, 1))
def differentiate(name, case, inputs, weights):
  """The outputs, and the gradients of `functional` by every input."""
  of_inputs = functools.partial(functional, UPDATES[name], case)
  gradients, outputs = jax.grad(of_inputs, has_aux=True)(inputs, weights)
  return outputs, gradients


def make_weights(inputs, seed=1):
  """Random weights of `functional`, shaped as kernel, trace and reads."""
  rng = np.random.default_rng(seed)
  shapes = [inputs['kernel'].shape]
  if 'trace' in inputs:
    shapes.append(inputs['kernel'].shape)
  if 'queries' in inputs:
    shapes.append(inputs['g'].shape)
  return [rng.normal(size=shape) for shape in shapes]


def rounded(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def widened(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def relative_error(actual, expected):
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  assert np.all(np.isfinite(actual))
  difference = np.max(np.abs(actual.astype(np.float64) - expected))
  return difference / np.max(np.abs(expected)) if difference else 0.0


def assert_close(actual, expected, bar, dtype=np.float64):
  """Compares two trees of arrays leaf by leaf."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  names = jax.tree_util.tree_leaves_with_path(expected)
  for x, (path, y) in zip(jax.tree.leaves(actual), names, strict=True):
    assert x.dtype == dtype
    assert relative_error(x, y) <= bar, jax.tree_util.keystr(path)


# ------------------------------------------- the chunk form and the token loop


@pytest.mark.parametrize('case', ['delta', 'momentum_plain', 'momentum_gated'])
@pytest.mark.parametrize('tokens', [1, 2, 7, 16, 64, 128])
def test_chunk_is_token(x64, tokens, case):
  inputs = make(case, tokens)
  expected = compute('token', case, inputs)
  assert_close(compute('chunk', case, inputs), expected, BAR)


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('name', UPDATES)
def test_matches_reference(x64, name, case):
  inputs = make(case, 16)
  expected = call(reference.batched_update, case, inputs)
  assert_close(compute(name, case, inputs), expected, BAR)


@pytest.mark.parametrize('lead', [(), (2, 1, 3)])
@pytest.mark.parametrize('name', UPDATES)
def test_leading_dimensions(x64, name, lead):
  inputs = make('momentum_gated', 7, lead=lead)
  expected = call(reference.batched_update, 'momentum_gated', inputs)
  assert_close(compute(name, 'momentum_gated', inputs), expected, BAR)


@pytest.mark.parametrize('width, output', [(1, 1), (2, 8)])
@pytest.mark.parametrize('name', UPDATES)
def test_widths(x64, name, width, output):
  inputs = make('momentum', 16, width=width, output=output)
  expected = call(reference.batched_update, 'momentum', inputs)
  assert_close(compute(name, 'momentum', inputs), expected, BAR)


@pytest.mark.parametrize('case', ['delta', 'momentum'])
@pytest.mark.parametrize('name', UPDATES)
def test_without_queries(x64, name, case):
  inputs = make(case, 7)
  with_queries = compute(name, case, inputs)
  del inputs['queries']
  assert_close(compute(name, case, inputs), with_queries[:-1], BAR)


@pytest.mark.parametrize('case', ['plain', 'momentum_gated'])
def test_chunks_chain(x64, case):
  """A sequence in chunks of 16 and 7 is the sequence in one pass."""
  inputs = make(case, 23)
  expected = compute('chunk', case, inputs)
  state = {name: inputs[name] for name in ('kernel', 'trace') if name in inputs}
  reads = []
  for start in (0, 16):
    piece = {
      name: x[:, start : start + 16]
      for name, x in inputs.items()
      if name not in state
    }
    *outputs, read = compute('chunk', case, piece | state)
    state = dict(zip(state, outputs, strict=True))
    reads.append(np.asarray(read))
  actual = [*state.values(), np.concatenate(reads, axis=1)]
  assert_close(actual, expected, BAR)


def test_later_tokens_do_not_change_a_read(x64):
  inputs = make('momentum', 16)
  expected = compute('chunk', 'momentum', inputs)[-1]
  changed = {name: x.copy() for name, x in inputs.items()}
  for name in ('u', 'g', 'eta', 'alpha', 'beta'):
    changed[name][:, 9:] *= 0.5
  actual = compute('chunk', 'momentum', changed)[-1]
  assert_close(actual[:, :10], np.asarray(expected[:, :10]), BAR)
  assert relative_error(actual[:, 10:], expected[:, 10:]) > 1e-2


def with_zeros(case, tokens=16):
  """Exact zeros in alpha and beta: first, last, adjacent, and together."""
  inputs = make(case, tokens)
  for name, indices in (('alpha', [0, 4, 5, 9]), ('beta', [0, 5, 11, 12, -1])):
    if name in inputs:
      inputs[name][0, indices] = 0.0
  inputs['alpha'][1, -1] = 0.0
  if 'erase' in inputs:
    inputs['erase'] = inputs['alpha'] * inputs['eta']
  return inputs


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('name', UPDATES)
def test_exact_zeros(x64, name, case):
  inputs = with_zeros(case)
  expected = call(reference.batched_update, case, inputs)
  assert_close(compute(name, case, inputs), expected, BAR)


@pytest.mark.parametrize('case', ['delta', 'plain', 'momentum_gated'])
def test_exact_zeros_gradients(x64, case):
  """The outputs are polynomials in alpha and beta: no kink at zero."""
  inputs = with_zeros(case)
  weights = make_weights(inputs)
  expected = differentiate('token', case, inputs, weights)[1]
  assert_close(
    differentiate('chunk', case, inputs, weights)[1], expected, GRADIENT_BAR
  )


@pytest.mark.parametrize('case', ['delta', 'plain', 'gated'])
@pytest.mark.parametrize('name', UPDATES)
def test_zero_momentum_is_none(x64, name, case):
  inputs = make(case, 16)
  kernel, reads = compute(name, case, inputs)
  inputs['trace'] = np.random.default_rng(2).normal(size=kernel.shape)
  inputs['beta'] = np.zeros(inputs['eta'].shape)
  last = -(
    inputs['eta'][:, -1, None, None]
    * inputs['u'][:, -1, :, None]
    * inputs['g'][:, -1, None, :]
  )
  with_momentum = 'momentum' if case == 'delta' else f'momentum_{case}'
  actual = compute(name, with_momentum, inputs)
  assert_close(actual, [kernel, last, reads], BAR)


# ------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
  'tokens, case',
  [(tokens, 'momentum_gated') for tokens in (1, 7, 64)]
  + [(16, case) for case in ('delta', 'plain', 'gated', 'momentum_plain')],
)
def test_chunk_gradients_are_token_gradients(x64, tokens, case):
  inputs = make(case, tokens)
  weights = make_weights(inputs)
  expected = differentiate('token', case, inputs, weights)[1]
  assert_close(
    differentiate('chunk', case, inputs, weights)[1], expected, GRADIENT_BAR
  )


@pytest.mark.parametrize('zeros', [False, True])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('name', UPDATES)
def test_gradients_match_complex_step(x64, name, case, zeros):
  """A finite difference that has no rounding error of its own."""
  inputs = make(case, 4, lead=(), width=3, output=2)
  if zeros:
    inputs['alpha'][[0, 2]] = 0.0
    if 'beta' in inputs:
      inputs['beta'][[1, 2]] = 0.0
  weights = make_weights(inputs)
  expected = {}
  for key in inputs:

    def of_one(x, key=key):
      changed = inputs | {key: x}
      return functional(reference.sequence_update, case, changed, weights)[0]

    expected[key] = reference.complex_step(of_one, inputs[key])
  assert_close(
    differentiate(name, case, inputs, weights)[1], expected, GRADIENT_BAR
  )


# --------------------------------------------------------------------- float32


def identical_keys(case):
  """One unit key for all tokens, eta' = 0.9."""
  inputs = make(case, 128)
  key = inputs['u'][:, :1]
  key = key / np.linalg.norm(key, axis=-1, keepdims=True)
  momentum = case.startswith('momentum')
  values = {'eta': 0.9, 'alpha': 0.99 if momentum else 1.0, 'beta': 0.9}
  return constant(inputs | {'u': np.repeat(key, 128, axis=1)}, values)


def small_retention(case):
  """Decay so fast that exp(a_t - a_j) overflows above the diagonal."""
  return constant(make(case, 128), {'alpha': 0.01, 'beta': 0.01})


def constant(inputs, values):
  """Sets whole inputs to one value, and `erase` to what 'gated' says."""
  inputs = dict(inputs)
  for name, value in values.items():
    if name in inputs:
      inputs[name] = np.full_like(inputs[name], value)
  if 'erase' in inputs:
    inputs['erase'] = inputs['alpha'] * inputs['eta']
  return inputs


TRAPS = {
  'random': functools.partial(make, tokens=128),
  'identical': identical_keys,
  'decay': small_retention,
}


@pytest.mark.parametrize('trap', TRAPS)
@pytest.mark.parametrize(
  'case', ['delta', 'plain', 'momentum', 'momentum_gated']
)
def test_float32(case, trap):
  """Chunk in float32 against the token loop in float64, C = 128."""
  inputs = rounded(TRAPS[trap](case))
  weights = rounded(make_weights(inputs))
  with jax.enable_x64(True):
    expected = differentiate('token', case, widened(inputs), widened(weights))
    outputs, gradients = jax.tree.map(np.asarray, expected)
  actual = differentiate('chunk', case, inputs, weights)
  assert_close(actual[0], outputs, FLOAT32_BAR, np.float32)
  assert_close(actual[1], gradients, FLOAT32_BAR, np.float32)


# ------------------------------------------------------------------- step size


@pytest.mark.parametrize('eta', [1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize('norm', [0.0, 0.1, 1.0, 3.0, 30.0])
def test_step_is_proximal(x64, norm, eta):
  """Rule (A) with eta' solves the argmin of Eq. 56, for any |u| and eta."""
  rng = np.random.default_rng(4)
  kernel, u, g = rng.normal(size=(6, 5)), rng.normal(size=6), rng.normal(size=5)
  u *= norm / np.linalg.norm(u)
  step = rule.normalized_step(np.array([eta]), u[None])
  assert_close(
    step, np.array([reference.normalized_step(eta, u)]), BAR, np.float64
  )
  expected = reference.proximal_step(kernel, u, g, eta)
  inputs = {
    'kernel': kernel,
    'u': u[None],
    'g': g[None],
    'eta': step,
    'alpha': np.ones(1),
  }
  for name in UPDATES:
    (actual,) = compute(name, 'delta', inputs)
    assert_close(actual, expected, 1e-10)


def test_proximal_step_is_a_minimum():
  """The oracle itself: the objective's gradient vanishes there."""
  rng = np.random.default_rng(5)
  kernel, u, g = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=3)
  eta = 0.7

  def objective(k):
    fit = 0.5 * np.sum((u @ k + g) ** 2)
    return fit + np.sum((k - kernel) ** 2) / (2.0 * eta)

  at = reference.proximal_step(kernel, u, g, eta)
  slope = reference.complex_step(objective, at)
  scale = np.max(np.abs(reference.complex_step(objective, kernel)))
  assert np.max(np.abs(slope)) <= BAR * scale


def test_normalized_step_batches(x64):
  rng = np.random.default_rng(6)
  eta = rng.uniform(0.0, 3.0, size=(2, 3, 4))
  u = rng.normal(size=(2, 3, 4, 5))
  expected = np.zeros(eta.shape)
  for index in np.ndindex(eta.shape):
    expected[index] = reference.normalized_step(eta[index], u[index])
  assert_close(rule.normalized_step(eta, u), expected, BAR)


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
):
  """A linear memory over a sequence; errors at each chunk's start.

  An erase of None means no erase. Returns the kernel, the trace and the reads
  before each token.
  """
  state = {'kernel': data['state'].T}
  if beta is not None:
    state['trace'] = trace
  case = 'plain' if erase is None else 'gated'
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


def assert_states(kernel, reads, states, data):
  """Against the published states [t + 1, o, i], with o_t = S_{t-1} q_t."""
  assert_close(kernel, states[-1].T, BAR)
  expected = [s @ q for s, q in zip(states[:-1], data['q'], strict=True)]
  assert_close(reads, np.stack(expected), BAR)


STATE_FREE = [('chunk', 16), ('chunk', 41), ('chunk', 1), ('token', 41)]


@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_delta_net(x64, name, chunk):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=data['rate'],
    alpha=np.ones(41),
    erase=data['rate'],
    chunk=chunk,
    name=name,
  )
  states = reference.delta_net(
    data['state'], data['k'], data['v'], data['rate']
  )
  assert_states(kernel, reads, states, data)


@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_gated_delta_net(x64, name, chunk):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=data['rate'],
    alpha=data['alpha'],
    erase=data['alpha'] * data['rate'],
    chunk=chunk,
    name=name,
  )
  states = reference.gated_delta_net(
    data['state'], data['k'], data['v'], data['alpha'], data['rate']
  )
  assert_states(kernel, reads, states, data)


@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_linear_attention(x64, name, chunk):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=np.ones(41),
    alpha=np.ones(41),
    erase=None,
    chunk=chunk,
    name=name,
  )
  states = reference.linear_attention(data['state'], data['k'], data['v'])
  assert_states(kernel, reads, states, data)


@pytest.mark.parametrize('name, chunk', STATE_FREE)
def test_retention(x64, name, chunk):
  data = sequence()
  kernel, _, reads = drive(
    data,
    objective='dot',
    eta=np.ones(41),
    alpha=np.full(41, 0.9),
    erase=None,
    chunk=chunk,
    name=name,
  )
  states = reference.retention(data['state'], data['k'], data['v'], 0.9)
  assert_states(kernel, reads, states, data)


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


def test_unknown_objective():
  with pytest.raises(ValueError, match='l2'):
    objectives.error('l1', np.ones(2), np.ones(2))


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


def titans(seed=12, batch=2, tokens=3, heads=2, width=4, hidden=5, q=False):
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
  }
  return (memories, *x), arguments


@pytest.mark.parametrize('objective', ['l2', 'dot'])
@pytest.mark.parametrize('layer', [0, 1])
@pytest.mark.parametrize('name', ['memory', 'v', 'eta'])
def test_reference_writes_descend(name, layer, objective):
  """One token's write is -eta' times the derivative of the memory's loss."""
  for b, n in ((0, 0), (1, 1)):
    (memories, x_k, x_v, x_q), arguments = titans(tokens=1)
    _, final = reference.self_referential_titans(
      memories,
      x_k,
      x_v,
      x_q,
      objective=objective,
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
      return reference.loss(objective, call(name, k, kernels), target)

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
  y, _ = reference.self_referential_titans(memories, x_k, x_v, x_q, **arguments)
  x_k, x_v, x_q = x_k.copy(), x_v.copy(), x_q.copy()
  x_k[:, 1] += 1.0
  x_v[:, 1] += 1.0
  x_q[:, 2:] += 1.0
  changed, _ = reference.self_referential_titans(
    memories, x_k, x_v, x_q, **arguments
  )
  assert np.array_equal(y[:, :2], changed[:, :2])
  assert np.all(np.any(y[:, 2] != changed[:, 2], axis=-1))


@pytest.mark.parametrize('anchor', ['zero', 'initial'])
@pytest.mark.parametrize('momentum', [False, True])
@pytest.mark.parametrize('erase', [False, True])
def test_reference_is_the_rule(x64, anchor, momentum, erase):
  """The same states, with every layer stepped by `rule.token_update`."""
  (memories, x_k, x_v, x_q), arguments = titans(batch=1, tokens=4, heads=1)
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

  _, final = reference.self_referential_titans(
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
