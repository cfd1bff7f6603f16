"""The accelerator command: its parts, their deadlines, and what it reports."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import rich.console
import worker_cases

from hope import compilation_cache
from hope.config import base_config, resolve
from hope.memory import rule
from hope.profiling import accelerator, accelerator_parts, equality, throughput
from hope.profiling.accelerator_parts import Part

ROOT = pathlib.Path(__file__).resolve().parents[1]
GPU = {'platform': 'gpu', 'memory_limit_bytes': 60 * 2**30}
TPU = {'platform': 'tpu', 'memory_limit_bytes': 15 * 2**30}

# -------------------------------------------------------------------- equality


def test_the_rule_and_the_solve_are_equal():
  for case in ('rule, chunks', 'rule, tokens', 'solve'):
    result = equality.compare(case, 'highest', equality.SMALL)
    assert result['equal'], result
    assert 0 < result['output_error'] <= result['output_bound'] < 1e-4


def test_the_reference_is_the_oracle():
  case = equality._case('rule, chunks', equality.SMALL)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), case.params)
  expected = reference.batched_update(
    p['kernel'],
    p['trace'],
    np.asarray(case.x, np.float64),
    p['g'],
    eta=p['eta'],
    alpha=p['alpha'],
    beta=p['beta'],
    queries=p['queries'],
  )
  actual, _ = equality._reference('rule, chunks', equality.SMALL)
  assert equality.relative_error(actual, expected)[0] <= 1e-12


def _scaled_update(**arguments):
  kernel, trace, reads = rule.token_update(**arguments)
  return 1.001 * kernel, trace, reads


def test_what_differs_is_not_equal(monkeypatch):
  case = lambda sizes: equality._rule_case(sizes, _scaled_update)
  monkeypatch.setitem(equality._CASES, 'scaled', case)
  result = equality.compare('scaled', 'highest', equality.SMALL)
  assert not result['equal']
  assert result['output_error'] > result['output_bound']
  assert result['output_worst'] == '[0]'


def test_errors_by_hand():
  expected = {'a': np.array([1.0, -4.0]), 'b': np.array([0.5])}
  actual = {'a': np.array([1.0, -4.2]), 'b': np.array([0.6])}
  error, where = equality.relative_error(actual, expected)
  assert error == pytest.approx(0.2) and where == "['b']"
  for wrong in (math.inf, math.nan):
    actual['a'][0] = wrong
    assert equality.relative_error(actual, expected) == (math.inf, "['a']")
  with pytest.raises(ValueError, match=r'Shapes \(2, 1\) and \(2,\) differ'):
    equality.relative_error(actual | {'a': np.ones((2, 1))}, expected)


@pytest.mark.parametrize(
  'bits, name', [(23, 'float32'), (10, 'tf32'), (7, 'bfloat16'), (4, None)]
)
def test_the_default_arithmetic_is_measured(bits, name, monkeypatch):
  matmul = jnp.matmul

  def rounded(a, b):
    to = lambda x: jax.lax.reduce_precision(x, 8, bits)
    return matmul(to(a), to(b))

  monkeypatch.setattr(jnp, 'matmul', rounded)
  measured = equality.default_arithmetic.__wrapped__
  if name is None:
    with pytest.raises(RuntimeError, match='is off by'):
      measured()
  else:
    assert measured() == name


@pytest.mark.slow
@pytest.mark.parametrize(
  'case, arithmetic',
  [(case, 'highest') for case in equality.CASES]
  + [(case, 'bfloat16') for case in equality.SETTINGS],
)
def test_every_case_is_equal(case, arithmetic):
  result = equality.compare(case, arithmetic, equality.SMALL)
  assert result['equal'], result


# ------------------------------------------------------------------- deadlines


class Clock:
  """A clock that moves when it is told to."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def outcomes_of(takes, seconds):
  """What becomes of parts that take so long, each at most half the time."""
  clock, allowed, outcomes = Clock(), [], []
  parts = [Part(f'part {j}', 'x', {'takes': t}, 0.5) for j, t in takes.items()]

  def run(part, limit):
    allowed.append(limit)
    takes = part.arguments['takes']
    clock.now += min(takes, limit)
    if takes > limit:
      return {'status': 'skipped', 'reason': 'ended'}
    return {'status': 'done', 'result': {}}

  end = clock.now + seconds
  accelerator.run_parts(parts, run, end, seconds, outcomes.append, clock)
  assert clock.now <= end
  return allowed, [(x['status'], x.get('reason')) for x in outcomes]


def test_a_part_has_its_share_and_what_is_left():
  allowed, outcomes = outcomes_of({0: 30, 1: 200, 2: 10, 3: 5, 4: 1}, 100)
  assert allowed == [50, 50, 20, 10, 5]
  assert [status for status, _ in outcomes] == [
    *('done', 'skipped', 'done', 'done', 'done')
  ]


def test_nothing_begins_without_time():
  allowed, outcomes = outcomes_of({0: 49, 1: 48, 2: 1, 3: 1}, 100)
  assert allowed == [50, 50]
  assert outcomes[2:] == [('skipped', 'no time was left')] * 2


def test_a_worker_ends_what_takes_too_long_and_goes_on():
  worker = accelerator.Worker(worker_cases.serve)
  try:
    assert worker.run(('say', 3), 60) == {'status': 'done', 'result': 3}
    process = worker._process
    outcome = worker.run(('sleep', 600), 0.5)
    assert outcome['status'] == 'skipped'
    assert outcome['reason'] == 'ended after 0 s, its deadline, during: sleep'
    assert not process.is_alive()
    outcome = worker.run(('skip', None), 60)
    assert outcome == {'status': 'skipped', 'reason': 'told so'}
    outcome = worker.run(('end', 7), 60)
    assert outcome['status'] == 'failed'
    assert outcome['reason'] == 'its process ended with exit code 7 during: end'
    assert worker.run(('say', 4), 60)['result'] == 4
  finally:
    worker.close()


class Pipe:
  """A pipe that gives these parts and keeps what is sent."""

  def __init__(self, parts):
    self.parts, self.sent = list(parts), []

  def recv(self):
    if not self.parts:
      raise EOFError
    return self.parts.pop(0)

  def send(self, message):
    self.sent.append(message)


def test_a_failed_part_says_so_in_a_line_and_the_next_one_runs(monkeypatch):
  def bad(note):
    note('here')
    raise KeyError('no such\nthing')

  def unfit(note):
    raise accelerator_parts.SkippedError('too small a device')

  monkeypatch.setitem(accelerator_parts.RUNNERS, 'bad', bad)
  monkeypatch.setitem(accelerator_parts.RUNNERS, 'unfit', unfit)
  monkeypatch.setitem(accelerator_parts.RUNNERS, 'good', lambda note, x: x)
  pipe = Pipe(
    Part('', kind, arguments, 1.0)
    for kind, arguments in (('bad', {}), ('unfit', {}), ('good', {'x': 5}))
  )
  monkeypatch.setattr(compilation_cache, 'use', lambda: None)
  accelerator.serve(pipe)
  assert pipe.sent == [
    ('stage', 'here'),
    ('failed', "KeyError: 'no such\\nthing'"),
    ('skipped', 'too small a device'),
    ('done', 5),
  ]


def test_a_cpu_does_not_stand_in_for_what_was_asked_for(monkeypatch):
  config = types.SimpleNamespace(jax_platforms='cuda', update=lambda *_: None)
  monkeypatch.setattr(jax, 'config', config)
  pipe = Pipe([Part('', 'machine', {}, 1.0)])
  monkeypatch.setattr(compilation_cache, 'use', lambda: None)
  accelerator.serve(pipe)
  assert pipe.sent == [
    (
      'failed',
      'RuntimeError: JAX_PLATFORMS=cuda, but jax sees only a CPU.',
    )
  ]


# ---------------------------------------------------------------------- memory


def too_large():
  """Asks for more memory than any device has."""
  return jax.jit(lambda: jnp.zeros((1 << 45,)))()


def test_the_batch_is_halved_until_it_fits():
  tried = []

  def measure(batch_size):
    tried.append(batch_size)
    if batch_size > 2:
      too_large()
    return {'batch_size': batch_size}

  result = accelerator_parts.largest_that_fits(measure, 8)
  assert tried == [8, 4, 2]
  assert result == {'batch_size': 2, 'too_large_batch_sizes': [8, 4]}


def test_a_sequence_that_does_not_fit_is_skipped():
  with pytest.raises(
    accelerator_parts.SkippedError,
    match='not enough memory for a batch of 4, 2, 1',
  ):
    accelerator_parts.largest_that_fits(lambda _: too_large(), 4)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
  def measure(batch_size):
    raise jax.errors.JaxRuntimeError('INTERNAL: of another kind')

  with pytest.raises(jax.errors.JaxRuntimeError, match='another kind'):
    accelerator_parts.largest_that_fits(measure, 4)


# -------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
  'found', [GPU, TPU, GPU | {'memory_limit_bytes': None}]
)
def test_every_part_of_the_plan_is_valid(found):
  parts = accelerator_parts.plan(found)
  assert len({part.name for part in parts}) == len(parts)
  pallas = [part for part in parts if 'pallas' in part.name]
  assert len(pallas) == (2 if found is TPU else 0)
  for part in parts:
    assert part.kind in accelerator_parts.RUNNERS and 0 < part.share <= 0.4
    if part.kind == 'equality':
      assert part.arguments['case'] in equality.CASES
    if part.kind in ('training', 'decoding'):
      config = base_config()
      config.update_from_flattened_dict(part.arguments['fields'])
      model = resolve(config, part.arguments['vocab_size']).model
      assert model.dtype == 'bfloat16' and model.preset in part.name
  settings = {
    (p.arguments['fields']['model.preset'], p.name.rsplit(' ', 1)[0])
    for p in parts
    if p.kind == 'training'
  }
  for size in ('115m', '350m'):
    for name in ('hope', 'gated delta net', 'attention'):
      assert (size, name) in settings


def test_the_first_batch_is_what_the_memory_may_hold():
  def first(found):
    parts = accelerator_parts.plan(found)
    return next(p for p in parts if p.kind == 'training').arguments[
      'batch_size'
    ]

  assert first(GPU) == 32
  assert first(TPU) == 8
  assert first({'platform': 'gpu', 'memory_limit_bytes': 2**20}) == 1


# ----------------------------------------------------------- results and output

RESULTS = {
  'machine': {
    'platform': 'gpu',
    'device': 'A Card',
    'devices_used': 1,
    'devices': 8,
    'memory_limit_bytes': 60 * 2**30,
    'runtime': 'cuda 12090',
    'driver': 'driver 575',
    'os': 'Linux',
    'python': '3.12.1',
    'versions': {'jax': '0.10.2'},
    'variables': {'XLA_FLAGS': '--a=b'},
    'jax_default_matmul_precision': None,
  },
  'peaks': {
    'matmul_bfloat16_flops_per_second': 8e14,
    'matmul_float32_default_flops_per_second': 4e14,
    'matmul_float32_highest_flops_per_second': 5e13,
    'memory_bytes_per_second': 2e12,
    'default_float32_matmuls_are': 'tf32',
  },
  'equality': {
    'case': 'hope',
    'arithmetic': 'default',
    'output_error': 1.5e-4,
    'output_bound': 5e-2,
    'gradient_error': 2.5e-4,
    'gradient_bound': 2e-1,
    'equal': True,
  },
  'training': {
    'parameters': 115_000_000,
    'batch_size': 16,
    'seq_len': 2048,
    'too_large_batch_sizes': [32],
    'tokens_per_second': 65_536.0,
    'step_seconds': 0.5,
    'model_flops_per_second': 2e14,
    'main_memory_traffic_bytes': 6e11,
    'program_bytes': 3 * 2**30,
    'compile_seconds': 41.0,
    'compiled': 'by an earlier start',
  },
  'decoding': {
    'context_short': 64,
    'context_long': 2048,
    'seconds_per_token_short': 1e-3,
    'seconds_per_token_long': 2e-3,
    'parameter_bytes': 400_000_000,
    'state_bytes': 50_000_000,
  },
}


class FakeWorker:
  """Gives RESULTS; what `changed` has for a part's name instead."""

  def __init__(self, **changed):
    self.changed, self.closed = changed, False

  def run(self, part, seconds):
    outcome = self.changed.get(re.split('[ ,]', part.name)[0])
    if isinstance(outcome, BaseException):
      raise outcome
    return outcome or {'status': 'done', 'result': dict(RESULTS[part.kind])}

  def close(self):
    self.closed = True


def execute(folder, worker):
  """The exit code, the text and the JSON of a run with a fake worker."""
  console = rich.console.Console(
    width=160, record=True, file=open(os.devnull, 'w')
  )
  code = accelerator.execute(folder, 6, None, worker, console)
  content = json.loads((folder / 'accelerator.json').read_text())
  return code, console.export_text(), content


def test_results_are_printed_and_written(tmp_path):
  worker = FakeWorker()
  code, text, content = execute(tmp_path / 'new', worker)
  assert code == 0 and worker.closed
  assert content['complete'] and content['failed'] == []
  assert not content['small']
  assert [x['name'] for x in content['parts']] == [
    'machine',
    *(part.name for part in accelerator_parts.plan(RESULTS['machine'])),
  ]
  kinds = {x['kind']: x['result'] for x in content['parts']}
  assert kinds['training']['share_of_matmul_peak'] == 0.25
  assert kinds['training']['share_of_bandwidth'] == pytest.approx(0.6)
  assert kinds['decoding']['share_of_bandwidth_short'] == pytest.approx(0.25)
  assert kinds['decoding']['share_of_bandwidth_long'] == pytest.approx(0.125)
  for words in (
    *('A Card (gpu)', '1 of 8', 'driver 575', 'jax 0.10.2', 'XLA_FLAGS=--a=b'),
    *('800.00 TFLOP/s', 'default precision (tf32)', '2,000.0 GB/s'),
    *('1.5e-04', '5.0e-02', '2.5e-04', '65,536', 'a batch of 32 did not fit'),
    *(
      'hope 115m',
      '25.0%',
      '60.0%',
      '3.00 ',
      'before',
      '1.000',
      '2.000',
    ),
  ):
    assert words in text, words


def test_what_is_not_equal_or_fails_is_the_exit_code(tmp_path, capsys):
  unequal = {'status': 'done', 'result': RESULTS['equality'] | {'equal': False}}
  code, text, content = execute(tmp_path, FakeWorker(solve=unequal))
  assert code == 1 and content['failed'] == ['solve, highest']
  assert (
    'error: not equal, or failed: solve, highest' in capsys.readouterr().err
  )
  assert ' NO' in text and len(content['parts']) > 10

  broken = {'status': 'failed', 'reason': 'a reason'}
  code, text, content = execute(tmp_path, FakeWorker(peaks=broken))
  assert code == 1 and content['failed'] == ['peaks']
  assert 'failed: peaks: a reason' in text
  assert 'share_of_matmul_peak' not in content['parts'][5]['result']


def test_what_is_skipped_is_listed_and_no_failure(tmp_path):
  skipped = {'status': 'skipped', 'reason': 'compile took too long'}
  code, text, content = execute(tmp_path, FakeWorker(attention=skipped))
  assert code == 0
  assert 'skipped: attention 350m: compile took too long' in text
  code, text, content = execute(tmp_path, FakeWorker(machine=skipped))
  assert code == 0 and len(content['parts']) == 1


def test_a_run_that_is_killed_leaves_what_it_has(tmp_path):
  worker = FakeWorker(solve=KeyboardInterrupt())
  with pytest.raises(KeyboardInterrupt):
    execute(tmp_path, worker)
  content = json.loads((tmp_path / 'accelerator.json').read_text())
  assert [x['name'] for x in content['parts']] == [
    *('machine', 'peaks', 'rule, chunks, highest')
  ]
  assert not content['complete'] and worker.closed


# ------------------------------------------------------------------ small runs


def test_a_training_part_times_one_device(monkeypatch):
  def time_steps(config, steps, mesh, note):
    note('steps')
    if config.data.batch_size > 1:
      too_large()
    return {'vocab_size': config.model.vocab_size, 'devices': mesh.size}

  monkeypatch.setattr(throughput, 'time_steps', time_steps)
  parts = accelerator_parts.small_plan()
  part = next(part for part in parts if part.kind == 'training')
  stages = []
  result = accelerator_parts.train(**part.arguments, note=stages.append)
  assert stages == ['steps, batch 2', 'steps, batch 1']
  assert result == {
    'vocab_size': 61,
    'devices': 1,
    'too_large_batch_sizes': [2],
  }


def test_bandwidth_counts_three_passes(monkeypatch):
  ticks = iter([0, 100, 0, 8, 0, 2])  # the first is not timed
  clock = types.SimpleNamespace(perf_counter=lambda: next(ticks))
  monkeypatch.setattr(throughput, 'time', clock)
  assert throughput.memory_bandwidth(4096, repeats=2) == 3 * 4096 / 2


BLOCKED = """
import sys
for name in ('grain', 'tensorflow_datasets', 'tensorboardX', 'tokenizers',
             'matplotlib', 'orbax', 'tensorflow'):
  sys.modules[name] = None
from hope.profiling import accelerator, accelerator_parts
from hope import compilation_cache
from jax._src import xla_bridge

compilation_cache.use()
accelerator_parts.plan({'platform': 'gpu', 'memory_limit_bytes': None})
assert not xla_bridge.backends_are_initialized()
"""


def test_it_needs_few_packages_and_leaves_the_device_to_its_worker():
  done = subprocess.run(
    [sys.executable, '-c', BLOCKED], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_command_on_a_cpu(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'hope.accelerator', f'--output={tmp_path}'],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=550,
  )
  assert done.returncode == 0, done.stderr
  assert 'jax sees no GPU or TPU: the small form' in done.stdout
  content = json.loads((tmp_path / 'accelerator.json').read_text())
  assert content['complete'] and content['small']
  assert [x['status'] for x in content['parts']] == ['done'] * 8
  for part in content['parts']:
    if part['kind'] == 'training':
      assert 0 < part['result']['share_of_matmul_peak'] < 1
      assert part['result']['share_of_bandwidth'] > 0
