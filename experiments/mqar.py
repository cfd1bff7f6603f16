"""Associative recall (MQAR): does the memory do its work?

  python -m hope.main --config=experiments/mqar.py --workdir=runs/mqar
  python -m hope.main --config=experiments/mqar.py:memory=false \
    --workdir=runs/mqar-off

8 pairs among 64 tokens, vocabulary 256, width 64, 2 layers, one head, chunks of
16 tokens. `memory=false` sets every inner learning rate to 0: the same
parameters and steps, without learning within the sequence. `seed=N` changes
parameters and data.
"""

from hope.config import base_config, parse_arg


def get_config(arg: str = ''):
  """Returns the configuration; arguments: memory (true), seed (0)."""
  args = parse_arg(arg, memory=True, seed=0)
  config = base_config()
  config.seed = args.seed
  config.data.source = 'synthetic:mqar'
  config.data.seq_len = 64
  config.data.batch_size = 32
  model = config.model
  model.num_layers, model.width, model.num_heads = 2, 64, 1
  model.titans.chunk_size = model.titans.projection_chunk_size = 16
  config.compute.remat = False
  if not args.memory:
    model.titans.eta_max = 0.0
  config.optimizer.warmup_steps = 50
  config.optimizer.weight_decay = 0.0
  config.train.steps = 500
  config.log.every = 20
  config.evals.every = 100
  config.checkpoint.every = 100
  return config
