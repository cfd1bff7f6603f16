"""The main job: a byte-level Hope on the sources of Python itself.

  python -m hope.main --config=experiments/smoke.py --workdir=runs/smoke

Minutes on two CPU cores, compilation included.
"""

from hope.config import base_config


def get_config():
  """Hope 'tiny' (1.1M parameters) on the running Python's standard library."""
  config = base_config()
  config.model.preset = 'tiny'
  config.model.titans.chunk_size = 16
  config.model.titans.projection_chunk_size = 16
  config.compute.remat = False
  config.compute.unroll = 4
  config.data.seq_len = 256
  config.data.batch_size = 4
  config.optimizer.name = 'm3'
  config.optimizer.learning_rate = 0.02
  config.train.steps = 360
  config.log.every = 10
  config.evals.every = 180
  config.evals.batches = 32
  config.checkpoint.every = 90
  config.lock()
  return config
