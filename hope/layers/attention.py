"""Causal softmax attention with rotary positions, for Hope-Attention."""

from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from hope.layers.precision import at_least_float32
from hope.parallel import rules


class AttentionState(NamedTuple):
  """The last `max_context` keys and values of a batch of streams.

  Attributes:
    k: [b, max_context, n, d], oldest first, rotated.
    v: [b, max_context, n, d].
    position: int32, tokens seen.
  """

  k: jax.Array
  v: jax.Array
  position: jax.Array


def rotate(x: jax.Array, position: jax.Array) -> jax.Array:
  """Rotary embedding of x [b, t, n, d] at position [t], base 10,000."""
  half = x.shape[-1] // 2
  angle = position[:, None] * 1e4 ** (-jnp.arange(half) / half)
  sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
  a, b = jnp.split(at_least_float32(x), 2, axis=-1)
  y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y.astype(x.dtype)


class CausalAttention(nnx.Module):
  """A token attends to itself and the max_context tokens before it."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    max_context: int,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.num_heads, self.max_context = num_heads, max_context
    dense = lambda o: nnx.Linear(
      width, o, use_bias=False, dtype=dtype, rngs=rngs
    )
    self.qkv, self.output = dense(3 * width), dense(width)

  def init_state(self, batch: int) -> AttentionState:
    """No token seen."""
    head = self.qkv.kernel.shape[0] // self.num_heads
    empty = jnp.zeros((batch, self.max_context, self.num_heads, head))
    return AttentionState(empty, empty, jnp.int32(0))

  def __call__(self, x: jax.Array, state: AttentionState | None = None):
    """Returns (y, state) for x [b, t, width]; None: the sequence starts."""
    b, t, width = x.shape
    cached = 0 if state is None else self.max_context
    state = self.init_state(b) if state is None else state
    # By head, and within a head q, k, v.
    qkv = rules.by_head(self.qkv(x))
    q, k, v = jnp.moveaxis(qkv.reshape(b, t, self.num_heads, 3, -1), 3, 0)
    position = state.position + jnp.arange(t)
    q, k = rotate(q, position), rotate(k, position)
    keys = jnp.concatenate([state.k.astype(k.dtype), k], axis=1)
    values = jnp.concatenate([state.v.astype(v.dtype), v], axis=1)
    # Of an empty cache nothing is looked at.
    place = jnp.arange(-cached, t) + state.position
    distance = position[:, None] - place[None, :]
    seen = (place >= 0) & (distance >= 0) & (distance <= self.max_context)
    y = jax.nn.dot_product_attention(
      q, keys[:, -cached - t :], values[:, -cached - t :], mask=seen[None, None]
    )
    y = self.output(rules.constrain(y.reshape(b, t, width), 'hidden'))
    keep = lambda z, old: z[:, t:].astype(old.dtype)
    return y, AttentionState(
      keep(keys, state.k), keep(values, state.v), state.position + t
    )
