"""Causal softmax attention with rotary positions.

It is the mixer of Hope-Attention, of Transformer++ ('attention+swiglu': rotary
positions, RMSNorm, SwiGLU, and grouped queries by `num_kv_heads`) and, with a
short `max_context`, sliding-window attention.

Persistent tokens (arXiv:2501.00663) are keys and values that all tokens see.
Choice: they are learned as keys and values, without a place and a rotation,
rather than as tokens before the first; a window so never leaves them. They
start small, so that a token at first reads nothing of them.

Choice: the cache holds keys as they are rotated. Angles are exact at any
position (`rotary.rotate`), so a long stream gains nothing from rotating the
whole cache again for each token, which takes twice the time at 2,048 tokens.
"""

import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from hope.fields import field
from hope.layers import blockwise, rotary
from hope.layers.dense import dense_layer, split_heads
from hope.memory import finite
from hope.memory.segments import positions
from hope.parallel import placement
from hope.parts import (
  BY_HEAD,
  ONE_PROJECTION,
  Divided,
  Leaf,
  Level,
  Part,
  Sizes,
  per_token,
)


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
  """Options of the layer."""

  max_context: int | None = field(
    None,
    'Tokens before it that a token sees, and that decoding keeps; with the '
    'token itself the sliding window of Samba and of Titans (MAL). None: '
    'data.seq_len.',
    unit='tokens',
    minimum=1,
    maximum=2**24,
  )
  num_kv_heads: int | None = field(
    None,
    'Heads of keys and values, each shared by as many heads of queries. None: '
    'model.num_heads.',
    minimum=1,
    maximum=2**17,
  )
  head_dim: int | None = field(
    None,
    'Width of a head. None: model.width / model.num_heads.',
    minimum=2,
    maximum=2**17,
  )
  rope_theta: float = field(
    1e4, 'Base of the rotary embedding.', above=1, maximum=1e12
  )
  rope_scaling: str = field(
    'none',
    "'llama3' slows long wavelengths, as the rope_ fields below say.",
    choices=('none', 'llama3'),
  )
  rope_factor: float = field(
    8.0, 'Factor of long wavelengths.', minimum=1, maximum=2**20
  )
  rope_low_factor: float = field(
    1.0,
    'Wavelengths above rope_original / rope_low_factor grow by rope_factor.',
    above=0,
  )
  rope_high_factor: float = field(
    4.0,
    'Wavelengths below rope_original / rope_high_factor stay; those between '
    'the two are interpolated.',
    above=0,
  )
  rope_original: int = field(
    8192,
    'Context before the scaling.',
    unit='tokens',
    minimum=1,
    maximum=2**24,
  )
  num_persistent: int = field(
    0,
    'Learned keys and values of each head that all tokens see.',
    minimum=0,
    maximum=2**17,
  )


class AttentionState(NamedTuple):
  """The last `max_context` keys and values of a batch of streams.

  Attributes:
    k: [b, max_context, kv_heads, d], oldest first, rotated.
    v: [b, max_context, kv_heads, d].
    position: int32 [] or, once documents start at places of their own, [b]:
      tokens seen of the document.
  """

  k: jax.Array
  v: jax.Array
  position: jax.Array


class Persistent(nnx.Module):
  """Learned keys and values, [heads, count, d] each, that all tokens see."""

  def __init__(self, heads: int, count: int, d: int, *, rngs: nnx.Rngs):
    draw = nnx.initializers.normal(0.02)
    self.k = nnx.Param(draw(rngs.params(), (heads, count, d)))
    self.v = nnx.Param(draw(rngs.params(), (heads, count, d)))


PERSISTENT = Leaf(
  'persistent/[kv]', P('tensor'), 'persistent tokens', kind='embedding'
)


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
    self.options = options
    self.kv_heads = options.num_kv_heads or num_heads
    self.head = options.head_dim or width // num_heads

    def dense(i: int, o: int) -> nnx.Linear:
      return dense_layer(i, o, dtype=dtype, rngs=rngs)

    if self.kv_heads == num_heads:
      self.qkv = dense(width, 3 * num_heads * self.head)
    else:
      self.query = dense(width, num_heads * self.head)
      self.key_value = dense(width, 2 * self.kv_heads * self.head)
    self.output = dense(num_heads * self.head, width)
    if options.num_persistent:
      self.persistent = Persistent(
        self.kv_heads, options.num_persistent, self.head, rngs=rngs
      )

  def init_state(self, batch: int) -> AttentionState:
    """No token seen."""
    empty = jnp.zeros((batch, self.max_context, self.kv_heads, self.head))
    return AttentionState(empty, empty, jnp.int32(0))

  def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q [b, t, n, d], k and v [b, t, kv_heads, d] of x [b, t, width]."""
    b, t, _ = x.shape
    if self.kv_heads == self.num_heads:
      qkv = placement.by_head(self.qkv(x))
      q, k, v = split_heads(qkv, self.num_heads, 3)
      return q, k, v
    q = placement.by_head(self.query(x)).reshape(b, t, self.num_heads, -1)
    kv = placement.by_head(self.key_value(x))
    k, v = split_heads(kv, self.kv_heads, 2)
    return q, k, v

  def _frequencies(self) -> np.ndarray:
    o, scaling = self.options, None
    if o.rope_scaling == 'llama3':
      scaling = rotary.Llama3Scaling(
        factor=o.rope_factor,
        low_factor=o.rope_low_factor,
        high_factor=o.rope_high_factor,
        original=o.rope_original,
      )
    return rotary.frequencies(self.head // 2, o.rope_theta, scaling)

  def __call__(
    self,
    x: jax.Array,
    state: AttentionState | None = None,
    starts: jax.Array | None = None,
  ):
    """Attends within each document.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True where a document starts; None: nowhere.

    Returns:
      (y, state), y [b, t, width].
    """
    b, t, _ = x.shape
    cached = 0 if state is None else self.max_context
    state = self.init_state(b) if state is None else state
    q, k, v = self._project(x)
    position = positions(state.position, t, starts)
    frequency = self._frequencies()
    q = rotary.rotate(q, position, frequency)
    k = rotary.rotate(k, position, frequency)
    keys = jnp.concatenate([state.k.astype(k.dtype), k], axis=1)
    values = jnp.concatenate([state.v.astype(v.dtype), v], axis=1)
    # The first key that a token sees: of its window, or of its document.
    own = cached + jnp.arange(t, dtype=jnp.int32)
    first = own - jnp.minimum(position, self.max_context)
    window = keys[:, -cached - t :], values[:, -cached - t :]
    (near, read), spoiled = finite.isolate_seen(window, first)
    always = None
    if self.options.num_persistent:
      always = self.persistent.k[...], self.persistent.v[...]
    y = blockwise.attend(q, near, read, first, self.max_context, always)
    if self.kv_heads != self.num_heads:
      spoiled = jnp.repeat(spoiled, self.num_heads // self.kv_heads, axis=-1)
    y = finite.spoil(y, spoiled)
    y = self.output(placement.constrain(y.reshape(b, t, -1), 'hidden'))
    return y, AttentionState(
      keys[:, t:].astype(state.k.dtype),
      values[:, t:].astype(state.v.dtype),
      position[..., -1] + 1,
    )


def _build(sizes: Sizes, options: AttentionOptions, *, rngs: nnx.Rngs):
  if options.max_context is None:
    options = dataclasses.replace(options, max_context=sizes.seq_len)
  return CausalAttention(
    sizes.width, sizes.num_heads, options, dtype=sizes.dtype, rngs=rngs
  )


def _parameters(options: AttentionOptions) -> list[Leaf]:
  projection = functools.partial(
    Leaf,
    spec=P('fsdp', 'tensor'),
    component='projections',
    kind='linear',
  )
  kv_heads = options.num_kv_heads or 0
  return [
    projection('qkv/kernel', split=BY_HEAD),
    projection('query/kernel', split=ONE_PROJECTION),
    projection(
      'key_value/kernel', split=BY_HEAD._replace(sizes=(kv_heads, 2, -1))
    ),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
    PERSISTENT,
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
  if options.head_dim is None and sizes.width // sizes.num_heads % 2:
    raise ValueError(
      f'model.width={sizes.width} / model.num_heads={sizes.num_heads} must be '
      'even, for the rotation of positions.'
    )
  if options.head_dim is not None and options.head_dim % 2:
    raise ValueError(
      f'model.attention.head_dim={options.head_dim} must be even, for the '
      'rotation of positions.'
    )
  kv_heads = options.num_kv_heads or sizes.num_heads
  if sizes.num_heads % kv_heads:
    fit = [n for n in range(1, sizes.num_heads + 1) if sizes.num_heads % n == 0]
    near = min(fit, key=lambda n: abs(n - kv_heads))
    raise ValueError(
      f'model.attention.num_kv_heads={kv_heads} does not divide '
      f'model.num_heads={sizes.num_heads}; try {near}.'
    )
  if options.rope_low_factor >= options.rope_high_factor:
    raise ValueError(
      f'model.attention.rope_low_factor={options.rope_low_factor} must be less '
      f'than rope_high_factor={options.rope_high_factor}.'
    )


def _divided(sizes: Sizes, options: AttentionOptions) -> list[Divided]:
  if options.num_kv_heads is None:
    return []
  return [
    Divided(
      'model.attention.num_kv_heads', options.num_kv_heads, ('tensor', 'seq')
    )
  ]


PART = Part(
  options=AttentionOptions,
  build=_build,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  divided=_divided,
  # In place of the parameters of memories.
  hidden_multiple=lambda options: 17 / 16,
)
