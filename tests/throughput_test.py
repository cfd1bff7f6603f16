"""Operations against counts by hand, and the command end to end."""

import json
import math
import os
import pathlib
import subprocess
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from hope import config as config_lib
from hope.model import Hope
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


def test_attention_model_by_hand():
  attention = 4 * 16 * 16 + 2 * 8 * 16
  cms = 2 * 16 * 32
  logits = 16 * 257
  assert flops.flops_per_token(make(), 8) == 6 * (attention + cms + logits)


def test_delta_rule_by_hand():
  # Gram, U K, Gram E, inverse, its product and U^T R, of 6 tokens; [4, 5].
  block = 6 * 6 * 4 + 6 * 4 * 5 + 6 * 6 * 5 + 72 + 6 * 6 * 5 + 6 * 4 * 5
  options = {'momentum': False, 'erase': True, 'read': False}
  assert 6 * flops.update(6, 4, 5, **options) == pytest.approx(block)
  # With momentum: U S and the trace's U^T E.
  options['momentum'] = True
  block += 2 * 6 * 4 * 5
  assert 6 * flops.update(6, 4, 5, **options) == pytest.approx(block)
  # With reads: Q U^T, Q K, Q S, two masked products.
  options['read'] = True
  block += 6 * 6 * 4 + 2 * 6 * 4 * 5 + 2 * 6 * 6 * 5
  assert 6 * flops.update(6, 4, 5, **options) == pytest.approx(block)


def test_linear_titans_by_hand():
  config = make(
    **{
      'model.pattern': 'titans+cms',
      'model.titans.hidden_multiple': 0,
      'model.titans.momentum': False,
      'model.titans.erase': False,
      'model.titans.objective': 'dot',
      'model.titans.self_modifying': False,
      'model.titans.self_target': False,
      'model.titans.anchor': 'zero',
      'model.titans.chunk_size': 4,
      'model.titans.projection_chunk_size': 4,
    }
  )
  d, c = 8, 4
  slow = 4 * 16 * 16
  made = 2 * d * d + 2 * d  # k, v; eta, alpha
  learned = d * d  # U^T R
  read = c * d + d * d + c * d  # Q U^T, Q K, masked E
  assert flops.titans(config, 8) == slow + 2 * (made + learned + read)


@pytest.mark.parametrize('read', ['token', 'chunk'])
@pytest.mark.parametrize('mode', ['outer', 'in_context'])
def test_every_part_costs(read, mode):
  full = {
    'model.pattern': 'titans+cms',
    'model.titans.read': read,
    'model.titans.q_memory': True,
    'model.cms.mode': mode,
  }
  cost = flops.flops_per_token(make(**full), 64)
  for name, less in (
    ('momentum', False),
    ('erase', False),
    ('self_modifying', False),
    ('self_target', False),
    ('q_memory', False),
    ('hidden_multiple', 0),
    ('mix', 'none'),
    ('objective', 'dot'),
  ):
    config = make(**full | {f'model.titans.{name}': less})
    assert flops.flops_per_token(config, 64) < cost, name


def count_products(jaxpr):
  """Multiply-adds of the products in a jaxpr, scans unrolled."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      depth = math.prod(shape[axis] for axis in contracted)
      total += depth * math.prod(equation.outvars[0].aval.shape)
    values = jax.tree.leaves(list(equation.params.values()))
    jaxprs = [getattr(value, 'jaxpr', value) for value in values]
    inner = sum(count_products(j) for j in jaxprs if hasattr(j, 'eqns'))
    total += inner * equation.params.get('length', 1)
  return total


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'read': 'chunk', 'anchor': 'zero', 'q_memory': True},
    {'momentum': False, 'self_target': False, 'mix': 'none'},
    {'erase': False, 'hidden_multiple': 2},
    {'hidden_multiple': 0},
    {'self_modifying': False, 'projection_chunk_size': 32},
    {'in_context': True},
  ],
  ids=lambda fields: '-'.join(fields) or 'default',
)
def test_count_is_that_of_the_traced_model(fields):
  fields = dict(fields)
  cms = {'model.cms.periods': (32, 64)}
  if fields.pop('in_context', False):
    cms['model.cms.mode'] = 'in_context'
  titans = {f'model.titans.{name}': value for name, value in fields.items()}
  config = make(
    **{'model.pattern': 'titans+cms', 'model.width': 32, 'model.num_layers': 2}
    | cms
    | titans
  )
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  graph, params = nnx.split(model)
  tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
  jaxpr = jax.make_jaxpr(lambda p, x: nnx.merge(graph, p)(x)[0])(params, tokens)
  counted = 6 * count_products(jaxpr.jaxpr) / (2 * 128)
  # Inverses begin with blocks of 8 rows, that are no products.
  assert flops.flops_per_token(config, 128) == pytest.approx(counted, rel=0.01)


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
