"""Mixers side by side."""

import json

from absl import flags
from flax import nnx
import jax
import pytest

from hope.config import base_config
from hope.mixers import MIXERS
from hope.profiling import compare, growth
from hope.training import step as step_lib


@pytest.fixture
def config():
  config = base_config()
  config.model.width, config.model.num_heads = 16, 2
  config.model.num_layers = 1
  config.data.seq_len, config.data.batch_size = 16, 2
  config.compute.remat = False
  return config


def test_models_are_as_large_as_the_first(config):
  patterns = ['titans+cms', 'attention+swiglu', 'ttt+cms']
  found = compare.matched(config, patterns)
  assert list(found) == patterns
  counts = [compare.sizes(x)['parameters'] for x in found.values()]
  assert max(counts) / min(counts) < 1.02
  assert max(abs(x / counts[0] - 1) for x in counts) <= 0.01


def test_sizes_are_those_of_the_model_that_is_built(config):
  ((name, resolved),) = compare.matched(config, ['ttt+cms']).items()
  found = compare.sizes(resolved)
  graph, params = step_lib.build_model(resolved)
  assert found['parameters'] == sum(x.size for x in jax.tree.leaves(params))
  state = nnx.merge(graph, params).init_state(1)
  assert found['state_bytes'] == sum(x.nbytes for x in jax.tree.leaves(state))
  expected = 4 * found['parameters'] + 2 * found['state_bytes']
  assert found['decode_bytes'] == expected


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
  monkeypatch.setattr(compare.devices, 'use_all_cores', lambda: None)


def run(tmp_path, *argv):
  values = flags.FlagValues()
  compare.define_flags(values)
  file = tmp_path / 'small.py'
  file.write_text(
    'from hope.config import base_config\n'
    'def get_config():\n'
    '  c = base_config()\n'
    '  c.model.width, c.model.num_heads, c.model.num_layers = 16, 2, 1\n'
    '  c.data.seq_len, c.data.batch_size = 16, 2\n'
    '  c.compute.remat = False\n'
    '  return c\n'
  )
  out = tmp_path / 'out.json'
  values(['compare', f'--config={file}', f'--json={out}', *argv])
  compare.main(values)
  return json.loads(out.read_text())


PATTERNS = ('--pattern=delta+swiglu', '--pattern=attention+swiglu')


def test_the_cost_of_a_token_by_the_length_of_a_row(tmp_path, capsys):
  lengths = ('--length=64', '--length=16')
  found = run(tmp_path, '--rounds=1', *lengths, '--pattern=lstm+swiglu')
  assert list(found) == ['lstm+swiglu']
  for values in found.values():
    assert [row['seq_len'] for row in values] == [16, 64]
    assert all(row['seconds'] > 0 for row in values)
    assert values[0]['program_bytes'] < values[1]['program_bytes']
  assert (tmp_path / 'out.png').read_bytes()[:4] == b'\x89PNG'
  assert 'time at 64' in capsys.readouterr().out


def test_a_token_of_a_linear_cost_costs_the_same_at_every_length():
  values = [{'seq_len': x, 'seconds': 0.5 * x} for x in (2, 8)]
  assert growth.per_token(values, 'seconds') == [1, 1]
  values = [{'seq_len': x, 'seconds': x**2} for x in (2, 8)]
  assert growth.per_token(values, 'seconds') == [1, 4]


@pytest.mark.parametrize('argv', [['--length=8'], ['--length=8'] * 2])
def test_one_length_shows_no_growth(tmp_path, argv):
  with pytest.raises(flags.IllegalFlagValueError, match='at least twice'):
    run(tmp_path, *argv, *PATTERNS)


def test_the_command_times_and_draws(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(compare, '_CONTEXTS', (2, 4))
  monkeypatch.setattr(compare.throughput, '_PEAK_SIZE', 64)
  found = run(tmp_path, '--rounds=1', *PATTERNS)
  assert list(found) == ['delta+swiglu', 'attention+swiglu']
  for values in found.values():
    assert values['tokens_per_second'] > 0
    assert values['seconds_per_token'] > 0
    assert values['compile_seconds'] > 0
  assert (tmp_path / 'out.png').stat().st_size > 1000
  printed = capsys.readouterr().out
  assert 'tokens/s' in printed and 'attention+swiglu' in printed


def test_sizes_alone_time_nothing(tmp_path, capsys):
  found = run(tmp_path, '--sizes', *PATTERNS)
  assert 'tokens_per_second' not in found['delta+swiglu']
  assert not (tmp_path / 'out.png').exists()
  assert 'parameters' in capsys.readouterr().out


def test_every_mixer_is_compared():
  for name in MIXERS:
    assert any(name in pattern for pattern in compare.PATTERNS), name
