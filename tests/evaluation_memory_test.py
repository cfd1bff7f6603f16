"""BABILong of a million tokens: constant memory; kills that lose nothing."""

import json
import os
import subprocess
import sys
import time

from conftest import ROOT, write_texts
import pytest

import hope
from hope import data as data_lib
from hope.data.tokenization import ByteTokenizer
from hope.evaluation import specs, text_sets
from hope.parallel.mesh import one_device
from hope.run.checkpoint import open_checkpoints
from hope.run.workdir import check_workdir
from hope.training import step as step_lib

pytestmark = pytest.mark.slow
# Most tokens of a prompt, and how many it has at least.
SIZES = {10_200: 10_000, 1_000_200: 1_000_000}
# Unlike `cpu_devices`, with LLVM's optimisations: the texts are long.
ENVIRONMENT = os.environ | {
  'JAX_PLATFORMS': 'cpu',
  'JAX_NUM_CPU_DEVICES': '1',
}
# Peak memory in KiB of a command, its arguments first.
MEASURE = (
  'import resource, subprocess, sys\n'
  'subprocess.run([sys.executable, *sys.argv[1:]], check=True)\n'
  'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n'
)
# The command, which keeps what it has read every second.
OFTEN = (
  'from hope.evaluation import reading_file\n'
  'reading_file.SECONDS = 1.0\n'
  'from hope.commands import evaluate\n'
  'evaluate.start()\n'
)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with background and a small Hope, saved before its first step."""
  folder = tmp_path_factory.mktemp('home')
  write_texts(folder / 'text', 100)
  sentences = [
    f'Sentence {i} of this background has ten words at least, like others.'
    for i in range(3000)
  ]
  (folder / 'background.txt').write_text(' '.join(sentences))
  config = hope.base_config()
  config.model.num_layers, config.model.width = 1, 32
  config.model.num_heads, config.model.tied_head = 1, False
  config.model.cms.periods = (1, 16)
  titans = config.model.titans
  titans.chunk_size = titans.projection_chunk_size = 64
  config.data.source = f'text:{folder}/text/*.txt'
  config.data.heldout_fraction = 0.2
  config.data.seq_len, config.data.batch_size = 32, 4
  data = data_lib.open_data(config)
  config = hope.resolve(config, data.vocab_size)
  check_workdir(folder / 'run', config.to_dict())
  _, abstract = step_lib.abstract_state(config, one_device())
  with open_checkpoints(folder / 'run', config) as checkpoints:
    checkpoints.save(
      1,
      step_lib.init_state(config, abstract),
      data_state=data.train_iterator().get_state(),
    )
  return folder


def task(home, size):
  """One example of at most so many tokens."""
  return f'qa1:size={size},text={home}/background.txt,examples=1'


def arguments(home, size, scores):
  """Flags of an evaluation."""
  return [
    f'--workdir={home}/run',
    f'--scores={home}/{scores}',
    f'--task={task(home, size)}',
  ]


def lines(home, scores):
  """What is in the file of scores; '' of one that is not there."""
  files = sorted((home / scores).glob('*.jsonl'))
  return files[0].read_text() if files else ''


def test_memory_does_not_grow_with_the_prompt(home):
  peaks = {}
  for size, least in SIZES.items():
    spec = specs.parse(task(home, size))
    example = text_sets.open_text_set(spec, ByteTokenizer()).example(0)
    assert sum(map(len, example.pieces())) >= least
    done = subprocess.run(
      [
        *(sys.executable, '-c', MEASURE, '-m', 'hope.evaluate'),
        *arguments(home, size, f'scores_{size}'),
      ],
      cwd=ROOT,
      env=ENVIRONMENT,
      capture_output=True,
      text=True,
      timeout=500,
    )
    assert done.returncode == 0, done.stderr
    peaks[size] = int(done.stdout.splitlines()[-1])
  small, large = peaks.values()
  assert large < 1.05 * small, peaks


def test_kills_within_a_prompt_lose_nothing(home):
  size = max(SIZES)
  command = [sys.executable, '-c', OFTEN]
  options = {'cwd': ROOT, 'env': ENVIRONMENT, 'stdout': subprocess.DEVNULL}
  subprocess.run(
    [*command, *arguments(home, size, 'whole')], check=True, **options
  )
  kept = []
  for _ in range(3):
    process = subprocess.Popen(
      [*command, *arguments(home, size, 'killed')], **options
    )
    for _ in range(3000):
      files = list((home / 'killed').glob('*.reading.npz'))
      times = [file.stat().st_mtime_ns for file in files]
      if times and times != kept:
        kept = times
        break
      assert process.poll() is None
      time.sleep(0.02)
    process.kill()
    process.wait()
  assert kept
  assert len(lines(home, 'killed').splitlines()) == 1
  subprocess.run(
    [*command, *arguments(home, size, 'killed')], check=True, **options
  )
  assert lines(home, 'killed') == lines(home, 'whole')
  record = json.loads(lines(home, 'whole').splitlines()[1])
  assert record['output']
  assert not list((home / 'killed').glob('*.reading.npz'))
