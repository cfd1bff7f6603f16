"""Titans' memory with sliding-window attention (arXiv:2501.00663, section 4).

Memory as a layer (MAL, Eq. 29-31), and gated memory (MAG, Eq. 26-28), where M
is the memory alone (the setting 'lmm' of `hope.mixers.titans`), p are the
persistent tokens and (x) is a gate:

  MAL  y = M([p || x]),           o = SW-Attn(y)
  MAG  y = SW-Attn*([p || x]),    o = y (x) M([p || x])

Choice: persistent tokens are keys and values of attention
(`hope.mixers.attention`), which each token sees beside its window. The memory
has none: its initial state is learned, and is all that they could write to it.
Choice: MAL normalises y with a learned scale, as the inputs of all mixers are.
Choice: MAG's gate is o = norm(y) * silu(norm(M(x))), each norm with a learned
scale. The non-linearity is of the memory's part alone: with one of both, the
layer could hardly add a negative number to the residual stream.
"""

import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers.norm import RMSNorm
from hope.mixers import attention, titans_metrics, titans_part
from hope.mixers.attention import AttentionOptions, AttentionState
from hope.mixers.titans import TitansState
from hope.mixers.titans_options import MemoryOptions
from hope.parts import Divided, Leaf, Level, Part, Sizes

_MEMORY, _ATTENTION = titans_part.PART, attention.PART


@dataclasses.dataclass(frozen=True)
class MemoryAttentionOptions(MemoryOptions):
  """Options of both layers."""

  max_context: int = field(
    128,
    'Tokens before it that a token attends to, and that decoding keeps.',
    unit='tokens',
    minimum=1,
    maximum=2**24,
  )

  def of_attention(self) -> AttentionOptions:
    """Those of attention."""
    return AttentionOptions(
      max_context=self.max_context, num_persistent=self.num_persistent
    )


class MemoryAttentionState(NamedTuple):
  """Fast states of the memory and of attention."""

  memory: TitansState
  attention: AttentionState


class _MemoryAttention(nnx.Module):
  """A memory and attention."""

  def __init__(
    self, sizes: Sizes, options: MemoryAttentionOptions, *, rngs: nnx.Rngs
  ):
    """Builds the layer.

    Args:
      sizes: of the model.
      options: of the layer.
      rngs: for parameters.
    """
    self.memory: Any = _MEMORY.build(sizes, options.of_memory(), rngs=rngs)
    self.attention: Any = _ATTENTION.build(
      sizes, options.of_attention(), rngs=rngs
    )
    self.memory_norm = RMSNorm(sizes.width)

  def init_state(self, batch: int) -> MemoryAttentionState:
    """The state before the first token."""
    return MemoryAttentionState(
      self.memory.init_state(batch), self.attention.init_state(batch)
    )


class MemoryAsLayer(_MemoryAttention):
  """Attention reads what the memory read."""

  def __call__(
    self,
    x: jax.Array,
    state: MemoryAttentionState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, MemoryAttentionState]:
    """Mixes a piece of a sequence.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True where a document starts, at a block's first
        place (`stream.run`); None: nowhere.

    Returns:
      (o, state), o [b, t, width].
    """
    memory, attending = (None, None) if state is None else state
    y, memory = self.memory(x, memory, starts)
    y, attending = self.attention(self.memory_norm(y), attending, starts)
    return y, MemoryAttentionState(memory, attending)


class GatedMemory(_MemoryAttention):
  """What the memory read is a gate of what attention read."""

  def __init__(
    self, sizes: Sizes, options: MemoryAttentionOptions, *, rngs: nnx.Rngs
  ):
    """Builds the layer; arguments as in `MemoryAsLayer`."""
    super().__init__(sizes, options, rngs=rngs)
    self.attention_norm = RMSNorm(sizes.width)

  def __call__(
    self,
    x: jax.Array,
    state: MemoryAttentionState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, MemoryAttentionState]:
    """Mixes a piece of a sequence.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], as in `MemoryAsLayer`; None: nowhere.

    Returns:
      (o, state), o [b, t, width].
    """
    memory, attending = (None, None) if state is None else state
    read, memory = self.memory(x, memory, starts)
    y, attending = self.attention(x, attending, starts)
    y = self.attention_norm(y) * jax.nn.silu(self.memory_norm(read))
    return y, MemoryAttentionState(memory, attending)


def _parameters(options: MemoryAttentionOptions) -> list[Leaf]:
  of_memory = _MEMORY.parameters(options.of_memory())
  of_attention = _ATTENTION.parameters(options.of_attention())
  return [
    *(leaf.below('memory') for leaf in of_memory),
    *(leaf.below('attention') for leaf in of_attention),
    Leaf('(memory|attention)_norm/scale', P(), 'norms'),
  ]


def _levels(sizes: Sizes, options: MemoryAttentionOptions) -> list[Level]:
  return [
    *_MEMORY.levels(sizes, options.of_memory()),
    *_ATTENTION.levels(sizes, options.of_attention()),
  ]


def _check(sizes: Sizes, options: MemoryAttentionOptions) -> None:
  _MEMORY.check(sizes, options.of_memory())
  _ATTENTION.check(sizes, options.of_attention())


def _divided(sizes: Sizes, options: MemoryAttentionOptions) -> list[Divided]:
  return [
    *_MEMORY.divided(sizes, options.of_memory()),
    *_ATTENTION.divided(sizes, options.of_attention()),
  ]


def _metrics(state: MemoryAttentionState) -> dict[str, jax.Array]:
  return titans_metrics.metrics(state.memory)


def _part(build: Any) -> Part:
  return Part(
    options=MemoryAttentionOptions,
    build=build,
    parameters=_parameters,
    levels=_levels,
    check=_check,
    divided=_divided,
    chunks=lambda options: [options.chunk_size],
    metrics=_metrics,
    # Nine square matrices: five of the memory, four of attention.
    hidden_multiple=lambda options: 7 / 16,
  )


MAL, MAG = _part(MemoryAsLayer), _part(GatedMemory)
