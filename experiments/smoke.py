"""The main job: a byte-level Hope on the sources of Python itself.

  python -m hope.main --config=experiments/smoke.py --workdir=runs/smoke

Minutes on two CPU cores, compilation included.
"""

from hope.config import base_config


def get_config():
  """Hope 'tiny' (1.1M parameters) on the running Python's standard library."""
  config = base_config()
  config.model.preset = 'tiny'
  config.data.seq_len = 256
  config.data.batch_size = 8
  config.train.steps = 200
  config.lock()
  return config
