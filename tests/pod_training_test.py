"""launch/pod.py with the real trainer: four processes that train together."""

import json
import sys

from conftest import free_port
import fake_tpu
import pod_cases
import pytest

STEPS = 60
FIELDS = {
  'model.num_layers': 1,
  'model.width': 16,
  'model.pattern': 'attention+cms',
  'model.cms.periods': (1,),
  'data.source': 'synthetic:copy',
  'data.task.vocab_size': 16,
  'data.task.num_pairs': 4,
  'data.seq_len': 32,
  'data.batch_size': 8,
  'optimizer.warmup_steps': 2,
  'train.steps': STEPS,
  'log.every': 1,
  'evals.every': 100,
  'evals.batches': 1,
  'checkpoint.every': 5,
}
FLAGS = [f'--config.{name}={value}' for name, value in FIELDS.items()]
# There is no cluster to ask for an address, so it is given.
WORKER = """
import os, sys, time
from hope.data import pipeline
read = pipeline.BatchIterator.__next__
def slowly(self):
  time.sleep(0.1)
  return read(self)
pipeline.BatchIterator.__next__ = slowly
index = os.environ.get('WORKER_INDEX')
address = f'--distributed=127.0.0.1:{PORT},4,{index}'
sys.argv = [address if x == '--distributed=auto' else x for x in sys.argv]
from hope.commands import train
train.start()
"""
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'JAX_NUM_CPU_DEVICES': '1',
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0',
  'PYTHONPATH': str(pod_cases.ROOT),
}
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group('pod_training')]


def losses(workdir):
  """Loss of every step, as it is written."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  records = [json.loads(line) for line in lines]
  return {r['step']: r['loss'] for r in records if r['kind'] == 'train'}


def reached(workdir, step):
  return pod_cases.wait_for(
    lambda: max(losses(workdir), default=0) >= step, seconds=200
  )


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  folder = tmp_path_factory.mktemp('home')
  worker = f'PORT = {free_port()}\n' + WORKER
  (folder / 'worker.py').write_text(worker)
  return folder


@pytest.fixture(scope='module')
def undisturbed(home):
  """The same run by `pod.py local`."""
  workdir = home / 'undisturbed'
  process = pod_cases.launch(
    *('local', '--processes=4', f'--config={pod_cases.CONFIG}'),
    *(f'--workdir={workdir}', '--', *FLAGS),
    env=ENVIRONMENT,
  )
  code, out, err = pod_cases.finish(process, 400)
  assert code == 0, err
  assert 'Done.' in out
  assert list(losses(workdir)) == list(range(1, STEPS + 1))
  return workdir


def test_local_processes_are_killed_and_go_on(home, undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  process = pod_cases.launch(
    *('local', '--processes=4', f'--config={pod_cases.CONFIG}'),
    f'--workdir={workdir}',
    f'--worker={sys.executable} {home}/worker.py',
    *('--', *FLAGS),
    env=ENVIRONMENT,
  )
  reached(workdir, 12)
  (victim, *_) = [
    pid
    for pid in pod_cases.children(process.pid)
    if ',4,2' in pod_cases.command_line(pid)
  ]
  pod_cases.kill(victim)
  code, out, err = pod_cases.finish(process, 400)
  assert code == 0, err
  assert 'Going on from the checkpoint' in out
  assert losses(workdir) == losses(undisturbed)
  print(err)


def test_machines_are_taken_away_and_training_goes_on(
  home, undisturbed, tmp_path
):
  cloud = fake_tpu.FakeTpu(tmp_path, 'gcloud')
  cloud.env |= ENVIRONMENT
  try:
    worker = f'{sys.executable} {home}/worker.py'
    process = cloud.pod(worker=worker, flags=FLAGS)
    reached(cloud.workdir, 12)
    cloud.suspend()
    code, out, err = pod_cases.finish(process, 500)
    assert code == 0, err
    assert 'r1 is SUSPENDED' in err and 'restart 1 of 10' in err
    assert 'exit codes 4 x 0' in err
    assert 'Going on from the checkpoint' in out
    assert not cloud.resources
    assert losses(cloud.workdir) == losses(undisturbed)
  finally:
    cloud.close()
