"""Outputs of public layers for the mixers, as npz files beside this one.

Made once on a CPU, in an environment of its own, as `make_memories.py`'s:

  pip install torch==2.14.1 transformers==5.24.0 titans-pytorch==0.5.5
  pip install flash-linear-attention==0.6.0
  python tests/goldens/make.py && python tests/goldens/make_memories.py

Licences: torch BSD-3-Clause, transformers Apache-2.0, titans-pytorch and
flash-linear-attention (fla) MIT. Nothing of them is here but what they compute.
A file has inputs `x` [b, t, width], weights under their names there, outputs
`y`, the last `state` where there is one, and `source`.

Three are of lines of authors' own code, which is in no package, run in float64:
srwm.npz, the loop that the kernel of supervised_learning/self_ref_v0 is tested
with, in github.com/IDSIA/modern-srwm; ttt_linear.npz and ttt_mlp.npz, the
forward pass of the layers in ttt.py of github.com/test-time-training/ttt-lm-
pytorch (MIT), with `share_qk`, `use_gate` and no bias of the convolutions.
"""

import importlib.metadata
import pathlib
from unittest import mock

import numpy as np
import torch
from transformers import DynamicCache
from transformers.models.llama import modeling_llama as llama
from transformers.models.mamba import modeling_mamba as mamba
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

HERE = pathlib.Path(__file__).parent
B, T, WIDTH, HEADS, HEAD = 2, 24, 16, 2, 8
rng = np.random.default_rng(0)


def draw(*shape, scale=1.0, dtype=torch.float32):
  return torch.tensor(scale * rng.standard_normal(shape), dtype=dtype)


def store(name, package, what, **arrays):
  source = f'{what}, {package} {importlib.metadata.version(package)}'
  arrays = {key: x.detach().numpy() for key, x in arrays.items()}
  np.savez_compressed(HERE / f'{name}.npz', source=source, **arrays)


def fill(module, scale=0.5):
  """Draws all parameters; returns them by name."""
  state = {
    name: draw(*x.shape, scale=scale, dtype=x.dtype)
    for name, x in module.state_dict().items()
  }
  module.load_state_dict(state)
  module.eval()
  return state


def make_lstm():
  layer = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True, dtype=torch.float64)
  weights = fill(layer)
  x = draw(B, T, WIDTH, dtype=torch.float64)
  y, (_, cell) = layer(x)
  store('lstm', 'torch', 'nn.LSTM', x=x, y=y, state=cell[0], **weights)


def make_attention(name, scaling):
  config = llama.LlamaConfig(
    hidden_size=WIDTH,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_parameters={'rope_theta': 100.0, **scaling},
  )
  config._attn_implementation = 'sdpa'
  layer = llama.LlamaAttention(config, 0)
  weights, x = fill(layer), draw(B, T, WIDTH)
  angles = llama.LlamaRotaryEmbedding(config)(x, torch.arange(T)[None])
  y, _ = layer(x, angles, None)
  store(name, 'transformers', 'LlamaAttention', x=x, y=y, **weights)


def make_mamba():
  config = mamba.MambaConfig(
    hidden_size=WIDTH,
    state_size=4,
    expand=2,
    conv_kernel=4,
    num_hidden_layers=1,
  )
  layer, cache = mamba.MambaMixer(config, 0), DynamicCache(config=config)
  weights, x = fill(layer, 0.25), draw(B, T, WIDTH)
  y = layer(x, cache)
  state = cache.get_recurrent_state(0)
  store('mamba', 'transformers', 'MambaMixer', x=x, y=y, state=state, **weights)


def make_gated_deltanet():
  config = qwen.Qwen3NextConfig(
    hidden_size=WIDTH,
    num_hidden_layers=1,
    linear_num_value_heads=HEADS,
    linear_num_key_heads=HEADS,
    linear_key_head_dim=HEAD,
    linear_value_head_dim=HEAD,
    layer_types=['linear_attention'],
  )
  layer = qwen.Qwen3NextGatedDeltaNet(config, 0)
  cache = DynamicCache(config=config)
  weights, x = fill(layer), draw(B, T, WIDTH)
  # Not the kernel of fla, which needs a GPU.
  rule = qwen.torch_chunk_gated_delta_rule.__wrapped__
  with mock.patch.object(qwen, 'torch_chunk_gated_delta_rule', rule):
    y = layer(x, cache)
  state = cache.get_recurrent_state(0)
  what = 'Qwen3NextGatedDeltaNet'
  store(
    'gated_deltanet', 'transformers', what, x=x, y=y, state=state, **weights
  )


if __name__ == '__main__':
  make_lstm()
  make_attention('attention', {'rope_type': 'default'})
  llama3 = {
    'rope_type': 'llama3',
    'factor': 4.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
  }
  make_attention('attention_llama3', llama3)
  make_mamba()
  make_gated_deltanet()
