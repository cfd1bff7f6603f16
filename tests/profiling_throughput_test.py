"""Operations against counts by hand, and the command end to end."""

import json
import math
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from hope import config as config_lib
from hope.profiling import flops, throughput

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = {
  'model.pattern': 'attention+cms',
  'model.num_layers': 1,
  'model.width': 16,
  'model.num_heads': 2,
  'model.cms.periods': (1,),
  'compute.remat': False,
  'model.cms.hidden_multiple': 2.0,
  'data.seq_len': 8,
  'data.batch_size': 2,
}


def make(**fields):
  config = config_lib.base_config()
  with config.unlocked():
    config.update_from_flattened_dict(TINY | fields)
  return config_lib.resolve(config, 257)


# Multiply-adds per token outside the mixer: the block of the CMS, the logits.
AROUND = 2 * 16 * 32 + 16 * 257


def test_attention_model_by_hand():
  attention = 4 * 16 * 16 + 2 * 8 * 16
  assert flops.flops_per_token(make(), 8) == 6 * (attention + AROUND)


def linear(**fields):
  """Static linear memories, width 8, without what the keyword arguments add."""
  fields = {
    'hidden_multiple': 0,
    'momentum': False,
    'erase': False,
    'objective': 'dot',
    'self_modifying': False,
    'target': 'slow',
    'anchor': 'zero',
    'chunk_size': 4,
    'projection_chunk_size': 4,
  } | fields
  titans = {f'model.titans.{name}': value for name, value in fields.items()}
  return make(**{'model.pattern': 'titans+cms', 'data.seq_len': 16} | titans)


def by_hand(c, *, momentum=False, erase=False):
  """Multiply-adds per token of `linear`, by the chunk form's equations."""
  d, heads = 8, 2
  slow = 5 * 16 * 16  # q, k, v, gate, output
  made = 2 * d * d + 2 * d  # k, v; eta, alpha
  learned = d * d  # U^T R
  read = c * d + d * d + c * d  # Q U^T, Q K, masked E
  if momentum:
    slow += 16 * heads  # beta
    learned += d * d  # the trace's U^T E
    read += d * d  # Q S
    # A B, and the trace's column of it: [c, c] by [c, c + 1], for c + 1 states
    learned += (c + 1) * (c + 1) * c / c
  if erase:
    learned += c * d + d * d + c * d  # Gram, U K, masked Gram E
    learned += d * d if momentum else 0  # U S
    learned += c * d  # (I + L)^-1 times the right side
    read += c * d  # masked Z
    # Two products of [8, 8] merge the halves of a block of 16.
    learned += 2 * 8**3 / c if c == 16 else 0
  return slow + heads * (made + learned + read) + AROUND


@pytest.mark.parametrize('c', [4, 16])
@pytest.mark.parametrize('erase', [False, True])
@pytest.mark.parametrize('momentum', [False, True])
def test_linear_titans_by_hand(c, erase, momentum):
  fields = {'momentum': momentum, 'erase': erase}
  config = linear(chunk_size=c, projection_chunk_size=c, **fields)
  assert flops.flops_per_token(config, 16) == 6 * by_hand(c, **fields)


def test_pallas_counts_as_xla():
  fields = {
    'model.pattern': 'titans+cms',
    'model.titans.chunk_size': 16,
    'model.titans.projection_chunk_size': 16,
    'data.seq_len': 16,
  }
  xla = flops.flops_per_token(make(**fields), 16)
  pallas = make(**fields | {'compute.kernel': 'pallas'})
  assert flops.flops_per_token(pallas, 16) == xla > 0


def test_the_largest_model_is_counted_without_its_parameters():
  """1.3B parameters of float32 would be 5 GB."""
  config = config_lib.base_config()
  config.model.preset, config.data.seq_len = '1.3b', 4096
  config = config_lib.resolve(config, 32_000)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB
  cost = flops.flops_per_token(config, 4096)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
  # Six per parameter, and the memories.
  assert 6 * 1.3e9 < cost < 2 * 6 * 1.3e9


@pytest.mark.parametrize('read', ['token', 'chunk'])
@pytest.mark.parametrize('mode', ['outer', 'in_context'])
def test_every_part_costs(read, mode):
  full = {
    'model.pattern': 'titans+cms',
    'model.titans.read': read,
    'model.titans.q_memory': True,
    'model.titans.objective': 'l2',
    'model.titans.target': 'self',
    'model.cms.mode': mode,
  }
  cost = flops.flops_per_token(make(**full), 64)
  for name, less in (
    ('momentum', False),
    ('erase', False),
    ('self_modifying', False),
    ('target', 'slow'),
    ('q_memory', False),
    ('hidden_multiple', 0),
    ('mix', 'none'),
    ('objective', 'dot'),
    ('output_gate', False),
  ):
    config = make(**full | {f'model.titans.{name}': less})
    assert flops.flops_per_token(config, 64) < cost, name


def test_command_end_to_end(tmp_path):
  config = tmp_path / 'tiny.py'
  config.write_text(
    'from hope.config import base_config\n'
    'def get_config():\n'
    '  config = base_config()\n'
    f'  config.update_from_flattened_dict({TINY!r})\n'
    '  return config\n'
  )
  path = tmp_path / 'result.json'
  command = [sys.executable, '-m', 'hope.throughput', '--steps=2']
  done = subprocess.run(
    [*command, f'--config={config}', f'--json={path}'],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert 'tokens per second' in done.stdout
  result = json.loads(done.stdout.splitlines()[-1])
  assert result == json.loads(path.read_text())
  for name in (
    'tokens_per_second',
    'step_seconds',
    'flops_per_token',
    'model_flops_per_second',
    'matmul_flops_per_second',
    'share_of_matmul_peak',
    'peak_memory_bytes',
    'program_bytes',
    'main_memory_traffic_bytes',
    'compile_seconds',
    'loss',
    'parameters',
  ):
    assert math.isfinite(result[name]) and result[name] > 0, name
  assert result['flops_per_token'] == flops.flops_per_token(make(), 8)


def test_decode():
  result = throughput.measure_decode(
    make(), steps=2, contexts=(8, 16), batch_size=3
  )
  # Keys and values of 8 tokens of width 16 in one layer, and the position.
  assert result['batch_size'] == 3
  assert result['state_bytes'] == 3 * 2 * 8 * 16 * 4 + 4
  assert (result['context_short'], result['context_long']) == (8, 16)
  assert result['seconds_per_token_short'] > 0
  assert result['ratio'] == pytest.approx(
    result['seconds_per_token_long'] / result['seconds_per_token_short']
  )


@pytest.mark.parametrize('run', ['measure', 'measure_decode'])
def test_no_steps_is_refused(run):
  with pytest.raises(ValueError, match='steps=0 must be at least 1'):
    getattr(throughput, run)(make(), 0)
