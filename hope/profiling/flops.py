"""Floating-point operations of a model, counted from its configuration.

A count is of matrix products alone, two operations per multiply-add. It is of
the model and not of a run: nothing is counted for recomputation, for padding
around a piece of a stream, or for keys that attention's cache does not hold
yet. A masked matrix (c x c within a block of the memories, t x t in attention)
counts in full, as it is computed.
"""

import ml_collections

from hope.memory.stream import block_size

# Of a training step per forward pass: the backward pass has two products for
# each product of the forward pass.
_PASSES = 3


def _block(chunk: int, seq_len: int) -> int:
  """Tokens that one step of the scan over a stream computes."""
  return min(block_size(chunk), seq_len)


def decays(c: int, *, momentum: bool) -> float:
  """Multiply-adds per token of `rule.decays` in blocks of c tokens."""
  if not momentum:
    return 0
  return (
    c * c  # P = A @ B, [c, c] @ [c, c]
    + c  # p = A @ (products of beta), [c, c] @ [c]
  )


def update(
  c: int,
  i: int,
  o: int,
  *,
  momentum: bool,
  erase: bool,
  read: bool,
  shared: bool = False,
) -> float:
  """Multiply-adds per token of `rule.decayed_update` for a kernel [i, o].

  Args:
    c: tokens of a block.
    i: width of the kernel's input.
    o: width of its output.
    momentum: whether there is a trace.
    erase: whether the erase term is on.
    read: whether queries are read.
    shared: whether another kernel with the same input has its Gram matrix and
      its inverse already.
  """
  total = i * o  # U^T @ R, the new kernel
  if momentum:
    total += i * o  # U^T @ (trace_last E), the new trace
  if erase:
    total += i * o  # U @ K_0
    total += c * o  # (P' * Gram) @ E
    if momentum:
      total += i * o  # U @ S_0
    total += c * o  # (I + L)^-1 @ rhs
    if not shared:
      total += c * i  # U @ U^T, the Gram matrix
      # (I + L)^-1: c^3 / 3 for the block, which is what merging blocks two by
      # two costs: c b^2 at size b, summed over b = c/2, c/4, ...
      total += c * c / 3
  if read:
    total += c * i  # Q @ U^T
    total += i * o  # Q @ K_0
    total += c * o  # (P' * (Q @ U^T)) @ E
    if momentum:
      total += i * o  # Q @ S_0
    if erase:
      total += c * o  # (A' * (Q @ U^T)) @ Z
  return total


def forward(m: int, i: int, f: int, o: int) -> int:
  """Multiply-adds per token of `mlp.forward` for m memories; f = 0: linear."""
  if not f:
    return m * i * o  # z @ down
  return (
    m * i * f  # z @ up
    + m * f * o  # act(z @ up) @ down
  )


def learn(
  c: int,
  groups: tuple[tuple[int, int], ...],
  i: int,
  f: int,
  *,
  momentum: bool,
  erase: bool,
  read: bool,
  anchored: bool,
  objective: str,
) -> float:
  """Multiply-adds per token of `mlp.learn` for the memories of one head.

  Args:
    c: tokens of a block.
    groups: (memories m, width of the values o) of each group.
    i: width of the keys.
    f: hidden width; 0: linear memories.
    momentum: whether there are traces.
    erase: whether the erase term is on.
    read: whether queries are read.
    anchored: whether reads add those of the initial kernels.
    objective: 'l2' or 'dot'.
  """
  options = {'momentum': momentum, 'erase': erase, 'read': read}
  total = 0
  for j, (m, o) in enumerate(groups):
    total += m * i * f  # k @ up; 0 if linear
    if objective == 'l2':
      total += m * (f or i) * o  # u @ down, the prediction
    if f:
      total += m * o * f  # g @ down^T
      # up: one kernel for all memories of a group, one solve for all groups
      total += update(c, i, m * f, shared=j > 0, **options)
      if read and anchored:
        total += m * i * f  # Q @ initial up
    total += m * update(c, f or i, o, **options)  # down: one kernel each
    if read and anchored:
      total += m * (f or i) * o  # features of Q @ initial down
  return total


def titans(config: ml_collections.FrozenConfigDict, seq_len: int) -> float:
  """Multiply-adds per token of `SelfReferentialTitans`, one layer."""
  width, heads = config.model.width, config.model.num_heads
  options = config.model.titans
  d = width // heads
  f = d * options.hidden_multiple
  rule = {
    'momentum': options.momentum,
    'erase': options.erase,
    'anchored': options.anchor == 'initial',
    'objective': options.objective,
  }
  total = (3 if options.mix == 'dense' else 1) * width**2  # mix or query
  total += width**2  # output
  if options.momentum:
    total += width * heads  # beta

  wide = 3 if options.q_memory else 2
  # k = M_k(x_k), v = M_v(x_v), q = M_q(x_q); eta and alpha from x_k.
  head = forward(wide, d, f, d) + forward(2, d, f, 1)
  if options.self_modifying:
    c = _block(options.projection_chunk_size, seq_len)
    head += decays(c, momentum=options.momentum)
    groups = ((wide, d), (2, 1))
    for m, o in groups:
      head += forward(m, d, f, o)  # targets M(v)
    head += learn(c, groups, d, f, read=False, **rule)

  c = _block(options.chunk_size, seq_len)
  head += decays(c, momentum=options.momentum)
  if options.self_target:
    head += forward(1, d, f, d)  # target M(v)
  head += learn(c, ((1, d),), d, f, read=options.read == 'token', **rule)
  if options.read == 'chunk':
    head += forward(1, d, f, d)  # M(q) at the chunk's start
  return total + heads * head


def attention(config: ml_collections.FrozenConfigDict, seq_len: int) -> float:
  """Multiply-adds per token of `CausalAttention`, one layer."""
  width = config.model.width
  return (
    3 * width**2  # qkv
    + seq_len * width  # q @ k^T, all heads
    + seq_len * width  # weights @ v, all heads
    + width**2  # output
  )


def cms(config: ml_collections.FrozenConfigDict, seq_len: int) -> float:
  """Multiply-adds per token of `ContinuumMemory`, one layer."""
  width, options = config.model.width, config.model.cms
  hidden = int(
    width
    * (
      options.hidden_multiple
      or {'titans+cms': 1}.get(config.model.pattern, 17 / 16)
    )
  )
  total = 0
  for period in options.periods:
    total += forward(1, width, hidden, width)  # the block
    if options.mode == 'in_context':
      total += 2 * width**2  # key_value
      total += 2 * width  # gates
      total += learn(
        _block(period, seq_len),
        ((1, width),),
        width,
        hidden,
        momentum=False,
        erase=True,
        read=False,
        anchored=True,
        objective=options.objective,
      )
  return total


def logits(config: ml_collections.FrozenConfigDict) -> int:
  """Multiply-adds per token of the output layer."""
  return config.model.width * config.model.vocab_size  # x @ embedding^T


def flops_per_token(
  config: ml_collections.FrozenConfigDict, seq_len: int
) -> int:
  """Operations per token of a training step: forward and backward pass.

  Embedding look-ups, norms, the depthwise convolution, activations and the
  optimizer count as nothing.

  Args:
    config: a resolved configuration (`hope.config.resolve`).
    seq_len: tokens of a sequence.
  """
  name = config.model.pattern.removesuffix('+cms')
  mixer = {'titans': titans, 'attention': attention}[name]
  layer = mixer(config, seq_len) + cms(config, seq_len)
  forward_pass = config.model.num_layers * layer + logits(config)
  return round(2 * _PASSES * forward_pass)
