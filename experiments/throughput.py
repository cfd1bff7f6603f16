"""Speed of a training step and of decoding: no table of the paper.

  python -m hope.throughput --config=experiments/throughput.py
  python -m hope.throughput --config=experiments/throughput.py --decode

Arguments: num_layers, seq_len (tokens), batch_size (sequences), as in
`--config=experiments/throughput.py:seq_len=2048,batch_size=1`.
"""

import ml_collections

from hope.config import base_config, parse_arg


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Width 256, 4 heads, chunks of 64 tokens, 4 levels of the CMS."""
  args = parse_arg(arg, num_layers=4, seq_len=512, batch_size=4)
  config = base_config()
  config.model.num_layers = args.num_layers
  config.compute.remat = False
  config.model.width = 256
  config.model.num_heads = 4
  config.model.titans.chunk_size = 64
  config.model.titans.projection_chunk_size = 64
  config.model.cms.periods = (1, 1, 1, 1)
  config.data.seq_len = args.seq_len
  config.data.batch_size = args.batch_size
  return config
