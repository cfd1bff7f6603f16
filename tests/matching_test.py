"""Models of equal size."""

import jax
import pytest

import hope
from hope import blocks
from hope.config import base_config
from hope.parallel import mesh as mesh_lib
from hope.training import step as step_lib


def small(pattern, **fields):
  config = base_config()
  config.model.width, config.model.num_heads = 64, 2
  config.model.num_layers = 2
  config.model.pattern = pattern
  config.update_from_flattened_dict(fields)
  return config


PATTERNS = (
  'titans(lmm)+cms',
  'titans+swiglu',
  'attention+swiglu',
  'delta(rule="retnet")+cms(mode="in_context")',
  'ttt(model="mlp")+cms(periods=(1, 4))',
  'attention+cms, titans+swiglu',
)


@pytest.mark.parametrize('pattern', PATTERNS)
def test_any_two_models_can_be_as_large(pattern):
  like = small('titans+cms')
  wanted = hope.count_parameters(like, 257)
  config = small(pattern)
  assert abs(hope.count_parameters(config, 257) / wanted - 1) > 0.01
  matched = hope.match_parameters(config, like, 257)
  assert abs(hope.count_parameters(matched, 257) / wanted - 1) <= 0.01
  assert config == small(pattern)


def test_it_counts_what_is_trained():
  config = hope.resolve(small('ttt+cms'), 100)
  _, state = step_lib.abstract_state(config, mesh_lib.one_device())
  count = sum(x.size for x in jax.tree.leaves(state.params))
  assert hope.count_parameters(small('ttt+cms'), 100) == count


def test_a_width_that_meshes_divide_is_preferred():
  config = small('attention+swiglu', **{'model.width': 256})
  wanted = hope.count_parameters(config, 257)
  (block,) = blocks.pattern(
    hope.resolve(hope.match_parameters(config, wanted, 257), 257)
  )
  assert block.feedforward.options.hidden % 64 == 0


@pytest.mark.parametrize('pattern', ['titans+cms', 'titans+swiglu(hidden=64)'])
def test_a_number_that_cannot_be_had_is_refused(pattern):
  with pytest.raises(ValueError, match='no width of the feed-forwards'):
    hope.match_parameters(small(pattern), 1000, 257)
