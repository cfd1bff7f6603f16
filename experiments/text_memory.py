"""Text with and without inner learning: what does the memory gain?

  python -m hope.main --config=experiments/text_memory.py --workdir=runs/text
  python -m hope.main --config=experiments/text_memory.py:memory=false \
    --workdir=runs/text-off

The main job's model and data, with sequences of 512 tokens. `memory=false` sets
every inner learning rate to 0: the same parameters and steps. `seed=N` changes
parameters and the order of the data.
"""

from hope.config import base_config, parse_arg


def get_config(arg: str = ''):
  """Returns the configuration; arguments: memory (true), seed (0), steps."""
  args = parse_arg(arg, memory=True, seed=0, steps=240)
  config = base_config()
  config.seed = args.seed
  config.compute.remat = False
  config.data.seq_len = 512
  config.data.batch_size = 4
  config.optimizer.learning_rate = 6e-3
  config.model.titans.chunk_size = 16
  config.model.titans.projection_chunk_size = 16
  if not args.memory:
    config.model.titans.eta_max = 0.0
  config.train.steps = args.steps
  config.evals.every = args.steps
  config.evals.batches = 32
  return config
