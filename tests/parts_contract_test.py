"""What every mixer and feed-forward has in common: one test over both lists.

A case is a name in MIXERS or FEEDFORWARD with options; each name has one at
least. A new part gets its row here, and with it every test.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import BAR, FROZEN, assert_same, jit, randomize, relative
import numpy as np
import pytest
import reference

from hope.feedforward import FEEDFORWARD
from hope.mixers import MIXERS
from hope.parallel import placement
from hope.parallel.mesh import one_device
from hope.parts import InnerLosses, Level, Part, Sizes, find

BATCH, LENGTH, CHUNK = 2, 12, 4
SIZES = Sizes(
  width=16, num_heads=2, seq_len=LENGTH, dtype=jnp.float32, kernel='xla'
)


class Case(NamedTuple):
  """A part with options."""

  part: Part
  options: Any


def mixer(name, **options):
  return Case(MIXERS[name], MIXERS[name].options(**options))


def feedforward(name, **options):
  return Case(FEEDFORWARD[name], FEEDFORWARD[name].options(**options))


_CHUNKS = {'chunk_size': CHUNK, 'projection_chunk_size': CHUNK}
CASES = {
  'titans': mixer('titans', **_CHUNKS),
  'titans static': mixer(
    'titans', self_modifying=False, momentum=False, mix='none', **_CHUNKS
  ),
  'titans frozen': mixer('titans', **FROZEN, **_CHUNKS),
  'titans after': mixer(
    'titans',
    target='mixed',
    projection_target='slow',
    projection_momentum=False,
    read='after',
    output_gate=False,
    **_CHUNKS,
  ),
  'titans paper': mixer('titans', **MIXERS['titans'].settings['paper']),
  'titans lmm': mixer('titans', **(MIXERS['titans'].settings['lmm'] | _CHUNKS)),
  'titans dla': mixer('titans', **(MIXERS['titans'].settings['dla'] | _CHUNKS)),
  'mal': mixer('mal', max_context=5, num_persistent=2, chunk_size=CHUNK),
  'mag': mixer('mag', max_context=5, num_persistent=0, chunk_size=CHUNK),
  'mac': mixer('mac', num_persistent=2, chunk_size=CHUNK),
  'mac linear': mixer(
    'mac', num_persistent=0, hidden_multiple=0, chunk_size=CHUNK
  ),
  'attention': mixer('attention', max_context=5, num_persistent=3),
  'attention gqa': mixer(
    'attention', num_kv_heads=1, head_dim=6, rope_scaling='llama3'
  ),
  'delta linear_attention': mixer(
    'delta', rule='linear_attention', chunk_size=CHUNK
  ),
  'delta retnet': mixer('delta', rule='retnet', chunk_size=CHUNK, conv_width=0),
  'delta deltanet': mixer(
    'delta', rule='deltanet', chunk_size=CHUNK, negative_eigenvalues=True
  ),
  'delta gated_deltanet': mixer(
    'delta', rule='gated_deltanet', chunk_size=CHUNK
  ),
  'ttt linear': mixer('ttt', chunk_size=CHUNK),
  'ttt mlp': mixer('ttt', model='mlp', hidden_multiple=2, chunk_size=CHUNK),
  'delta comba': mixer('delta', rule='comba', chunk_size=CHUNK),
  'rwkv7': mixer('rwkv7', chunk_size=CHUNK, gate_rank=3),
  'lstm': mixer('lstm'),
  'srwm': mixer('srwm'),
  'mamba': mixer('mamba'),
  'cms outer': feedforward('cms', periods=(1, 4), variant='independent'),
  'cms in_context': feedforward('cms', mode='in_context', periods=(2, CHUNK)),
  'swiglu': feedforward('swiglu'),
}
# Of parts that another case runs as well; what is their own has its own tests.
SECOND = (
  *('titans static', 'titans after', 'titans paper', 'titans dla'),
  *('attention gqa', 'ttt mlp', 'mac linear', 'mal'),
  *('delta linear_attention', 'delta retnet', 'delta deltanet', 'delta comba'),
)
over_cases = pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name in SECOND else ())
    for name in CASES
  ],
)


def test_every_part_has_a_case():
  parts = [case.part for case in CASES.values()]
  for part in (*MIXERS.values(), *FEEDFORWARD.values()):
    assert part in parts
  assert set(SECOND) < set(CASES)


def build(name, dtype=jnp.float64):
  case = CASES[name]
  sizes = dataclasses.replace(SIZES, dtype=dtype)
  module = case.part.build(sizes, case.options, rngs=nnx.Rngs(0))
  return randomize(module, dtype)


@functools.cache
def compiled(name):
  """(params, run) of a case in float64; run(params, x, state, starts)."""
  graph, params = nnx.split(build(name))

  def run(params, x, state, starts):
    return nnx.merge(graph, params)(x, state, starts)

  return params, jit(run)


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((BATCH, LENGTH, SIZES.width)))


@over_cases
def test_pieces_equal_the_whole(name, x64):
  params, run = compiled(name)
  x = inputs()
  whole, end = run(params, x, None, None)
  state, ys = build(name).init_state(BATCH), []
  for piece in (x[:, :1], x[:, 1:6], x[:, 6:7], x[:, 7:]):
    y, state = run(params, piece, state, None)
    ys.append(y)
  assert relative(jnp.concatenate(ys, axis=1), whole) <= BAR
  again, _ = run(params, x[:, :1], state, None)
  expected, _ = run(params, x[:, :1], end, None)
  assert relative(again, expected) <= BAR


@over_cases
def test_a_token_sees_none_that_follow_and_no_other_row(name, x64):
  params, run = compiled(name)
  x = inputs()
  plain, _ = run(params, x, None, None)
  # Not by the same in all channels: a softmax would not see it.
  moved, _ = run(params, x.at[0, 7].add(inputs(1)[0, 7]), None, None)
  np.testing.assert_array_equal(moved[0, :7], plain[0, :7])
  np.testing.assert_array_equal(moved[1], plain[1])
  assert np.abs(moved[0, 7] - plain[0, 7]).max() > 1e-6
  if CASES[name].part in MIXERS.values():
    assert np.abs(moved[0, 8:] - plain[0, 8:]).max() > 1e-9


@over_cases
def test_a_token_that_is_not_finite_reaches_nothing_before_it(name, x64):
  params, run = compiled(name)
  x = inputs()
  plain, _ = run(params, x, None, None)
  spoiled, _ = run(params, x.at[0, 7].set(jnp.nan), None, None)
  np.testing.assert_array_equal(spoiled[0, :7], plain[0, :7])
  np.testing.assert_array_equal(spoiled[1], plain[1])
  assert np.isnan(spoiled[0, 7]).any()


@over_cases
def test_documents_in_a_row_equal_each_by_itself(name, x64):
  params, run = compiled(name)
  x = inputs()
  starts = np.zeros((BATCH, LENGTH), bool)
  starts[0, [0, CHUNK]] = starts[1, 2 * CHUNK] = True
  y, _ = run(params, x, None, starts)
  for row, edges in ((0, (0, CHUNK, LENGTH)), (1, (0, 2 * CHUNK, LENGTH))):
    for first, last in zip(edges, edges[1:], strict=False):
      alone, _ = run(params, x[row : row + 1, first:last], None, None)
      assert relative(y[row : row + 1, first:last], alone) <= BAR


@over_cases
def test_every_parameter_has_a_row_and_a_gradient(name, x64):
  case = CASES[name]
  graph, params = nnx.split(build(name))
  probe = inputs(1)

  def loss(params):
    return jnp.sum(probe * nnx.merge(graph, params)(inputs(), None, None)[0])

  gradients = nnx.to_pure_dict(jit(jax.grad(loss))(params))
  table = case.part.parameters(case.options)
  for keys, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    path = '/'.join(str(key.key) for key in keys)
    leaf = find(table, path)
    assert len(leaf.spec) <= gradient.ndim, path
    assert leaf.is_matrix <= (gradient.ndim >= 2), path
    assert leaf.component and '\\' not in leaf.component
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, path


@over_cases
def test_bfloat16_keeps_the_fast_state_in_float32(name):
  module = build(name, jnp.bfloat16)
  # Parameters are stored in float32 whatever the products are in.
  nnx.update(
    module,
    jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(module, nnx.Param)),
  )
  y, state = jit(lambda x: module(x, None, None))(inputs().astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert np.isfinite(y.astype(np.float32)).all()
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype in (jnp.float32, jnp.int32)


@over_cases
def test_it_builds_at_the_papers_sizes(name):
  """Abstractly: shapes, a mesh of 4 x 4, the rows of its levels."""
  case = CASES[name]
  sizes = dataclasses.replace(
    SIZES, width=2048, num_heads=16, seq_len=4096, dtype=jnp.bfloat16
  )
  options = case.options
  if hasattr(options, 'num_kv_heads') and options.num_kv_heads:
    options = dataclasses.replace(options, num_kv_heads=4, head_dim=128)
  case.part.check(sizes, options)
  for divided in case.part.divided(sizes, options):
    assert divided.size % 4 == 0
  module = nnx.eval_shape(
    lambda: case.part.build(sizes, options, rngs=nnx.Rngs(0))
  )
  params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  # After a step nothing is weakly typed: the step would compile a second time.
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))
  stored = placement.of_params(
    params, one_device(), tuple(case.part.parameters(options))
  )
  assert jax.tree.structure(stored) == jax.tree.structure(params)
  for row in case.part.levels(sizes, options):
    assert isinstance(row, Level) and all(str(x) for x in row)


@over_cases
def test_metrics_are_of_stacked_layers(name):
  case = CASES[name]
  module = build(name, jnp.float32)
  _, state = jit(lambda x: module(x, None, None))(inputs().astype(jnp.float32))
  stacked = jax.tree.map(lambda x: jnp.stack([x] * 3), state)
  for label, values in case.part.metrics(stacked).items():
    assert values.shape == (3,), label
    assert np.isfinite(values).all() and (values >= 0).all(), label
    np.testing.assert_array_equal(values[0], values[2])


@over_cases
def test_memories_measure_their_losses_where_asked(name):
  case = CASES[name]

  def call(measures):
    module = case.part.build(SIZES, case.options, rngs=nnx.Rngs(0))
    if measures:
      module.set_attributes(measures=True, raise_if_not_found=False)
    result = module(inputs().astype(jnp.float32), None, None)
    return result, nnx.to_pure_dict(nnx.pop(module, InnerLosses))

  plain, nothing = jax.eval_shape(lambda: call(False))
  result, losses = jax.eval_shape(lambda: call(True))
  assert result == plain and not nothing
  measured = {
    path[-1].key: values.shape
    for path, values in jax.tree_util.tree_leaves_with_path(losses)
  }
  generated = ['v', 'k', 'eta', 'alpha']
  changes = [f'{x}/change' for x in generated]
  memories = {
    **dict.fromkeys(('titans static', 'titans lmm', 'titans dla'), ['memory']),
    **dict.fromkeys(('mal', 'mag', 'mac'), ['memory']),
    'titans': ['memory', *generated, *changes],
    'delta': ['memory'],
    'ttt': ['memory'],
    'rwkv7': ['memory'],
    'srwm': ['memory'],
    'cms in_context': ['cms_level_0', 'cms_level_1'],
  }
  (expected,) = [
    *(x for start, x in memories.items() if name.startswith(start)),
    [],
  ][:1]
  assert measured == dict.fromkeys(expected, (BATCH, LENGTH))


def measure(module, x):
  """Its inner losses, [b, t] by name."""
  module(x)
  return nnx.to_pure_dict(nnx.pop(module, InnerLosses))['inner_losses']


def test_in_context_levels_start_from_the_loss_of_their_parameters(x64):
  module = build('cms in_context').level_0
  x = inputs()
  module.set_attributes(measures=True)
  measured = nnx.jit(measure)(module, x)['cms_level_0']
  get = lambda p: np.asarray(p[...], np.float64)
  z = np.asarray(x) / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-6)
  z *= get(module.norm.scale)
  k, v = np.split(z @ get(module.key_value.kernel), 2, axis=-1)
  unit = lambda a: a / np.sqrt(np.sum(a * a, axis=-1, keepdims=True) + 1e-12)
  k, v = SIZES.width**0.5 * unit(k), unit(v)
  prediction = reference.silu(k @ get(module.up)) @ get(module.down)
  expected = 0.5 * np.square(prediction - v).sum(-1)
  # The first chunk, of two tokens, is learned at the initial state.
  assert relative(measured[:, :2], expected[:, :2]) <= BAR
  assert relative(measured[:, 2:], expected[:, 2:]) > 1e-3


@over_cases
def test_init_state_is_what_none_stands_for(name, x64):
  params, run = compiled(name)
  x = inputs()
  y, end = run(params, x, None, None)
  again, end_again = run(params, x, build(name).init_state(BATCH), None)
  assert relative(again, y) <= BAR
  assert_same(jax.tree.leaves(end_again), jax.tree.leaves(end), BAR)
