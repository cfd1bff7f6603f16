"""The lowest versions that requirements.txt names train a model."""

import re
import subprocess
import sys

from conftest import ROOT, cpu_devices, write_texts
import pytest

CONFIG = """
from hope.config import base_config
def get_config():
  config = base_config()
  config.model.num_layers, config.model.width = 1, 16
  config.model.num_heads = 1
  config.model.cms.periods = (1, 3)
  titans = config.model.titans
  titans.chunk_size = titans.projection_chunk_size = 16
  config.data.source = 'text:{folder}/*.txt'
  config.data.heldout_fraction = 0.2
  config.data.seq_len, config.data.batch_size = 32, 4
  config.optimizer.warmup_steps = 1
  config.train.steps, config.log.every = 3, 1
  config.evals.every, config.evals.batches = 3, 1
  config.checkpoint.every = 2
  config.sample.tokens = 4
  return config
"""


def lowest() -> list[str]:
  """The requirements, each at the lowest version that is allowed."""
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  pinned = [re.sub('>=', '==', line) for line in lines]
  assert all(re.fullmatch(r'[\w\[\]-]+==[\d.]+', line) for line in pinned)
  return pinned


@pytest.mark.slow
def test_the_lowest_versions_train_and_go_on(tmp_path):
  """Installs them from the package index, in an environment of their own."""
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
  python = tmp_path / 'venv' / 'bin' / 'python'
  install = [python, '-m', 'pip', 'install', '--quiet', *lowest()]
  subprocess.run(install, check=True)
  write_texts(tmp_path / 'text', 100)
  config = tmp_path / 'tiny.py'
  config.write_text(CONFIG.format(folder=tmp_path / 'text'))
  for steps in (3, 4):  # the second time from a checkpoint
    done = subprocess.run(
      [
        *(python, '-m', 'hope.main', f'--config={config}'),
        *(f'--workdir={tmp_path}/run', f'--config.train.steps={steps}'),
      ],
      cwd=ROOT,
      env=cpu_devices(1)
      | {
        'PYTHONPATH': str(ROOT),
        'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'cache'),
      },
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f'step {steps}/{steps}' in done.stdout and 'Done.' in done.stdout
  assert 'Going on from the checkpoint of step 3' in done.stdout
