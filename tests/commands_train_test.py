"""Whole runs by their commands: killed, terminated, refused, and read back."""

import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from conftest import cpu_devices, terminal_signals, write_texts
from flax import nnx
import jax
import ml_collections
import numpy as np
import pytest

from hope import sampling, trained
from hope.parallel.mesh import one_device
from hope.run.checkpoint import CheckpointError, open_checkpoints
from hope.training import loop
from hope.training import step as step_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 60
# In one process: the tests share a run.
pytestmark = pytest.mark.xdist_group('run')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with a corpus and a configuration."""
  folder = tmp_path_factory.mktemp('home')
  write_texts(folder / 'text', 400)
  (folder / 'tiny.py').write_text(
    'from hope.config import base_config\n'
    'def get_config():\n'
    '  config = base_config()\n'
    '  config.model.num_layers, config.model.width = 2, 32\n'
    '  config.model.num_heads = 1\n'
    '  config.model.cms.periods = (1, 3)\n'
    '  titans = config.model.titans\n'
    '  titans.chunk_size = titans.projection_chunk_size = 16\n'
    f'  config.data.source = "text:{folder}/text/*.txt"\n'
    '  config.data.heldout_fraction = 0.1\n'
    '  config.data.seq_len, config.data.batch_size = 128, 8\n'
    f'  config.train.steps, config.log.every = {STEPS}, 4\n'
    '  config.evals.every, config.evals.batches = 20, 1\n'
    '  config.checkpoint.every = 10\n'
    '  config.sample.tokens = 8\n'
    '  return config\n'
  )
  return folder


def start(home, workdir, *overrides):
  command = [sys.executable, '-m', 'hope.main', f'--config={home}/tiny.py']
  with terminal_signals():
    return subprocess.Popen(
      [*command, f'--workdir={workdir}', *overrides],
      cwd=ROOT,
      env=cpu_devices(2),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )


def complete(home, workdir, *overrides):
  process = start(home, workdir, *overrides)
  output, _ = process.communicate(timeout=400)
  return process.returncode, output


def lines(workdir):
  path = workdir / 'metrics.jsonl'
  return path.read_text().splitlines() if path.exists() else []


def wait_for_step(process, workdir, step):
  """Until the metrics of this step are there."""
  for _ in range(4000):
    done = [json.loads(line)['step'] for line in lines(workdir)[-1:]]
    if done and done[0] >= step:
      return
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.05)
  raise AssertionError(f'step {step} was not reached')


def restore(workdir):
  config = json.loads((workdir / 'config.json').read_text())
  config = ml_collections.FrozenConfigDict(config)
  _, state = step_lib.abstract_state(config, one_device())
  with open_checkpoints(workdir, config) as checkpoints:
    return checkpoints.restore_latest(state)


@pytest.fixture(scope='module')
def finished(home):
  """A run that nothing disturbed."""
  workdir = home / 'undisturbed'
  code, output = complete(home, workdir)
  assert code == 0, output
  # Results, sample and files fit a screen of 24 lines of 80 columns.
  screen = output[output.index('Held out after') :].splitlines()
  assert len(screen) <= 23
  assert all(len(line) <= 79 for line in screen if str(workdir) not in line)
  for part in ('bits per byte', 'xz -9', 'A sample', 'Done.', '--describe'):
    assert part in '\n'.join(screen)
  for name in (
    *('results.json', 'sample.txt', 'curves.png', 'memories.png'),
    *('inner_losses.json', 'inner_losses.png', 'timing.jsonl', 'tensorboard'),
  ):
    assert (workdir / name).exists(), name
  return workdir


def assert_same_end(workdir, reference):
  restored, expected = restore(workdir), restore(reference)
  assert restored.step == expected.step == STEPS
  assert restored.data_state == expected.data_state
  leaves, structure = jax.tree.flatten(restored.state)
  expected_leaves, expected_structure = jax.tree.flatten(expected.state)
  assert structure == expected_structure
  for leaf, wanted in zip(leaves, expected_leaves, strict=True):
    np.testing.assert_array_equal(leaf, wanted)
  assert lines(workdir) == lines(reference)
  results = [(w / 'results.json').read_text() for w in (workdir, reference)]
  assert results[0] == results[1]


@pytest.mark.slow
def test_five_kills_change_nothing(home, finished):
  workdir, rng = home / 'killed', random.Random(0)
  for round_ in range(5):
    process = start(home, workdir)
    wait_for_step(process, workdir, 9 * round_ + 9)
    kill(process, rng)
  steps = [json.loads(line)['step'] for line in lines(workdir)]
  assert max(steps) < STEPS
  code, output = complete(home, workdir)
  assert code == 0, output
  assert 'Going on from the checkpoint of step' in output
  assert_same_end(workdir, finished)


def kill(process, rng):
  """kill -9 at a random moment."""
  time.sleep(0.2 * rng.random())
  assert process.poll() is None, 'the run ended before it was killed'
  process.kill()
  process.communicate()


def test_sigterm_saves_and_a_kill_loses_nothing(home, finished):
  workdir = home / 'terminated'
  process = start(home, workdir)
  wait_for_step(process, workdir, 8)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=100)
  assert process.returncode == 0, output
  assert 'the same command goes on from there' in output
  saved = restore(workdir).step
  assert 8 <= saved < STEPS
  assert f'step {saved} of {STEPS} is saved' in ' '.join(output.split())
  process = start(home, workdir)
  wait_for_step(process, workdir, saved + 16)
  kill(process, random.Random(0))
  code, output = complete(home, workdir)
  assert code == 0, output
  assert 'Going on from the checkpoint of step' in output
  assert_same_end(workdir, finished)


def test_ctrl_c_saves(home):
  workdir = home / 'interrupted'
  process = start(home, workdir)
  wait_for_step(process, workdir, 8)
  process.send_signal(signal.SIGINT)
  output, _ = process.communicate(timeout=100)
  assert process.returncode == 0, output
  assert 'Traceback' not in output
  assert 8 <= restore(workdir).step < STEPS


# hope.main that gets SIGTERM when the last checkpoint is written.
TOLD_LATE = """
import os, signal, time
from hope.run import checkpoint
wait = checkpoint.Checkpointer.wait
def told(self):
  wait(self)
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.5)
checkpoint.Checkpointer.wait = told
from hope.commands import train
train.start()
"""


@pytest.mark.slow
def test_sigterm_after_the_last_step_does_not_wait_for_results(home):
  workdir = home / 'late'
  done = subprocess.run(
    [
      *(sys.executable, '-c', TOLD_LATE, f'--config={home}/tiny.py'),
      f'--workdir={workdir}',
      '--config.train.steps=3',
      '--config.optimizer.warmup_steps=1',
    ],
    cwd=ROOT,
    env=cpu_devices(2),
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr
  assert 'all 3 steps are saved' in ' '.join(done.stdout.split())
  assert restore(workdir).step == 3
  assert not (workdir / 'results.json').exists()


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_during_compilation_ends_a_run_at_once(home, number, code):
  workdir = home / f'compiling_{code}'
  process = start(home, workdir)
  while not (workdir / 'config.json').exists():
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.02)
  begin = time.monotonic()
  process.send_signal(number)
  output, _ = process.communicate(timeout=100)
  assert time.monotonic() - begin < 5
  assert process.returncode == code, output
  assert 'there was nothing to save' in output and 'Traceback' not in output


def test_loss_that_is_not_finite_stops_the_run(home):
  workdir = home / 'diverged'
  code, output = complete(
    home,
    workdir,
    '--config.optimizer.learning_rate=1e30',
    '--config.optimizer.warmup_steps=2',
    '--config.checkpoint.every=1',
  )
  assert code == 1, output
  (path,) = workdir.glob('nonfinite_batch_step_*.npz')
  step = int(path.stem.rsplit('_', 1)[1])
  assert f'step {step}: loss' in output and 'The largest memory is' in output
  assert np.load(path)['inputs'].shape == (8, 128)
  good = restore(workdir)
  assert 0 < good.step < step
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(good.state.params))


def test_metrics_name_every_memory(finished):
  record = json.loads(lines(finished)[-2])
  for name in ('k', 'v', 'eta', 'alpha', 'memory'):
    for layer in range(2):
      assert record[f'{name}/state_norm/layer_{layer}'] > 0


def test_inner_losses_are_kept_by_layer_and_position(finished):
  record = json.loads(lines(finished)[-1])
  assert record['kind'] == 'eval'
  kept = json.loads((finished / 'inner_losses.json').read_text())
  tokens = np.array(kept['tokens'])
  for name in ('k', 'v', 'eta', 'alpha', 'memory'):
    for layer in range(2):
      name_of_layer = f'{name}/inner_loss/layer_{layer}'
      mean = np.average(kept['by_position'].pop(name_of_layer), weights=tokens)
      np.testing.assert_allclose(record[name_of_layer], mean, rtol=1e-4)
  # What k, v, eta and alpha are against what their initial states would be.
  assert {x.partition('/')[2] for x in kept['by_position']} == {
    'change/layer_0',
    'change/layer_1',
  }
  for change in kept['by_position'].values():
    assert change[0] < 1e-6 < max(change)


def test_generate(home, finished):
  command = [sys.executable, '-m', 'hope.generate', f'--workdir={finished}']

  def text(*flags):
    done = subprocess.run(
      [*command, '--prompt=memory ', '--tokens=20', *flags],
      cwd=ROOT,
      env=cpu_devices(2),
      capture_output=True,
      text=True,
      timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  first = text('--seed=1')
  assert first.startswith('memory ')
  assert first != text('--seed=2', '--temperature=2')


@pytest.fixture(scope='module')
def loaded(finished):
  """(structure, parameters, a prompt)."""
  model = trained.load(finished)
  prompt = model.tokenizer.encode('memory learns the kernel slowly')[None]
  return model.graph, model.params, prompt


def test_a_run_is_evaluated_again(finished, tmp_path):
  results = json.loads((finished / 'results.json').read_text())
  path = tmp_path / 'result.json'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'hope.evaluate', f'--workdir={finished}'),
      f'--json={path}',
    ],
    cwd=ROOT,
    env=cpu_devices(1),
    capture_output=True,
    text=True,
    timeout=200,
  )
  assert done.returncode == 0, done.stderr
  assert 'The model' in done.stdout and f'step {STEPS} of' in done.stdout
  found = json.loads(path.read_text())
  assert found['result'] == pytest.approx(results['heldout'], rel=1e-4)
  assert found['baselines'] == results['baselines']


@pytest.mark.slow
def test_reading_a_text_helps_with_what_follows(finished, home):
  model = trained.load(finished)
  gains = []
  for path in sorted((home / 'text').iterdir())[:6]:
    text = path.read_text()
    state = model.read(text[:200])
    gains.append(
      model.evaluate(text[200:300])['loss']
      - model.evaluate(text[200:300], state)['loss']
    )
  assert np.mean(gains) > 0, gains


def test_a_run_of_a_kernel_for_tpus_speaks(finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  config['compute']['kernel'] = 'pallas'
  (workdir / 'config.json').write_text(json.dumps(config))
  model = trained.load(workdir)
  assert model.config.compute.kernel == 'xla'
  expected = restore(finished).state.params
  jax.tree.map(np.testing.assert_array_equal, model.params, expected)


def test_a_run_whose_checkpoints_are_all_damaged(finished, tmp_path):
  """Said in lines of its own, with exit code 2."""
  workdir = shutil.copytree(finished, tmp_path / 'run')
  steps = list((workdir / 'checkpoints').iterdir())
  for step in steps:
    shutil.rmtree(step / 'state')
  config = json.loads((workdir / 'config.json').read_text())
  message = f'None of the {len(steps)} checkpoints'
  with pytest.raises(CheckpointError, match=message):
    trained.load(workdir)
  with pytest.raises(CheckpointError, match=message):
    loop.run(ml_collections.ConfigDict(config), str(workdir))
  assert len(list((workdir / 'checkpoints').iterdir())) == len(steps)


def test_a_seed_draws_one_text(loaded):
  one, two, other = (
    sampling.generate(*loaded, 20, temperature=2.0, seed=seed)
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(one, two)
  assert (one != other).any()


def test_greedy_decoding_is_the_whole_pass(loaded):
  """The state carries the whole prompt, and each token that was drawn."""
  graph, params, prompt = loaded
  new = sampling.generate(graph, params, prompt, 8, temperature=0.0)
  tokens = np.concatenate([prompt, new], axis=1)
  logits, _ = nnx.merge(graph, params)(tokens)
  start = prompt.shape[1] - 1
  expected = np.argmax(logits[:, start:-1], axis=-1)
  np.testing.assert_array_equal(new, expected)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('data.source', 'text:{home}/none/*.txt', 'none/*.txt'),
    ('data.source', 'text:{home}/empty/*.txt', 'empty'),
    ('data.tokenizer', 'bpe:{home}/none.json', 'no such file'),
    ('data.seq_len', 100_000, 'data.seq_len=100000'),
    ('model.num_heads', 5, 'does not divide'),
    ('model.titans.chunk_size', 24, 'must divide'),
    ('train.accumulate', 3, 'does not divide'),
    ('train.accumulate', 0, 'must be at least 1'),
    ('data.batch_size', 0, 'must be at least 1'),
    ('mesh.tensor', 4, 'does not divide model.num_heads=1'),
    ('mesh.data', 7, 'but there are'),
    ('model.preset', 'large', 'choose one of'),
    ('sample.tokens', 0, 'must be at least 1'),
    ('sample.temperature', -1.0, 'must not be negative'),
    ('sample.prompt', '', 'sample.prompt is empty'),
    ('workdir', '{home}/tiny.py', 'No files can be written'),
    ('workdir', '{home}/other', 'another version'),
  ],
)
def test_user_errors_come_before_compilation(
  home, monkeypatch, field, value, message
):
  (home / 'empty').mkdir(exist_ok=True)
  (home / 'empty' / 'nothing.txt').touch()
  (home / 'other').mkdir(exist_ok=True)
  (home / 'other' / 'config.json').write_text('{"seed": 7}')
  # Nothing may be built.
  monkeypatch.setattr(step_lib, 'abstract_state', None)
  space = {}
  exec((home / 'tiny.py').read_text(), space)
  config, workdir = space['get_config'](), str(home / 'refused')
  value = value.format(home=home) if isinstance(value, str) else value
  if field == 'workdir':
    workdir = value
  else:
    config.update_from_flattened_dict({field: value})
  with pytest.raises((ValueError, OSError), match=re.escape(message)):
    loop.run(config, workdir)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config={home}/tiny.py', '--distributed=auto'],
      '--workdir=DIR is missing',
    ),
    (['--config=smok'], 'Did you mean smoke?'),
    (
      ['--config={home}/tiny.py', '--config.train.stepps=3', '--workdir=x'],
      'Did you mean train.steps?',
    ),
    (['--config={home}/absent.py', '--workdir=x'], 'absent.py'),
  ],
  ids=['no workdir', 'mistyped name', 'mistyped field', 'no experiment'],
)
def test_command_line_errors(home, flags, message):
  done = subprocess.run(
    [sys.executable, '-m', 'hope.main', *(f.format(home=home) for f in flags)],
    cwd=ROOT,
    env=cpu_devices(2),
    capture_output=True,
    text=True,
    timeout=100,
  )
  assert done.returncode == 2
  assert message in done.stderr and 'Traceback' not in done.stderr
