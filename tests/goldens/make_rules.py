"""Outputs of the functions of flash-linear-attention; `make.py` says how."""

from fla.ops.comba.naive import naive_chunk_comba
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.ttt.naive import chunk_ttt_linear_ref
from make import HEAD, HEADS, WIDTH, B, T, draw, store
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


def make_ttt():
  q, k, v = (draw(B, T, HEADS, HEAD) for _ in range(3))
  weights = {'w': draw(HEADS, HEAD), 'b': draw(HEADS, HEAD)}
  start = draw(B, HEADS, HEAD, HEAD, scale=0.3), draw(B, HEADS, 1, HEAD)
  eta = 0.1 * torch.sigmoid(draw(B, T, HEADS, 1))
  y, state, bias = chunk_ttt_linear_ref(
    q.clone(),
    k,
    v,
    **weights,
    eta=eta,
    scale=1.0,
    mini_batch_size=8,
    initial_state=start[0],
    initial_state_bias=start[1],
    output_final_state=True,
  )
  state, start = torch.cat([state, bias], 2), torch.cat(start, 2)
  arrays = {'q': q, 'k': k, 'v': v, 'eta': eta, 'start': start, **weights}
  store('ttt', 'fla-core', 'chunk_ttt_linear_ref', **arrays, y=y, state=state)


if __name__ == '__main__':
  make_rules()
  make_ttt()
