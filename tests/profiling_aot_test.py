"""A training step compiled for TPUs that are not here, by its command."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.xdist_group('aot')


def aot(libtpu, *flags):
  done = subprocess.run(
    [sys.executable, '-m', 'hope.aot', *flags],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': f'{ROOT}{os.pathsep}{libtpu}'},
    capture_output=True,
    text=True,
    timeout=590,
  )
  return done.returncode, done.stdout, done.stderr


SMALL = (
  '--config=experiments/lm.py:size=tiny,seq_len=512,tokens=8192,fsdp=2,seq=2',
  '--topology=v5e:4x4',
)


def test_a_mesh_that_does_not_fit_is_said_before_compilation(libtpu):
  code, out, err = aot(libtpu, *SMALL, '--config.mesh.data=3')
  assert code == 2 and not out
  assert 'there are 16; try mesh.data=4' in err
  assert 'Traceback' not in err


@pytest.mark.slow
def test_the_report(libtpu, tmp_path):
  path = tmp_path / 'report.json'
  code, out, err = aot(libtpu, *SMALL, f'--json={path}')
  assert code == 0, err
  for text in ('memory per chip', 'model FLOPs utilisation', 'It fits'):
    assert text in out
  report = json.loads(path.read_text())
  assert report == json.loads(out.splitlines()[-1])
  assert report['mesh'] == {'data': 4, 'fsdp': 2, 'seq': 2, 'tensor': 1}
  assert report['executed_flops'] > report['model_flops'] > 0
  times = [report[f'{x}_seconds'] for x in ('compute', 'memory', 'collective')]
  assert report['step_seconds'] == max(times) > 0
  assert report['memory_bytes'] < report['memory_limit_bytes']
  assert set(report['collective_bytes']) >= {'all-gather', 'all-to-all'}


@pytest.mark.slow
def test_too_little_memory_is_one_line(libtpu):
  code, _, err = aot(
    libtpu,
    '--config=experiments/lm.py:size=760m,tokens=524288,seq_len=32768',
    '--topology=v5e:2x2',
    '--config.compute.remat=false',
    '--config.data.batch_size=64',
    '--fast',
  )
  assert code == 1
  last = err.strip().splitlines()[-1]
  assert last.startswith('error: it does not compile: ') and 'memory' in last


@pytest.mark.slow
def test_the_search_prints_the_best_that_fits(libtpu):
  code, out, err = aot(
    libtpu,
    '--config=experiments/lm.py:size=tiny,seq_len=512,tokens=16384',
    *('--topology=v5e:4x4', '--search', '--tries=3'),
  )
  assert code == 0, err
  assert 'The fastest that fits: --config.mesh.data=' in out
  assert out.count(' GiB, ') == 3


@pytest.mark.parametrize(
  ('size', 'topology', 'mesh', 'says'),
  [
    ('760m', 'v5e:16x16', 'fsdp=16,seq=2', '757,647,360 parameters on 256 chi'),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('760m', 'v5p:4x4x4', 'fsdp=16', '757,647,360 parameters on 64 chips'),
        ('1.3b', 'v5e:16x16', 'fsdp=16,seq=2', '1,324,768,512 parameters on'),
        ('1.3b', 'v5p:4x4x4', 'fsdp=16', '1,324,768,512 parameters on 64'),
      )
    ),
  ],
)
def test_the_papers_sizes_compile(libtpu, size, topology, mesh, says):
  config = f'--config=experiments/lm.py:size={size},{mesh}'
  code, out, err = aot(libtpu, config, f'--topology={topology}', '--fast')
  assert code == 0, err
  assert out.startswith(f'It compiles for {topology}: {says}')
