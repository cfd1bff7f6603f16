"""Causal softmax attention with rotary positions, for Hope-Attention."""

import dataclasses
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers.precision import at_least_float32
from hope.memory import finite
from hope.memory.segments import since_start
from hope.parallel import placement
from hope.parts import BY_HEAD, Leaf, Level, Part, Sizes, per_token


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
  """Options of the layer."""

  max_context: int | None = field(
    None,
    'Longest context that decoding keeps. None: data.seq_len.',
    unit='tokens',
    minimum=1,
    maximum=2**24,
  )


class AttentionState(NamedTuple):
  """The last `max_context` keys and values of a batch of streams.

  Attributes:
    k: [b, max_context, n, d], oldest first, rotated.
    v: [b, max_context, n, d].
    position: int32 [] or, once documents start at places of their own, [b]:
      tokens seen of the document.
  """

  k: jax.Array
  v: jax.Array
  position: jax.Array


def rotate(x: jax.Array, position: jax.Array) -> jax.Array:
  """Rotary embedding of x [b, t, n, d] at position [t] or [b, t].

  The base is 10,000.
  """
  half = x.shape[-1] // 2
  angle = position[..., None] * 1e4 ** (-jnp.arange(half) / half)
  sin, cos = jnp.sin(angle)[..., None, :], jnp.cos(angle)[..., None, :]
  a, b = jnp.split(at_least_float32(x), 2, axis=-1)
  y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y.astype(x.dtype)


class CausalAttention(nnx.Module):
  """A token attends to itself and the max_context tokens before it."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    options: AttentionOptions,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Builds the layer.

    Args:
      width: of the residual stream.
      num_heads: divides the width into heads of even width.
      options: of the layer, max_context filled in.
      dtype: of matmul operands.
      rngs: for parameters.

    Raises:
      ValueError: if max_context is None.
    """
    if options.max_context is None:
      raise ValueError('max_context=None: how long a context shall be kept?')
    self.num_heads, self.max_context = num_heads, options.max_context
    dense = lambda o: nnx.Linear(
      width, o, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.qkv, self.output = dense(3 * width), dense(width)

  def init_state(self, batch: int) -> AttentionState:
    """No token seen."""
    head = self.qkv.kernel.shape[0] // self.num_heads
    empty = jnp.zeros((batch, self.max_context, self.num_heads, head))
    return AttentionState(empty, empty, jnp.int32(0))

  def __call__(
    self,
    x: jax.Array,
    state: AttentionState | None = None,
    starts: jax.Array | None = None,
  ):
    """Attends within each document.

    Args:
      x: [b, t, width].
      state: what the piece before left; None: the sequence starts here.
      starts: bool [b, t], True where a document starts; None: nowhere.

    Returns:
      (y, state), y [b, t, width].
    """
    b, t, width = x.shape
    cached = 0 if state is None else self.max_context
    state = self.init_state(b) if state is None else state
    # By head, and within a head q, k, v.
    qkv = placement.by_head(self.qkv(x))
    q, k, v = jnp.moveaxis(qkv.reshape(b, t, self.num_heads, 3, -1), 3, 0)
    if starts is None:
      position = state.position[..., None] + jnp.arange(t)
    else:
      position = since_start(starts, state.position)
    q, k = rotate(q, position), rotate(k, position)
    keys = jnp.concatenate([state.k.astype(k.dtype), k], axis=1)
    values = jnp.concatenate([state.v.astype(v.dtype), v], axis=1)
    distance = jnp.arange(t)[:, None] - jnp.arange(-cached, t)
    seen = (distance >= 0) & (distance <= self.max_context)
    # Nothing is seen of what came before the document: an empty cache, or the
    # end of another document.
    seen &= distance <= position[..., None]
    window = keys[:, -cached - t :], values[:, -cached - t :]
    (near, read), spoiled = finite.isolate_seen(window, seen)
    y = jax.nn.dot_product_attention(
      q, near, read, mask=seen.reshape(-1, 1, t, cached + t)
    )
    y = finite.spoil(y, spoiled)
    y = self.output(placement.constrain(y.reshape(b, t, width), 'hidden'))
    keep = lambda z, old: z[:, t:].astype(old.dtype)
    return y, AttentionState(
      keep(keys, state.k), keep(values, state.v), position[..., -1] + 1
    )


def _build(sizes: Sizes, options: AttentionOptions, *, rngs: nnx.Rngs):
  if options.max_context is None:
    options = dataclasses.replace(options, max_context=sizes.seq_len)
  return CausalAttention(
    sizes.width, sizes.num_heads, options, dtype=sizes.dtype, rngs=rngs
  )


def _parameters(options: AttentionOptions) -> list[Leaf]:
  del options
  return [
    Leaf(
      'qkv/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=BY_HEAD,
    ),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
  ]


def _levels(sizes: Sizes, options: AttentionOptions) -> list[Level]:
  return [
    Level(
      component='keys and values of attention',
      frequency=per_token(1),
      objective='none: kept as they are',
      context=f'last {options.max_context or sizes.seq_len:,} tokens',
      parameters=0,
      passes_on='read by each token',
    )
  ]


def _check(sizes: Sizes, options: AttentionOptions) -> None:
  del options
  if sizes.width // sizes.num_heads % 2:
    raise ValueError(
      f'model.width={sizes.width} / model.num_heads={sizes.num_heads} must be '
      'even, for the rotation of positions.'
    )


PART = Part(
  options=AttentionOptions,
  build=_build,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  hidden_multiple=17 / 16,  # it has no parameters of memories
)
