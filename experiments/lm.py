r"""Table 2 (language modelling): Hope and Hope-Attention, 760M and 1.3B.

  python -m hope.main --config=experiments/lm.py:size=760m,fsdp=16,seq=2 \
    --distributed=auto --workdir=...
  python -m hope.aot --config=experiments/lm.py:size=1.3b,fsdp=16,seq=2 \
    --topology=v5e:16x16

Arguments: size ('760m', '1.3b', or another preset), mixer ('titans' or
'attention'), seq_len (tokens), tokens (of a batch), source (of the data, as in
source=text:DATA/*.txt), and the mesh: data (0: all devices that are left),
fsdp, seq, tensor.

The paper trains 760M on 30B and 1.3B on 100B tokens of FineWeb-Edu (Wiki
perplexity 18.68 and 14.39); batches of 0.5M tokens, length 4,096, vocabulary
32K. Hardware: a v5e-256 or v5p-64 slice; never run there, but compiled for it
(`experiments/README.md`).
"""

from hope.config import base_config, parse_arg
from hope.fields import Field

# Tokens of a run, by preset.
BUDGET = {'760m': 30e9, '1.3b': 100e9}


def get_config(arg: str = ''):
  """A run of the paper's size in bfloat16."""
  args = parse_arg(
    arg,
    size='760m',
    mixer='titans',
    seq_len=Field(4096, 'Of a sequence.', minimum=1),
    tokens=Field(2**19, 'Of a batch.', minimum=1),
    source='text:data/*.txt',
    data=0,
    fsdp=1,
    seq=1,
    tensor=1,
  )
  config = base_config()
  model, data, train = config.model, config.data, config.train
  model.preset, model.dtype = args.size, 'bfloat16'
  model.pattern = f'{args.mixer}+cms'
  model.vocab_size = 32_000
  # On TPUs; elsewhere it is interpreted, and 'xla' is the one to take.
  config.compute.kernel = 'pallas'
  data.source, data.tokenizer = args.source, 'bpe-train:32000'
  data.seq_len, data.batch_size = args.seq_len, args.tokens // args.seq_len
  config.reading.ahead = 4
  optimizer = config.optimizer
  optimizer.learning_rate, optimizer.warmup_steps = 4e-4, 1000
  train.steps = round(BUDGET.get(args.size, 30e9) / args.tokens)
  config.log.every, config.evals.every = 10, 1000
  config.checkpoint.every = 500
  config.mesh.fsdp, config.mesh.seq = args.fsdp, args.seq
  config.mesh.tensor = args.tensor
  if args.data:
    config.mesh.data = args.data
  config.lock()
  return config
