"""Rule (A): the chunk form, the token loop, their gradients and float32."""

import functools

import jax
import numpy as np
import pytest
import reference
from rule_cases import (
  BAR,
  CASES,
  FLOAT32_BAR,
  GRADIENT_BAR,
  UPDATES,
  assert_close,
  call,
  compute,
  differentiate,
  functional,
  make,
  make_weights,
  relative_error,
  rounded,
  widened,
)

from hope.memory import rule

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
