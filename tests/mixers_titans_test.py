"""Self-referential Titans against an independent transcription."""

import collections
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import (
  BAR,
  FROZEN,
  MEMORIES,
  assert_same,
  call,
  inputs,
  relative,
  titans,
)
import numpy as np
import pytest
import reference

from hope.memory import mlp
from hope.mixers.titans import SelfReferentialTitans
from hope.mixers.titans_options import PAPER, TitansOptions
from hope.mixers.titans_part import PART
from hope.parts import InnerLosses

# ------------------------------------------------------------------ the oracle


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def oracle(layer, x):
  """The layer at chunks of one: (y, final kernels, inner losses [b, t])."""
  get = lambda p: np.asarray(p[...], np.float64)
  options, n = layer.options, layer.num_heads
  x = np.asarray(x, np.float64)
  batch, tokens, width = x.shape

  mixed = x @ get(layer.mix.kernel) if options.mix == 'dense' else x
  kernel = get(layer.conv.kernel)
  convolved = np.zeros_like(mixed)
  for t in range(tokens):
    for lag in range(min(t + 1, len(kernel))):
      convolved[:, t] += kernel[-1 - lag] * mixed[:, t - lag]
  mixed = reference.silu(convolved)
  if options.mix == 'dense':
    # A head's columns are its q, then its k, then its v.
    by_head = np.split(mixed, layer.num_heads, axis=-1)
    x_q, x_k, x_v = np.concatenate(
      [np.split(head, 3, axis=-1) for head in by_head], axis=-1
    )
  else:
    x_q, x_k, x_v = mixed @ get(layer.query.kernel), mixed, mixed

  def heads(z):
    z = z.reshape(batch, tokens, n, -1)
    return z / np.sqrt(np.sum(z * z, axis=-1, keepdims=True) + 1e-12)

  x_q, x_k, x_v = heads(x_q), heads(x_k), heads(x_v)
  beta = None
  if options.has_momentum():
    beta = 0.95 * sigmoid(x @ get(layer.beta.kernel) + get(layer.beta.bias))

  others = options.of_projections()
  names = MEMORIES + (('q',) if options.q_memory else ())
  y = np.zeros((batch, tokens, n, width // n))
  final, losses = {}, collections.defaultdict(lambda: np.zeros((batch, tokens)))
  for b in range(batch):
    for h in range(n):
      here = (slice(b, b + 1), slice(None), slice(h, h + 1))
      memories, rates, learning = {}, {}, {}
      for name in names:
        kernels = getattr(layer, name)
        memories[name] = (
          get(kernels.up)[h : h + 1],
          get(kernels.down)[h : h + 1],
        )
        # Static memories have no rate of their own, nor use one.
        group = 'memory' if name == 'memory' else 'projection'
        rate = getattr(layer, f'{group}_rate', layer.memory_rate)
        how = options.of_memory() if group == 'memory' else others
        # Chunks of one have the same bound for both layers.
        bound = 1.0 if how.eta_max is None else how.eta_max
        # The first layer by the delta rule has no more than chunks allow.
        first = min(bound, 1.0) if how.objective == 'delta' else bound
        up, down = sigmoid(get(rate))[:, h : h + 1]
        rates[name] = first * up, bound * down
        share = {'self': 1.0, 'slow': 0.0}.get(how.target)
        if share is None:
          share = sigmoid(get(getattr(layer, f'{group}_share'))[h])
        learning[name] = {
          'objective': how.objective,
          'share': [share],
          'relative': how.step == 'relative',
          'momentum': how.momentum,
        }
      eta_bias, alpha_bias = get(layer.eta_bias)[h], get(layer.alpha_bias)[h]

      def gate_eta(raw, bias=eta_bias):
        return sigmoid(raw + bias)

      def gate_alpha(raw, bias=alpha_bias):
        return sigmoid(raw + bias) if options.retention else 1.0

      y[here], kernels, found = reference.self_referential_titans(
        memories,
        x_k[here],
        x_v[here],
        x_q[here],
        activation=reference.ACTIVATIONS['silu'],
        gate_eta=gate_eta,
        gate_alpha=gate_alpha,
        rates=rates,
        learning=learning,
        beta=None if beta is None else beta[here],
        anchor=options.anchor,
        erase=options.erase,
        read_after=options.read == 'after',
        target_max=options.target_max,
        error_max=options.error_max,
        epsilon=1e-12,
      )
      for name, pair in kernels.items():
        final[name, b, h] = [kernel[0, 0] for kernel in pair]
      for name, values in found.items():
        losses[name][b] += values[0, :, 0] / n

  if options.output_norm:
    y /= np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-6)
    y *= get(layer.norm.scale)
  y = y.reshape(batch, tokens, -1)
  if options.output_gate:
    y *= reference.silu(x @ get(layer.gate.kernel) + 1.2784645)
  return y @ get(layer.output.kernel), final, losses


def final_kernels(layer, state):
  """(up, down) by (name, sequence, head), as the oracle gives them."""
  anchored = layer.options.anchor == 'initial'
  wide = ['v', *(['q'] if layer.options.q_memory else []), 'k']
  groups = [
    ([*wide, 'eta', 'alpha'], layer._generators(), state.projections.now),
    (['memory'], layer.memory.kernels(), state.memory.now),
  ]
  kernels = {}
  for names, base, now in groups:
    now = mlp.add(base if anchored else None, now)
    for index, name in enumerate(names):
      one = mlp.select(now, index, index + 1)
      for b, h in np.ndindex(one.up.shape[:2]):
        kernels[name, b, h] = one.up[b, h], one.down[0][b, h, 0]
  return kernels


ORACLE_CASES = {
  'initial': {},
  'frozen': FROZEN,
  'letter': FROZEN | {'target_max': None, 'error_max': None},
  'bounded': FROZEN | {'target_max': 0.3, 'error_max': 0.2},
  'zero': FROZEN | {'anchor': 'zero'},
  'plain': {
    **FROZEN,
    'momentum': False,
    'erase': False,
    'retention': False,
  },
  'paper': PAPER,
  'q_memory': {
    **FROZEN,
    'q_memory': True,
    'momentum': False,
    'anchor': 'zero',
  },
  'dot': {'objective': 'dot', 'eta_max': 0.05},
  'dot_zero': {
    'objective': 'dot',
    'eta_max': 0.05,
    'anchor': 'zero',
    'erase': False,
  },
  'mix_none': {
    **FROZEN,
    'mix': 'none',
    'hidden_multiple': 2,
    'retention': False,
  },
  'delta_zero': {
    'objective': 'delta',
    'momentum': True,
    'anchor': 'zero',
    'read': 'after',
  },
  'delta_relative': {
    'objective': 'delta',
    'step': 'relative',
    'eta_max': 2.0,
    'momentum': False,
    'output_norm': False,
    'output_gate': True,
  },
  'delta_memory': {
    'objective': 'delta',
    'projection_objective': 'l2',
    'projection_eta_max': 0.3,
    'momentum': False,
    'projection_momentum': True,
    'projection_target': 'slow',
    'target': 'mixed',
  },
  'delta_projections': {
    'projection_objective': 'delta',
    'projection_step': 'relative',
    'projection_momentum': False,
    'projection_target': 'mixed',
    'projection_eta_max': 1.5,
    'eta_max': 0.5,
    'q_memory': True,
  },
  # The gates' values are as wide as their inputs.
  'heads_of_width_1': FROZEN | {'heads': 8},
}


@pytest.mark.parametrize('case', ORACLE_CASES)
def test_layer_is_the_oracle(case, x64):
  options = {'chunk_size': 1, 'projection_chunk_size': 1} | ORACLE_CASES[case]
  layer = titans(dtype=jnp.float64, **options)
  x = inputs(2, 10, 8, np.float64)
  y, state = call(layer)(x, None)
  assert y.dtype == jnp.float64
  expected, kernels, _ = oracle(layer, x)
  assert relative(y, expected) <= BAR
  actual = final_kernels(layer, state)
  assert actual.keys() == kernels.keys()
  for name in kernels:
    for a, e in zip(actual[name], kernels[name], strict=True):
      assert relative(a, e) <= BAR, name


@pytest.mark.parametrize(
  'case',
  [
    'bounded',
    pytest.param('q_memory', marks=pytest.mark.slow),
    pytest.param('dot', marks=pytest.mark.slow),
    pytest.param('delta_memory', marks=pytest.mark.slow),
  ],
)
def test_inner_losses_are_the_oracles(case, x64):
  options = {'chunk_size': 1, 'projection_chunk_size': 1} | ORACLE_CASES[case]
  layer = titans(dtype=jnp.float64, **options)
  layer.set_attributes(measures=True)
  x = inputs(2, 6, 8, np.float64)

  @nnx.jit
  def measure(layer, x):
    y, _ = layer(x)
    return y, nnx.to_pure_dict(nnx.pop(layer, InnerLosses))['inner_losses']

  y, measured = measure(layer, x)
  expected_y, _, expected = oracle(layer, x)
  assert relative(y, expected_y) <= BAR
  assert measured.keys() == expected.keys()
  for name, values in expected.items():
    assert relative(measured[name], values) <= BAR, name


def test_every_memory_with_momentum_has_a_write_norm():
  layer = titans(chunk_size=4, projection_chunk_size=4, **FROZEN)
  _, state = call(layer)(inputs(2, 8, 8), None)
  found = PART.metrics(jax.tree.map(lambda x: x[None], state))
  for name in MEMORIES:
    assert found[f'{name}/write_norm'] > 0
    assert found[f'{name}/state_norm'] > 0


def test_reads_agree_at_chunks_of_one(x64):
  results = []
  for read in ('token', 'chunk'):
    layer = titans(
      dtype=jnp.float64, chunk_size=1, projection_chunk_size=1, read=read
    )
    results.append(call(layer)(inputs(2, 10, 8, np.float64), None))
  assert_same(*results, 1e-14)


def test_a_frozen_chunk_agrees_where_nothing_was_frozen(x64):
  x = inputs(1, 8, 8, np.float64)
  run = lambda chunk, **kw: np.asarray(
    call(
      titans(
        dtype=jnp.float64,
        chunk_size=chunk,
        projection_chunk_size=chunk,
        objective='l2',
        eta_max=0.3,
        **kw,
      )
    )(x, None)[0]
  )
  one, token, chunk = run(1), run(8), run(8, read='chunk')
  # A read before its token has seen one write at the second token, whose
  # gradient was taken at the initial state in either case.
  assert relative(token[:, :2], one[:, :2]) <= BAR
  assert relative(token[:, 2:], one[:, 2:]) > 1e-4
  assert relative(chunk[:, :1], one[:, :1]) <= BAR
  assert relative(chunk[:, 1:], one[:, 1:]) > 1e-4
  # A read at the chunk's start sees no write of its chunk.
  static = run(8, read='chunk', self_modifying=False)
  assert relative(chunk, static) <= BAR


@pytest.mark.parametrize('objective', ['dot', 'delta'])
def test_chunks_change_nothing_where_no_gradient_is_frozen(objective, x64):
  """Of a linear memory: the dot product's has no state, delta's the current."""
  x = inputs(1, 8, 8, np.float64)
  results = [
    call(
      titans(
        dtype=jnp.float64,
        chunk_size=chunk,
        objective=objective,
        hidden_multiple=0,
        self_modifying=False,
        target='slow',
        eta_max=0.3,
      )
    )(x, None)[0]
    for chunk in (8, 1)
  ]
  assert relative(*results) <= BAR


def test_what_the_memories_that_generate_inherit():
  given = TitansOptions(
    objective='delta', step='relative', eta_max=2.0, projection_chunk_size=8
  )
  assert given.of_memory().bounds() == (1 / 64, 2.0)
  projections = given.of_projections()
  assert projections.bounds() == (1 / 8, 2.0)
  assert (projections.objective, projections.step) == ('delta', 'relative')
  assert not given.has_momentum()
  frozen = dataclasses.replace(given, projection_objective='l2')
  projections = frozen.of_projections()
  # Neither the step nor the bound of another objective.
  assert projections.bounds() == (1 / 8, 1 / 8)
  assert projections.step == 'proximal' and projections.momentum
  assert not frozen.of_memory().momentum and frozen.has_momentum()
  plain = TitansOptions(eta_max=0.5, momentum=False, projection_momentum=True)
  assert plain.of_memory().bounds() == plain.of_projections().bounds()
  assert plain.of_projections().momentum and not plain.of_memory().momentum


@pytest.mark.parametrize('hidden_multiple', [1, 2])
def test_features_start_as_far_apart_as_keys(hidden_multiple):
  layer = SelfReferentialTitans(
    64, 2, TitansOptions(hidden_multiple=hidden_multiple), rngs=nnx.Rngs(0)
  )
  rng = np.random.default_rng(0)
  keys = rng.standard_normal((2, 100, 32))
  keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
  for name in MEMORIES:
    features = reference.silu(keys @ np.asarray(getattr(layer, name).up[...]))
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    # Of random normal numbers they would be 0.16 (0.10) and 0.17 (0.12).
    np.testing.assert_allclose(norms.mean(), 1, atol=0.05)
    apart = np.swapaxes(features / norms, -1, -2)
    error = features / norms @ apart - keys @ np.swapaxes(keys, -1, -2)
    assert norms.std() < 0.12 / hidden_multiple**0.5
    assert np.sqrt(np.mean(error**2)) < 0.08 / hidden_multiple**0.5
