"""Runs of several processes: moved to other meshes, and hurt in every way."""

import contextlib
import errno
import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

from conftest import cpu_devices, free_port, terminal_signals, write_texts
import pytest

from hope.parallel import multihost
from hope.run.checkpoint import CheckpointError

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, EVERY = 12, 4
pytestmark = pytest.mark.xdist_group('multihost')
# hope.main, in which something happens when a batch is read.
PROGRAM = """
import os, signal, sys, time
fault, step, pause = sys.argv.pop(1).split(':')
from hope.data import pipeline
read, calls = pipeline.BatchIterator.__next__, 0
def faulty(self):
  global calls
  calls += 1
  time.sleep(float(pause))
  if calls == int(step):
    if fault == 'raise':
      raise RuntimeError('a fault')
    if fault == 'sleep':
      time.sleep(1e6)
    if fault in ('SIGKILL', 'SIGTERM', 'SIGSTOP'):
      os.kill(os.getpid(), getattr(signal, fault))
  return read(self)
pipeline.BatchIterator.__next__ = faulty
from hope.commands import train
train.start()
"""
AXES = ('data', 'fsdp', 'seq', 'tensor')
TITANS = '--config.model.pattern=titans+cms'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with texts and a configuration."""
  folder = tmp_path_factory.mktemp('home')
  write_texts(folder / 'text', 100)
  (folder / 'tiny.py').write_text(
    'from hope.config import base_config\n'
    'def get_config():\n'
    '  config = base_config()\n'
    '  config.model.num_layers, config.model.width = 2, 32\n'
    '  config.model.num_heads, config.model.pattern = 4, "attention+cms"\n'
    '  config.model.cms.periods = (1, 3)\n'
    '  titans = config.model.titans\n'
    '  titans.chunk_size = titans.projection_chunk_size = 16\n'
    f'  config.data.source = "text:{folder}/text/*.txt"\n'
    '  config.data.heldout_fraction = 0.2\n'
    '  config.sample.tokens = 4\n'
    '  config.data.seq_len, config.data.batch_size = 32, 8\n'
    '  config.optimizer.warmup_steps = 2\n'
    f'  config.train.steps, config.log.every = {STEPS}, 1\n'
    '  config.evals.every, config.evals.batches = 100, 1\n'
    f'  config.checkpoint.every = {EVERY}\n'
    '  return config\n'
  )
  return folder


class Gang:
  """Processes of one run."""

  def __init__(self, home, workdir, processes, devices, flags=(), faults=()):
    address = f'127.0.0.1:{free_port()}'
    self.processes = []
    for index in range(processes):
      distributed = f'{address},{processes},{index}'
      fault = dict(faults).get(index, 'none:0:0')
      self.processes.append(
        subprocess.Popen(
          [
            *(sys.executable, '-c', PROGRAM, fault),
            f'--config={home}/tiny.py',
            f'--workdir={workdir}',
            f'--distributed={"off" if processes == 1 else distributed}',
            *flags,
          ],
          cwd=ROOT,
          env=cpu_devices(devices)
          | {
            'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0',
            'JAX_COMPILATION_CACHE_DIR': f'{workdir}-programs',
          },
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
        )
      )

  def wait(self, timeout=500):
    """(exit codes, outputs, seconds between the first end and the last)."""
    ends = {}
    begin = time.monotonic()
    while len(ends) < len(self.processes):
      for index, process in enumerate(self.processes):
        if index not in ends and process.poll() is not None:
          ends[index] = time.monotonic()
      assert time.monotonic() < begin + timeout, self.kill()
      time.sleep(0.05)
    outputs = [process.communicate()[0] for process in self.processes]
    codes = [process.returncode for process in self.processes]
    return codes, outputs, max(ends.values()) - min(ends.values())

  def kill(self):
    for process in self.processes:
      process.kill()
    return [process.communicate()[0] for process in self.processes]


def run(home, workdir, processes=2, devices=1, flags=()):
  codes, outputs, _ = Gang(home, workdir, processes, devices, flags).wait()
  assert codes == [0] * processes, outputs
  return outputs


def losses(workdir):
  """Loss of every step, as text, so that bits are compared."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  return {r['step']: r['loss'] for r in records if r['kind'] == 'train'}


def sizes(*axes):
  return [f'--config.mesh.{a}={n}' for a, n in zip(AXES, axes, strict=True)]


@pytest.fixture(scope='module')
def undisturbed(home):
  workdir = home / 'undisturbed'
  outputs = run(home, workdir)
  assert 'Done.' in outputs[0]
  # Process 0 alone says what happens.
  assert not [x for x in outputs[1].splitlines() if 'step' in x]
  assert list(losses(workdir)) == list(range(1, STEPS + 1))
  # The first process would read what the others have to compile.
  assert not list(home.glob('undisturbed-programs/*'))
  return workdir


def goes_on(home, workdir, undisturbed):
  """Starts the same command again; the run ends as if nothing had been."""
  outputs = run(home, workdir)
  assert losses(workdir) == losses(undisturbed), outputs
  return outputs


@pytest.mark.parametrize(
  ('fault', 'codes'),
  [
    # The others see the connection break, or the coordinator does.
    ((1, 'SIGKILL:9:0.3'), {multihost.BROKEN, -signal.SIGABRT}),
    pytest.param(
      (0, 'SIGKILL:9:0.3'),
      {multihost.BROKEN, -signal.SIGABRT},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      (1, 'raise:9:0.3'),
      {multihost.BROKEN, -signal.SIGABRT},
      marks=pytest.mark.slow,
    ),
  ],
  ids=['killed', 'coordinator killed', 'exception'],
)
def test_the_death_of_one_ends_all_within_seconds(
  home, undisturbed, tmp_path, fault, codes
):
  index, text = fault
  gang = Gang(home, tmp_path / 'run', 2, 1, faults=[fault])
  found, outputs, seconds = gang.wait()
  dead = -signal.SIGKILL if 'SIGKILL' in text else multihost.FAILED
  assert found[index] == dead, outputs
  assert found[1 - index] in codes, outputs
  assert seconds < 20
  if dead == multihost.FAILED:
    assert 'RuntimeError: a fault' in outputs[index]
  print(f'{text}: noticed after {seconds:.1f} s')
  outputs = goes_on(home, tmp_path / 'run', undisturbed)
  assert 'Going on from the checkpoint of step' in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
def test_one_is_killed_while_all_save(home, undisturbed, tmp_path, index):
  workdir = tmp_path / 'run'
  slowly = [(0, 'none:0:0.3'), (1, 'none:0:0.3')]
  gang = Gang(home, workdir, 2, 1, faults=slowly)
  unfinished = f'checkpoints/{2 * EVERY}.orbax-checkpoint-tmp*'
  while not list(workdir.glob(unfinished)):
    assert all(p.poll() is None for p in gang.processes), gang.kill()
    time.sleep(0.001)
  for process in gang.processes:
    process.send_signal(signal.SIGSTOP)
  assert list(workdir.glob(unfinished)), 'the save was over too soon'
  gang.processes[index].kill()
  gang.processes[1 - index].send_signal(signal.SIGCONT)
  codes, outputs, _ = gang.wait()
  assert codes[index] == -signal.SIGKILL
  assert codes[1 - index] in {multihost.BROKEN, -signal.SIGABRT}, outputs
  outputs = goes_on(home, workdir, undisturbed)
  assert f'Going on from the checkpoint of step {EVERY}' in outputs[0]


@pytest.mark.slow
def test_a_process_that_is_stuck_ends_by_its_watchdog(
  home, undisturbed, tmp_path
):
  flags = ['--config.processes.watchdog=15']
  gang = Gang(home, tmp_path / 'run', 2, 1, flags, [(1, 'sleep:9:0.3')])
  codes, outputs, _ = gang.wait()
  assert multihost.STUCK in codes, outputs
  stuck = outputs[codes.index(multihost.STUCK)]
  assert 'nothing has happened for 16 s (processes.watchdog=15)' in stuck
  assert 'Thread 0x' in stuck
  goes_on(home, tmp_path / 'run', undisturbed)


@pytest.mark.slow
def test_a_process_that_stops_for_a_while_is_waited_for(
  home, undisturbed, tmp_path
):
  gang = Gang(home, tmp_path / 'run', 2, 1, faults=[(1, 'SIGSTOP:9:0.3')])
  slow = gang.processes[1]
  while (
    'T' not in pathlib.Path(f'/proc/{slow.pid}/stat').read_text().split()[2]
  ):
    time.sleep(0.1)
  time.sleep(20)
  slow.send_signal(signal.SIGCONT)
  codes, outputs, _ = gang.wait()
  assert codes == [0, 0], outputs
  assert losses(tmp_path / 'run') == losses(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize('who', [(0,), (0, 1)])
def test_sigterm_saves_the_same_step_everywhere(
  home, undisturbed, tmp_path, who
):
  """Twice in a row, to one process or to all of them."""
  workdir, saved = tmp_path / 'run', [0]
  for step in (3, 2) if len(who) > 1 else (3,):
    faults = [(index, f'SIGTERM:{step}:0.3') for index in who]
    codes, outputs, _ = Gang(home, workdir, 2, 1, faults=faults).wait()
    assert codes == [multihost.PREEMPTED] * 2, outputs
    text = ' '.join(outputs[0].split())
    assert 'Terminated: step' in text
    saved.append(int(text.split('Terminated: step')[1].split()[0]))
  assert sorted(saved) == saved and saved[-1] < STEPS
  outputs = goes_on(home, workdir, undisturbed)
  assert f'checkpoint of step {saved[-1]}' in outputs[0]


@pytest.mark.slow
def test_a_flipped_bit_in_the_newest_checkpoint(home, undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  files = [
    p
    for p in (workdir / 'checkpoints' / str(STEPS)).rglob('d/*')
    if p.is_file()
  ]
  largest = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  outputs = goes_on(home, workdir, undisturbed)
  assert f'Refused the checkpoint of step {STEPS}' in outputs[0]
  assert f'Going on from the checkpoint of step {STEPS - EVERY}' in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  ('processes', 'devices', 'axes'),
  [(1, 8, (1, 8, 1, 1)), (1, 1, (1, 1, 1, 1)), (4, 2, (2, 2, 1, 2))],
)
def test_a_run_moves_to_another_mesh(home, tmp_path, processes, devices, axes):
  first, moved = home / 'two_by_four', tmp_path / 'run'
  if not first.exists():
    run(home, first, 2, 4, [TITANS, *sizes(2, 2, 2, 1)])
  shutil.copytree(first, moved)
  for step in range(EVERY + 1, STEPS + 1):
    shutil.rmtree(moved / 'checkpoints' / str(step), ignore_errors=True)
  flags = [TITANS, *sizes(*axes)]
  outputs = run(home, moved, processes, devices, flags)
  assert f'Going on from the checkpoint of step {EVERY}' in outputs[0]
  found, expected = losses(moved), losses(first)
  assert list(found) == list(expected)
  for step, loss in expected.items():
    assert found[step] == pytest.approx(loss, rel=1e-5), step


def caused(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  ('error', 'training', 'code'),
  [
    (ValueError('a field'), False, multihost.MISUSED),
    (ValueError('a bug'), True, multihost.FAILED),
    (CheckpointError('all are damaged'), False, multihost.MISUSED),
    (PermissionError(errno.EACCES, 'x'), False, multihost.MISUSED),
    (OSError(errno.ENOSPC, 'full'), True, multihost.MISUSED),
    (OSError(errno.ENOSPC, 'full'), False, multihost.MISUSED),
    (OSError(errno.EIO, 'a disk of the network'), True, multihost.BROKEN),
    (OSError('a bucket'), True, multihost.BROKEN),
    (ConnectionResetError(), True, multihost.BROKEN),
    (ValueError('UNKNOWN: Gloo AllGather failed'), True, multihost.BROKEN),
    (caused(RuntimeError('a save'), TimeoutError()), True, multihost.BROKEN),
    (KeyError('a bug'), True, multihost.FAILED),
  ],
)
def test_exit_codes_of_errors(error, training, code, capsys):
  try:
    with multihost.in_training() if training else contextlib.nullcontext():
      raise error
  except Exception as caught:
    with pytest.raises(SystemExit) as end:
      multihost.fail(caught)
  assert end.value.code == code
  # What is not the user's to fix has its traceback.
  traced = 'Traceback' in capsys.readouterr().err
  assert traced == (code != multihost.MISUSED)


@pytest.mark.parametrize(
  'text',
  [
    *('on', 'host:1,2', 'host,2,0', 'host:1,a,b', 'a:b,2,0', ':1,2,0', ''),
    *('a:b:1,2,0', 'host:1,2,-1', 'host:1,2,0,0', 'h t:1,2,0', 'host:1e3,2,0'),
    *('host:1,2,0\n', f'host:{10**20},2,0', f'host:1,{10**9},0', 'http://h:1'),
  ],
)
def test_distributed_that_cannot_be_read(text):
  with pytest.raises(ValueError, match="must be 'off', 'auto' or"):
    multihost.start(text)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('host:0,2,0', 'there is no port 0'),
    ('host:70000,2,0', 'there is no port 70000'),
    ('host:1,2,2', 'COUNT=2 and ID=2'),
    ('[::1]:1,0,0', 'COUNT=0 and ID=0'),
  ],
)
def test_distributed_out_of_range(text, message):
  with pytest.raises(ValueError, match=message):
    multihost.start(text)


@pytest.mark.parametrize('seconds', [0, -1, float('nan'), float('inf'), 1e9])
def test_distributed_seconds(seconds):
  with pytest.raises(ValueError, match='must be a positive number'):
    multihost.start('host:1,2,1', seconds)


@pytest.mark.parametrize('host', ['127.0.0.1', '0.0.0.0'])
def test_a_port_that_is_in_use(host):
  """In C++ it is a segmentation fault."""
  with socket.create_server((host, 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(ValueError, match=f'cannot listen on port {port}'):
      multihost.start(f'127.0.0.1:{port},2,0')


def test_a_peer_that_never_comes():
  """Neither for process 0 nor for one that waits for process 0."""
  start = 'import sys; from hope.parallel import multihost as m; m.start(*{})'
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', start.format((text, 6))],
      cwd=ROOT,
      stderr=subprocess.PIPE,
      text=True,
    )
    for text in (f'127.0.0.1:{free_port()},3,{i}' for i in (0, 1))
  ]
  for process in processes:
    err = process.communicate(timeout=60)[1]
    assert process.returncode == multihost.BROKEN, err
    waiting, ended = err.splitlines()
    assert waiting.startswith('waiting for the other 2 of 3 processes at 127.')
    assert 'did not come within 6 s' in ended


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step(home, tmp_path, number):
  with terminal_signals():
    gang = Gang(home, tmp_path / 'run', 2, 1, [TITANS])
  while not (tmp_path / 'run' / 'config.json').exists():
    assert all(p.poll() is None for p in gang.processes), gang.kill()
    time.sleep(0.02)
  for process in gang.processes:
    process.send_signal(number)
  codes, outputs, _ = gang.wait(20)
  code = multihost.PREEMPTED if number == signal.SIGTERM else 130
  assert code in codes, outputs
  # The other one may have noticed the death first.
  assert set(codes) <= {code, multihost.BROKEN, -signal.SIGABRT}, outputs
