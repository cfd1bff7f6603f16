"""The table of levels against the model that it describes."""

import re

from flax import nnx
import jax
import pytest

from hope import blocks, optimizer
from hope import config as config_lib
from hope import levels as levels_lib
from hope.model import Hope
from hope.parts import find


def make(**fields):
  config = config_lib.base_config()
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return config_lib.resolve(config, 257)


CASES = {
  'default': {},
  'periods': {'model.cms.periods': (1, 4, 16)},
  'in_context': {
    'model.cms.mode': 'in_context',
    'model.cms.periods': (16, 64),
  },
  'independent': {'model.cms.variant': 'independent'},
  'independent_in_context': {
    'model.cms.mode': 'in_context',
    'model.cms.variant': 'independent',
  },
  'attention': {'model.pattern': 'attention+cms'},
  'linear': {'model.titans.hidden_multiple': 0},
  'q_memory': {'model.titans.q_memory': True},
  'static': {'model.titans.self_modifying': False},
  'no_mix': {'model.titans.mix': 'none', 'model.titans.momentum': False},
}


def by_name(config):
  rows = levels_lib.levels(config)
  return {(row.component, row.frequency): row for row in rows}


@pytest.mark.parametrize('case', CASES)
def test_parameters_add_up_to_the_model(case):
  config = make(**CASES[case])
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  rows = levels_lib.levels(config)
  assert sum(row.parameters for row in rows) == sum(x.size for x in leaves)
  assert len({row.component for row in rows}) == len(rows)


def test_counts_by_hand():
  counts = levels_lib.count_parameters(make())
  layers, d, heads = 4, 128, 2
  each = d // heads
  assert counts['embedding (and output)'] == 257 * d
  assert counts['projections'] == layers * (3 + 1 + 1) * d * d
  assert counts['initial state of memory'] == layers * heads * 2 * each * each
  assert counts['convolution'] == layers * 4 * 3 * d
  assert counts['CMS level 3'] == layers * (2 * d * (d * 7 // 8) + d)


def test_fastest_first():
  rows = levels_lib.levels(make(**CASES['periods']))
  frequencies = list(dict.fromkeys(row.frequency for row in rows))
  assert frequencies == [
    '1 update per token',
    '1/64 updates per token',
    '1 per step',
    '1/4 per step',
    '1/16 per step',
  ]


def test_every_memory_has_a_fast_and_a_slow_level():
  config = make(**{'model.titans.q_memory': True})
  rows = by_name(config)
  for name in ('k', 'v', 'q', 'eta', 'alpha'):
    assert rows[name, '1/64 updates per token'].parameters == 0
    assert rows[f'initial state of {name}', '1 per step'].parameters > 0
  assert ('memory', '1 update per token') in rows


def test_memory_read_at_its_chunk_is_as_slow_as_its_chunk():
  config = make(
    **{
      'model.titans.read': 'chunk',
      'model.titans.chunk_size': 32,
    }
  )
  assert ('memory', '1/32 updates per token') in by_name(config)


def test_without_learning_there_are_no_fast_levels():
  rows = levels_lib.levels(make(**{'model.titans.eta_max': 0.0}))
  assert {row.frequency for row in rows} == {'1 per step'}
  rows = by_name(make(**CASES['static']))
  assert ('k', '1/64 updates per token') not in rows
  assert 'no learning' in rows['initial state of k', '1 per step'].passes_on


def test_what_is_switched_off_is_no_level():
  rows = by_name(make(**{'model.titans.retention': False}))
  assert not [name for name, _ in rows if name == 'alpha']
  fields = {'optimizer.name': 'm3'}
  rows = by_name(make(**fields))
  assert not [name for name, _ in rows if name.startswith('M3 second')]
  rows = by_name(make(**CASES['independent_in_context']))
  (level,) = (
    row
    for key, row in rows.items()
    if key[0] == 'CMS level 1' and 'token' in key[1]
  )
  assert level.passes_on == 'its output, summed over levels'


def test_cms_levels_have_their_own_periods():
  rows = by_name(make(**CASES['periods']))
  assert rows['CMS level 1', '1/4 per step'].parameters > 0
  assert ('AdamW first moment (1/4 per step)', '1/4 per step') in rows
  assert ('gradient accumulator (1/4 per step)', '1 per step') in rows
  rows = by_name(make(**CASES['in_context']))
  assert rows['CMS level 1', '1/64 updates per token'].parameters == 0
  assert rows['initial state of CMS level 1', '1 per step'].parameters > 0


@pytest.mark.parametrize('name', optimizer.RULES)
def test_every_memory_of_the_optimizer_is_a_level(name):
  """Together they hold what the optimizer's state holds."""
  config = make(**{'optimizer.name': name, 'model.pattern': 'attention+cms'})
  rows = levels_lib.levels(config)
  sizes = [
    int(re.search(r'([\d,]+) parameters', row.context)[1].replace(',', ''))
    for row in rows
    if row.passes_on == 'the update it makes'
  ]
  if name == 'deep_momentum':  # Its memory has a size of its own.
    assert sizes
    return
  params = optimizer_params(config)
  state = jax.eval_shape(optimizer.make_optimizer(config).init, params)
  held = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
  if name == 'muon':  # Coefficients of Newton-Schulz are in its state.
    held -= 3
  if name == 'm3':  # The orthogonalised slow momentum is kept as well.
    held -= sum(
      size
      for leaf, size in levels_lib._parameters(config)
      if optimizer.kind(config, leaf) == 'm3'
    )
  assert sum(sizes) == held


def optimizer_params(config):
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_slow_momentum_is_slower_than_its_level():
  rows = by_name(
    make(
      **CASES['periods']
      | {'optimizer.name': 'm3', 'optimizer.options': 'period=8'}
    )
  )
  for period, slow in ((1, 8), (4, 32), (16, 128)):
    suffix = '1 per step' if period == 1 else f'1/{period} per step'
    name = f'M3 slow momentum ({suffix})'
    assert (name, f'1/{slow} per step') in rows
  assert ('AdamW first moment (1 per step)', '1 per step') in rows


def test_the_model_is_traced_once(monkeypatch):
  calls = []

  def parameters(config):
    calls.append(config)
    return found(config)

  found = levels_lib._parameters
  monkeypatch.setattr(levels_lib, '_parameters', parameters)
  assert levels_lib.levels(make())
  assert len(calls) == 1


def test_unknown_parameter_is_named():
  table = blocks.parameters(make())
  with pytest.raises(ValueError, match=r'blocks/0/mixer/new/kernel: add one'):
    find(table, 'blocks/0/mixer/new/kernel')


@pytest.mark.parametrize('case', CASES)
def test_table_fits_and_is_whole(case):
  config = make(**CASES[case])
  text = levels_lib.table(config)
  assert '\x1b' not in text and '…' not in text
  assert max(map(len, text.splitlines())) <= 100
  rows = levels_lib.levels(config)
  for row in rows:
    for word in ' '.join((row.component, row.context, row.passes_on)).split():
      assert word in text
  assert f'{sum(row.parameters for row in rows):,}' in text
