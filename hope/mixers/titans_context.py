"""Titans' memory as context (MAC, Eq. 21-25 of arXiv:2501.00663).

Segments S of C tokens attend to persistent tokens p, to what they read from the
memory M as it was before the segment, and to themselves; the memory learns what
attention gave, and is a gate of it:

  h = M_{t-1}(q),  y = Attn([p || h || S]),  o = y (x) M_t(y)

Deviation: a token reads M_t(y) after its own write, and attends to those of h
and S up to its own place. As printed, M_t is the memory after the segment, and
attention sees all of h: a token would see those that follow it.
Choice: what the memory learns from a segment depends on the segment's
attention, which depends on the memory. So a segment is one block of
`stream.run`, attention is computed within it, and its projections are matrices
of a head: of h to keys and values, of y to the keys, values, queries and rates
of the memory. There is no convolution: attention has mixed what is written.
Choice: h_j is rotated as its token is, by its place in the segment. It is
normalised before its projection, as the inputs of other projections are.
Choice: persistent tokens and the gate, by head, are as in
`hope.mixers.titans_attention`; the memory learns as its setting 'lmm' does.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from hope.fields import field
from hope.layers import rotary
from hope.layers.dense import dense_layer, split_heads
from hope.layers.memory import Memory, retention_bias
from hope.layers.norm import RMSNorm, l2_normalize
from hope.layers.precision import at_least_float32
from hope.memory import context, finite, mlp, stream
from hope.memory.context import Seen
from hope.memory.segments import positions
from hope.mixers import attention, titans_metrics, titans_part
from hope.mixers.attention import PERSISTENT, AttentionOptions, Persistent
from hope.mixers.titans_options import MemoryOptions
from hope.parallel import placement
from hope.parts import (
  BY_HEAD,
  InnerLosses,
  Leaf,
  Level,
  Part,
  Sizes,
  divided_heads,
)


@dataclasses.dataclass(frozen=True)
class MemoryAsContextOptions(MemoryOptions):
  """Options of the layer."""

  chunk_size: int = field(
    64,
    'Length of a segment, within which tokens attend to each other and whose '
    'gradients are taken at the state at its start.',
    unit='tokens',
    minimum=1,
    maximum=stream.MAX_BLOCK,
  )


class MemoryAsContextState(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    segment: `Seen` [b, n, ...] of the segment that has begun, zeros at places
      that have not come.
    memory: mlp.State.
    memory_position: int32 [] or, where documents have started, [b], tokens
      since the segment began.
  """

  segment: Seen
  memory: mlp.State
  memory_position: jax.Array


class _Inputs(NamedTuple):
  """What a block is computed from, [b, t, n, ...].

  Attributes:
    read: [..., d], queries of the memory.
    q: [..., d], rotated, as k.
    k: of S.
    v: of S.
    place: int32 [b, t, 1, 1], in the segment.
  """

  read: jax.Array
  q: jax.Array
  k: jax.Array
  v: jax.Array
  place: jax.Array


class _Learned(NamedTuple):
  """The parameters that a block is computed with, [b, n, ...]."""

  persistent: tuple[jax.Array, jax.Array] | None
  context: jax.Array
  write: jax.Array
  gates: jax.Array
  gate_bias: jax.Array
  rate: tuple[jax.Array, jax.Array]


def _frequencies(d: int) -> np.ndarray:
  return rotary.frequencies(d // 2, AttentionOptions().rope_theta)


def _unit(x: jax.Array) -> jax.Array:
  return l2_normalize(jax.nn.silu(x))


class MemoryAsContext(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(
    self, sizes: Sizes, options: MemoryAsContextOptions, *, rngs: nnx.Rngs
  ):
    """Builds the layer.

    Args:
      sizes: of the model.
      options: of the layer.
      rngs: for parameters.
    """
    self.sizes, self.options, self.measures = sizes, options, False
    width, heads = sizes.width, sizes.num_heads
    d = width // heads
    # By head, and within a head the memory's q, and q, k, v of attention.
    self.mix = dense_layer(width, 4 * width, dtype=sizes.dtype, rngs=rngs)
    if options.num_persistent:
      self.persistent = Persistent(heads, options.num_persistent, d, rngs=rngs)
    f = d * options.hidden_multiple
    self.memory = Memory(heads, d, f, d, rngs=rngs)
    draw = nnx.initializers.lecun_normal(batch_axis=0)

    def of_heads(outputs: int) -> nnx.Param:
      return nnx.Param(draw(rngs.params(), (heads, d, outputs)))

    # k, v of h; k, v, q of the memory; logits of eta, alpha, beta.
    self.context, self.write, self.gates = map(of_heads, (2 * d, 3 * d, 3))
    alpha = retention_bias(heads)
    bias = jnp.stack([0 * alpha, alpha, 0 * alpha], axis=-1)
    self.gate_bias = nnx.Param(bias[:, None])
    self.memory_rate = nnx.Param(2.0 * jnp.ones((2, heads), jnp.float32))
    self.attention_norm, self.memory_norm = RMSNorm(d), RMSNorm(d)
    self.output = dense_layer(width, width, dtype=sizes.dtype, rngs=rngs)

  def _kernels(self, batch: int) -> mlp.Kernels:
    """The memory's initial kernels, [batch, n, ...]."""
    kernels = mlp.spread(self.memory.kernels(), batch)
    return placement.constrain(kernels, 'memory')

  def init_state(self, batch: int) -> MemoryAsContextState:
    """The state before the first token."""
    kernels = self._kernels(batch)
    heads, d = self.memory.down.shape[0], self.memory.down.shape[-1]
    empty = jnp.zeros((batch, heads, 2, self.options.chunk_size, d))
    empty = placement.constrain(empty, 'memory')
    return MemoryAsContextState(
      segment=Seen(empty, empty),
      memory=mlp.State(kernels, kernels, jax.tree.map(jnp.zeros_like, kernels)),
      memory_position=jnp.int32(0),
    )

  def _inputs(self, x: jax.Array, place: jax.Array) -> _Inputs:
    """Of x [b, t, width] at places [t] or [b, t]."""
    b, t, _ = x.shape
    mixed = at_least_float32(placement.by_head(self.mix(x)))
    read, q, k, v = split_heads(mixed, self.sizes.num_heads, 4)
    frequency = _frequencies(q.shape[-1])
    q, k = (rotary.rotate(z, place, frequency) for z in (q, k))
    place = jnp.broadcast_to(place, (b, t))[..., None, None]
    return _Inputs(read=_unit(read), q=q, k=k, v=v, place=place)

  def _learned(self, batch: int) -> _Learned:
    rate = jax.nn.sigmoid(self.memory_rate[...])[..., None, None]
    persistent = None
    if self.options.num_persistent:
      persistent = self.persistent.k[...], self.persistent.v[...]
    learned = _Learned(
      persistent=persistent,
      context=self.context[...],
      write=self.write[...],
      gates=self.gates[...],
      gate_bias=self.gate_bias[...],
      rate=(rate[0], rate[1]),
    )
    return placement.constrain(mlp.spread(learned, batch), 'memory')

  def _block(self, step: stream.Step):
    """The body of `stream.run`; the trace holds the segment beside it."""
    how = self.options.of_memory().of_memory()
    (trace, held), x, learned = step.trace, step.x, step.consts
    seen, held = context.put(
      _context(step.start, x, learned.context), held, x.place, step.valid
    )
    y = context.attend(x.q, x.place, seen, learned.persistent)
    k, v, q = map(_unit, jnp.split(y @ learned.write, 3, axis=-1))
    gates = jax.nn.sigmoid(y @ learned.gates + learned.gate_bias)
    eta, alpha, beta = jnp.split(gates, 3, axis=-1)
    targets = (v[..., None, :, :],)
    now, trace, reads = mlp.learn(
      None,
      step.start,
      step.now,
      trace,
      k=k,
      targets=targets,
      rates=how.rates(
        step, eta, alpha, 0.95 * beta, learned.rate, read_after=True
      ),
      objective=how.objective,
      queries=q,
    )
    losses: Any = ()
    if self.measures:
      (losses,) = mlp.losses(step.start, k, targets, how.objective)
    return now, (trace, held), (y, reads[0][..., 0, :, :], losses)

  def __call__(
    self,
    x: jax.Array,
    state: MemoryAsContextState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, MemoryAsContextState]:
    """Mixes a piece of a sequence.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True where a document starts, at a segment's first
        place (`stream.run`); None: nowhere.

    Returns:
      (o, state), o [b, t, width].
    """
    b, t, width = x.shape
    fresh = state is None
    state = self.init_state(b) if fresh else state
    x, spoiled = finite.isolate(x, starts)
    chunk = self.options.chunk_size
    place = positions(state.memory_position, t, starts) % chunk
    start, now, trace = state.memory
    memory, position, (y, reads, losses) = stream.run(
      self._block,
      self._learned(b),
      mlp.State(start, now, (trace, state.segment)),
      None if fresh else state.memory_position,
      self._inputs(x, place),
      chunk=chunk,
      starts=starts,
      initial=None if starts is None else self._kernels(b),
    )
    if self.measures:
      found = {'memory': losses.mean((2, 3))}
      self.inner_losses = InnerLosses(finite.spoil(found, spoiled))
    y, reads = placement.constrain((y, reads), 'heads')
    y = self.attention_norm(y) * jax.nn.silu(self.memory_norm(reads))
    y = y.reshape(b, t, width).astype(self.sizes.dtype)
    y = self.output(placement.constrain(y, 'hidden'))
    trace, segment = memory.trace
    memory = memory._replace(trace=trace)
    segment, memory = finite.spoil_state((segment, memory), spoiled)
    state = MemoryAsContextState(segment, memory, position)
    return finite.spoil(y, spoiled), state


def _context(start: mlp.Kernels, x: _Inputs, kernel: jax.Array) -> Seen:
  """Keys and values of h and of S, [b, n, 2, c, d]."""
  h = mlp.forward(start, x.read)[0][..., 0, :, :]
  d = h.shape[-1]
  k, v = jnp.split(d**0.5 * l2_normalize(h) @ kernel, 2, axis=-1)
  # Rotations are of [b, c, n, d].
  k = rotary.rotate(jnp.swapaxes(k, 1, 2), x.place[:, 0, :, 0], _frequencies(d))
  k = jnp.swapaxes(k, 1, 2)
  return Seen(jnp.stack([k, x.k], axis=-3), jnp.stack([v, x.v], axis=-3))


def _parameters(options: MemoryAsContextOptions) -> list[Leaf]:
  del options
  of_head = functools.partial(Leaf, spec=P('tensor', 'fsdp'), kind='matrix')
  return [
    Leaf(
      'mix/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=BY_HEAD._replace(sizes=(0, 4, -1)),
    ),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
    of_head('context|write', component='projections'),
    of_head('gates', component='gates and rates'),
    of_head(
      'memory/(up|down)',
      component='initial state of memory',
      passes_on='sequences start from it',
    ),
    Leaf('gate_bias', P('tensor'), 'gates and rates'),
    Leaf('memory_rate', P(None, 'tensor'), 'gates and rates'),
    Leaf('(attention|memory)_norm/scale', P(), 'norms'),
    PERSISTENT,
  ]


def _levels(sizes: Sizes, options: MemoryAsContextOptions) -> list[Level]:
  segment = AttentionOptions(max_context=options.chunk_size)
  return [
    *titans_part.PART.levels(sizes, options.of_memory()),
    *attention.PART.levels(sizes, segment),
  ]


def _check(sizes: Sizes, options: MemoryAsContextOptions) -> None:
  if sizes.kernel != 'xla':
    raise ValueError(
      f'compute.kernel={sizes.kernel!r} has no form of mac, whose attention is '
      "part of a memory's block; use kernel='xla'."
    )
  segment = AttentionOptions(max_context=options.chunk_size)
  attention.PART.check(sizes, segment)


def _metrics(state: MemoryAsContextState) -> dict[str, jax.Array]:
  return titans_metrics.norms(['memory'], state.memory)


MAC = Part(
  options=MemoryAsContextOptions,
  build=MemoryAsContext,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  divided=divided_heads,
  chunks=lambda options: [options.chunk_size],
  metrics=_metrics,
  # Five square matrices beside those of the heads.
  hidden_multiple=lambda options: 15 / 16,
)
