r"""RWKV-7, a delta rule that decays by channel (arXiv:2503.14456).

A token's input x_t and the one before it are mixed for each of the six uses,
lerp(x_t, x_{t-1}, mu), and give, in rows,

  r, k, v = x W                     receptance, key, value
  w = exp(-e^{-1/2} sigmoid(b + tanh(x A) B))        decay, by channel
  a = sigmoid(b + x A B)            rate, by channel
  g = sigmoid(x A) B                gate

  khat = k * xi / |k * xi|, ktilde = k * lerp(1, a, alpha), by head
  S_t = S_{t-1} (diag(w_t) - khat_t^T (a_t * khat_t)) + v_t^T ktilde_t
  y = norm(S_t r_t^T) + (r . (rho * ktilde)) v, times g, times W

with S of one head and the norm over a head, with a scale and a bias.

Deviation: the paper mixes v with that of the first layer. Here layers are
computed alike, in a scan, and none sees values of another.
Deviation: initial values are those of the authors' training code, where some
depend on the depth of the layer. Here all layers begin as its middle one. The
output projection is zero at first, as there.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax.nn import initializers
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers.dense import dense_layer
from hope.layers.norm import l2_normalize
from hope.layers.orthogonal import orthogonal
from hope.layers.precision import at_least_float32
from hope.memory import diagonal, finite, linear, mlp, objectives, stream
from hope.mixers import delta
from hope.parallel import placement
from hope.parts import (
  ONE_PROJECTION,
  InnerLosses,
  Leaf,
  Level,
  Part,
  Sizes,
  per_token,
)

# How far x goes towards the token before it at first: 1 - (channel / width)^p.
_SHIFTS = {'r': 0.2, 'w': 0.9, 'k': 0.7, 'v': 0.7, 'a': 0.9, 'g': 0.2}
# Of layers, from 0 to 1, that all layers begin like.
_DEPTH = 0.5
_NORM_EPS = 64e-5


def _rank(meaning: str, factor: float) -> Any:
  return field(
    None,
    f'Inner width of what gives the {meaning}. None: as published, '
    f'{factor:g} times the root of the width, rounded to a multiple of 32.',
    of=int,
    minimum=1,
    maximum=2**17,
  )


_RANKS = {'decay': 2.5, 'rate': 2.5, 'gate': 5.0}


@dataclasses.dataclass(frozen=True)
class RWKV7Options:
  """Options of the layer."""

  chunk_size: int = field(
    64,
    'Tokens that are computed at once; numbers do not depend on it.',
    unit='tokens',
    minimum=1,
  )
  decay_rank: int | None = _rank('decay', _RANKS['decay'])
  rate_rank: int | None = _rank('rate', _RANKS['rate'])
  gate_rank: int | None = _rank('gate', _RANKS['gate'])

  def rank(self, name: str, width: int) -> int:
    """The inner width of 'decay', 'rate' or 'gate', for a model's width."""
    published = max(32, round(_RANKS[name] * math.sqrt(width) / 32) * 32)
    return getattr(self, f'{name}_rank') or published


class RWKV7State(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    last: [b, width], the last token's input.
    memory: S^T, mlp.State of [b, n, i, o].
    memory_position: int32 [] or, where documents have started, [b], tokens
      since the memory's chunk began; None: zero, statically.
  """

  last: jax.Array
  memory: mlp.State
  memory_position: jax.Array | None


class LowRank(nnx.Module):
  """x A, an activation, and B; zero at first."""

  def __init__(self, width: int, rank: int, dtype: Any, *, rngs: nnx.Rngs):
    dense = functools.partial(dense_layer, dtype=dtype, rngs=rngs)
    self.down = dense(width, rank, kernel_init=initializers.zeros)
    self.up = dense(rank, width, kernel_init=orthogonal(0.1))

  def __call__(self, x: jax.Array, activation=None) -> jax.Array:
    """Returns [b, t, width] for x [b, t, width]."""
    hidden = self.down(x)
    return self.up(hidden if activation is None else activation(hidden))


class RWKV7(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(self, sizes: Sizes, options: RWKV7Options, *, rngs: nnx.Rngs):
    """Builds the layer.

    Args:
      sizes: of the model.
      options: of the layer.
      rngs: for parameters.
    """
    _check(sizes, options)
    self.sizes, self.options, self.measures = sizes, options, False
    width, heads = sizes.width, sizes.num_heads

    def dense(kernel_init: Any) -> nnx.Linear:
      return dense_layer(
        width, width, dtype=sizes.dtype, kernel_init=kernel_init, rngs=rngs
      )

    def low_rank(name: str) -> LowRank:
      return LowRank(width, options.rank(name, width), sizes.dtype, rngs=rngs)

    # Uniform up to 0.5 width^-0.5, the key's to a tenth of it.
    drawn = functools.partial(
      initializers.variance_scaling, mode='fan_in', distribution='uniform'
    )
    self.receptance = dense(drawn(1 / 12))
    self.key = dense(drawn(1 / 1200))
    self.value = dense(drawn(1 / 12))
    self.output = dense(initializers.zeros)
    self.decay = low_rank('decay')
    self.rate = low_rank('rate')
    self.gate = low_rank('gate')

    channel = jnp.arange(width) / width
    rest = 1 - _DEPTH
    self.shift = nnx.Param(
      jnp.stack([1 - channel ** (p * rest) for p in _SHIFTS.values()])
    )
    ramp = jnp.linspace(0, 1, width)
    bend = jnp.linspace(-1, 1, width // heads)
    bend = jnp.tile(bend * jnp.abs(bend), heads)
    self.decay_bias = nnx.Param(
      -5.5 + 6 * ramp ** (1 + _DEPTH**0.3) + 2.5 * bend
    )
    self.rate_bias = nnx.Param(0.3 * bend + 0.4 * ramp - 0.39)
    self.key_scale = nnx.Param(0.76 - 0.1 * ramp)
    self.key_rate = nnx.Param(1.02 * jnp.ones(width))
    self.bonus = nnx.Param(-0.04 * jnp.ones(width))
    self.norm_scale = nnx.Param(_DEPTH**0.7 * jnp.ones(width))
    self.norm_bias = nnx.Param(jnp.zeros(width))

  def init_state(self, batch: int) -> RWKV7State:
    """The state before the first token."""
    width, heads = self.sizes.width, self.sizes.num_heads
    head, dtype = width // heads, jnp.result_type(float)
    memory = linear.init_state(batch, heads, head, head, dtype)
    return RWKV7State(
      last=jnp.zeros((batch, width), dtype),
      memory=placement.constrain(memory, 'memory'),
      memory_position=jnp.int32(0),
    )

  def _shifted(self, x: jax.Array, last: jax.Array, starts):
    """x for each use: lerp(x_t, x_{t-1}, mu), [b, t, width] by name."""
    before = jnp.concatenate([last[:, None].astype(x.dtype), x[:, :-1]], axis=1)
    if starts is not None:
      before = jnp.where(starts[..., None], 0, before)
    shift = self.shift[...].astype(x.dtype)
    step = before - x
    return {name: x + step * shift[j] for j, name in enumerate(_SHIFTS)}

  def _heads(self, x: jax.Array) -> jax.Array:
    """x [b, t, width] as [b, t, n, d], in float32 or better."""
    x = at_least_float32(placement.by_head(x))
    return x.reshape(*x.shape[:2], self.sizes.num_heads, -1)

  def _of_channels(self, parameter: nnx.Param) -> jax.Array:
    """A parameter [width] as [n, d]."""
    return parameter[...].reshape(self.sizes.num_heads, -1)

  def _tokens(self, x: dict[str, jax.Array]) -> diagonal.Tokens:
    """What the recurrence is given."""
    k = self._heads(self.key(x['k']))
    rate = self._heads(self.rate(x['a']))
    rate = jax.nn.sigmoid(rate + self._of_channels(self.rate_bias))
    decay = self._heads(self.decay(x['w'], jnp.tanh))
    decay = jax.nn.sigmoid(decay + self._of_channels(self.decay_bias))
    return diagonal.Tokens(
      queries=self._heads(self.receptance(x['r'])),
      log_decay=-math.exp(-0.5) * decay,
      removed=l2_normalize(k * self._of_channels(self.key_scale)),
      rate=rate,
      keys=k * (1 + (rate - 1) * self._of_channels(self.key_rate)),
      values=self._heads(self.value(x['v'])),
    )

  def _normed(self, y: jax.Array) -> jax.Array:
    """Reads [b, t, n, d], normed by head."""
    variance = jnp.var(y, axis=-1, keepdims=True)
    y = jax.nn.standardize(y, variance=variance, epsilon=_NORM_EPS)
    scale, bias = map(self._of_channels, (self.norm_scale, self.norm_bias))
    return y * scale + bias

  def __call__(
    self,
    x: jax.Array,
    state: RWKV7State | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, RWKV7State]:
    """Mixes a piece of a sequence.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True where a document starts, at a block's first
        place (`stream.run`); None: nowhere.

    Returns:
      (y, state), y [b, t, width].
    """
    b, t, width = x.shape
    if state is None:
      state = self.init_state(b)._replace(memory_position=None)
    x, spoiled = finite.isolate(x, starts)
    shifted = self._shifted(x, state.last, starts)
    tokens = self._tokens(shifted)
    y, memory, memory_position, predictions = diagonal.remember(
      state.memory,
      state.memory_position,
      tokens,
      chunk=self.options.chunk_size,
      starts=starts,
      predicts=self.measures,
    )
    if predictions is not None:
      losses = objectives.loss('l2', predictions, tokens.values).mean((2, 3))
      found = finite.spoil({'memory': losses}, spoiled)
      self.inner_losses = InnerLosses(found)
    y = self._normed(placement.constrain(y, 'heads'))
    match = tokens.queries * tokens.keys * self._of_channels(self.bonus)
    y += jnp.sum(match, axis=-1, keepdims=True) * tokens.values
    y = y.reshape(b, t, width).astype(self.sizes.dtype)
    y *= placement.by_head(self.gate(shifted['g'], jax.nn.sigmoid))
    y = self.output(placement.constrain(y, 'hidden'))
    last, memory = finite.spoil_state(
      (x[:, -1].astype(state.last.dtype), memory), spoiled
    )
    state = RWKV7State(
      last=last, memory=memory, memory_position=memory_position
    )
    return finite.spoil(y, spoiled), state


def _parameters(options: RWKV7Options) -> list[Leaf]:
  del options
  rates = 'gates and rates'
  return [
    Leaf(
      '(receptance|key|value)/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=ONE_PROJECTION,
    ),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
    Leaf('(decay|rate|gate)/down/kernel', P('fsdp'), rates, kind='linear'),
    Leaf(
      '(decay|rate|gate)/up/kernel', P(None, 'tensor'), rates, kind='linear'
    ),
    Leaf('(decay|rate)_bias|key_(scale|rate)|bonus', P('tensor'), rates),
    Leaf('shift', P(), rates),
    Leaf('norm_(scale|bias)', P('tensor'), 'norms'),
  ]


def _levels(sizes: Sizes, options: RWKV7Options) -> list[Level]:
  del sizes, options
  return [
    Level(
      component='memory of rwkv7',
      frequency=per_token(1),
      objective='1/2 |S k - v|^2, decayed by channel',
      context='keys, values so far',
      parameters=0,
      passes_on='its reads, to the block',
    )
  ]


def _check(sizes: Sizes, options: RWKV7Options) -> None:
  if sizes.kernel == 'pallas':
    raise ValueError(
      "compute.kernel='pallas' has one decay per head and cannot run the mixer "
      "rwkv7, which decays by channel; use compute.kernel='xla'."
    )
  stream.check_kernel(sizes.kernel, options.chunk_size)


def _chunks(options: RWKV7Options) -> list[int]:
  return [options.chunk_size]


PART = Part(
  options=RWKV7Options,
  build=RWKV7,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  chunks=_chunks,
  metrics=delta.metrics,
)
