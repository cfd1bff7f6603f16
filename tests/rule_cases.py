"""Cases of rule (A), and what compares them."""

import functools

import jax
import numpy as np

from hope.memory import rule

UPDATES = {'chunk': rule.chunk_update, 'token': rule.token_update}
CASES = (
  'delta',
  'plain',
  'gated',
  'momentum',
  'momentum_plain',
  'momentum_gated',
  'delta_after',
  'plain_after',
  'momentum_gated_after',
  'momentum_through_trace',
  'momentum_gated_through_trace_after',
)
BAR = 1e-12
GRADIENT_BAR = 1e-10
FLOAT32_BAR = 1e-4


def make(case, tokens, *, lead=(2,), width=6, output=5, seed=0):
  """Random inputs for a case; a dict of float64 arrays, absent means None.

  The case says whether there is momentum and how the rule erases: at eta'
  ('delta'), not at all ('plain'), or at a given alpha eta' ('gated'); with
  'through_trace', by rule (B); with 'after', tokens read after their own write.
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
  if 'gated' in case:
    inputs['erase'] = inputs['alpha'] * inputs['eta']
  return inputs


def call(update, case, inputs):
  """The outputs of an update that are not None, in a list."""
  erase = 0.0 if 'plain' in case else inputs.get('erase')
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
    read_after=case.endswith('after'),
    trace_erases='through_trace' in case,
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
