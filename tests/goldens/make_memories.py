"""Outputs of fla's functions and of titans-pytorch; `make.py` says how."""

from fla.ops.comba.naive import naive_chunk_comba
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from make import HEAD, HEADS, WIDTH, B, T, draw, fill, store
import titans_pytorch
import torch
from torch.nn import functional as F
from transformers.models.llama import modeling_llama as llama


def make_rules():
  """The recurrences by themselves, of what our layer makes of x."""
  w = {
    'x': draw(B, T, WIDTH),
    'qkv.kernel': draw(WIDTH, 3 * WIDTH, scale=0.5),
    'beta.kernel': draw(WIDTH, HEADS, scale=0.5),
    'alpha.kernel': draw(WIDTH, HEADS, scale=0.3),
    'alpha_log': draw(HEADS) - 2,
    **{k: draw(HEADS) for k in ('alpha_bias', 'feedback', 'correction')},
  }
  qkv = (w['x'] @ w['qkv.kernel']).view(B, T, HEADS, 3, HEAD)
  q, k, v = qkv.unbind(3)
  own = {key: w[key] for key in ('x', 'qkv.kernel')}
  config = llama.LlamaConfig(head_dim=HEAD, rope_parameters={'rope_theta': 1e4})
  angles = llama.LlamaRotaryEmbedding(config)(q, torch.arange(T)[None])
  turned = llama.apply_rotary_pos_emb(q, k, *angles, unsqueeze_dim=2)
  by_head = (x.transpose(1, 2) for x in (*turned, v))
  y = naive_retention(*by_head).transpose(1, 2)
  store('retnet', 'fla-core', 'naive_retention', **own, y=y)
  y, (state, total) = naive_recurrent_linear_attn(
    F.elu(q) + 1, F.elu(k) + 1, v, normalize=True, output_final_state=True
  )
  state = torch.cat([state, total[:, 0, :, :, None]], -1)
  what = 'naive_recurrent_linear_attn'
  store('linear_attention', 'fla-core', what, **own, y=y, state=state)
  beta = torch.sigmoid(w['x'] @ w['beta.kernel'])
  q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
  by_head = (x.transpose(1, 2) for x in (q, k, v, beta))
  y, state = delta_rule_recurrence(*by_head)
  own['beta.kernel'], y = w['beta.kernel'], y.transpose(1, 2)
  store(
    'deltanet', 'fla-core', 'delta_rule_recurrence', **own, y=y, state=state
  )
  # naive_recurrent_comba instead erases from what has decayed.
  g = -w['alpha_log'].exp() * F.softplus(
    w['x'] @ w['alpha.kernel'] + w['alpha_bias']
  )
  p = torch.sigmoid(w['feedback'])[:, None] * k
  q = q - w['correction'][:, None] * k
  y, state = naive_chunk_comba(q, k, v, p, g, beta, 8, output_final_state=True)
  store('comba', 'fla-core', 'naive_chunk_comba', **w, y=y, state=state)


class Memory(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.up = torch.nn.Parameter(draw(HEAD, 2 * HEAD, dtype=torch.float64))
    self.down = torch.nn.Parameter(draw(2 * HEAD, HEAD, dtype=torch.float64))

  def forward(self, x):
    return x + F.silu(x @ self.up) @ self.down


class Unit(torch.nn.Module):
  def forward(self, x):
    return F.normalize(x, dim=-1)


def make_titans():
  """A step for each token, gradients at the start of each 8."""
  torch.set_default_dtype(torch.float64)
  layer = titans_pytorch.NeuralMemory(
    HEAD,
    batch_size=8,
    model=Memory(),
    store_memory_loss_fn=lambda y, v: 0.5 * (y - v).square().sum(-1),
    default_step_transform_max_lr=0.2,
    pre_rmsnorm=False,
    activation=Unit(),
    mem_model_norm_add_residual=False,
  )
  names = ('queries', 'keys', 'values', 'adaptive_step', 'momentum')
  layers = {x: getattr(layer, f'to_{x}')[0] for x in (*names, 'decay_factor')}
  weights = {f'{x}.{k}': w for x in layers for k, w in fill(layers[x]).items()}
  # A memory that lasts.
  layers['decay_factor'].bias.data = weights['decay_factor.bias'].sub_(3)
  start = dict(zip(('up', 'down'), layer.memory_model_parameters, strict=True))
  start = {name: 0.3 * x[0].detach() for name, x in start.items()}
  for name, x in zip(start, layer.memory_model_parameters, strict=True):
    x.data[0] = start[name]
  x = draw(B, T, HEAD, dtype=torch.float64)
  y, end = layer(x)
  end = {f'end.{name}': kernel for name, kernel in end.states[0].items()}
  arrays = {'x': x, 'y': y, **weights, **start, **end}
  store('titans', 'titans-pytorch', 'NeuralMemory', **arrays)


if __name__ == '__main__':
  make_rules()
  make_titans()
