"""Mamba: a selective state space (arXiv:2312.00752).

With d channels, each with a state of N numbers, and with x_t [d] after a causal
convolution and SiLU,

  D_t = softplus(x_t W_x W_D + b)       [d], the step sizes
  B_t, C_t = x_t W_B, x_t W_C           [N] each
  h_t = exp(D_t A) h_{t-1} + (D_t x_t) B_t^T       [d, N]
  y_t = h_t C_t + s x_t

where A = -exp(a) [d, N] and the skip s [d] are learned, and W_x W_D has rank
width / 16, rounded up. The layer is (y silu(z)) W with gates z of its input.
With attention in turn it is Samba (arXiv:2406.07522), as `model.pattern`

  mamba+swiglu, attention(max_context=2048)+swiglu

Choice: tokens are computed one by one: on the CPU this takes a quarter of the
time of associative scans within blocks of 16 or 64 tokens. The backward pass
keeps a state for each group of tokens, and computes those between them again
(`hope.memory.stream`).
Choice: the channels are split into `model.num_heads` groups, which changes no
number: on a mesh each device has groups of its own.
Choice: the convolution starts as the identity plus noise, as in all layers.
"""

import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers import step_size
from hope.layers.convolution import CausalConvolution
from hope.layers.dense import dense_layer
from hope.layers.precision import at_least_float32
from hope.memory import finite, mlp, stream
from hope.parallel import placement
from hope.parts import Leaf, Level, Part, Sizes, per_token


@dataclasses.dataclass(frozen=True)
class MambaOptions:
  """Options of the layer."""

  state_size: int = field(
    16, 'Numbers in the state of a channel.', minimum=1, maximum=2**12
  )
  expand: int = field(
    2, 'Channels as a multiple of the width.', minimum=1, maximum=64
  )
  conv_width: int = field(
    4,
    'Tokens that the causal convolution sees.',
    unit='tokens',
    minimum=1,
    maximum=2**12,
  )


class MambaState(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    conv: [b, conv_width - 1, d], last inputs of the convolution.
    memory: h, [b, n, d / n, N] for n = model.num_heads groups of channels.
  """

  conv: jax.Array
  memory: jax.Array


def select(
  a: jax.Array,
  memory: jax.Array,
  x: jax.Array,
  step: jax.Array,
  write: jax.Array,
  read: jax.Array,
  starts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The selective state space over a piece, without the skip.

  Channels come in groups n, each of which may be on a device of its own.

  Args:
    a: A, negative, [n, d, N]; all inputs float32 or wider.
    memory: h before the first token, [b, n, d, N].
    x: [b, t, n, d].
    step: D_t, [b, t, n, d].
    write: B_t, [b, t, N].
    read: C_t, [b, t, N].
    starts: bool [b, t], True where a document starts, with h = 0; None:
      nowhere.

  Returns:
    (y, memory), y [b, t, n, d].
  """
  b, t, n, _ = x.shape

  def spread(z: jax.Array) -> jax.Array:
    """A copy for each group: the scan's backward pass sums no gradients."""
    z = jnp.broadcast_to(z[:, :, None], (b, t, n, z.shape[-1]))
    return placement.constrain(z, 'heads')

  def body(of_token: stream.Step):
    # x, step [b, n, 1, d]; write, read [b, n, 1, N].
    x, step, write, read = of_token.x
    step, x = step.swapaxes(-2, -1), x.swapaxes(-2, -1)
    h = jnp.exp(step * of_token.consts) * of_token.now + step * x * write
    return h, None, jnp.sum(h * read, axis=-1)[:, :, None]

  state, _, y = stream.run(
    body,
    placement.constrain(mlp.spread(a, b), 'memory'),
    mlp.State(start=None, now=memory, trace=None),
    None,
    (x, step, spread(write), spread(read)),
    chunk=1,
    starts=starts,
  )
  return y, state.now


class MambaLayer(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(self, sizes: Sizes, options: MambaOptions, *, rngs: nnx.Rngs):
    """Builds the layer."""
    self.sizes, self.options = sizes, options
    width, n = sizes.width, options.state_size
    self.channels, self.rank = options.expand * width, -(-width // 16)
    dense = functools.partial(dense_layer, dtype=sizes.dtype, rngs=rngs)
    self.input = dense(width, self.channels)
    self.gate = dense(width, self.channels)
    self.conv = CausalConvolution(self.channels, options.conv_width, rngs=rngs)
    self.conv_bias = nnx.Param(jnp.zeros(self.channels))
    # What says how the state changes is not rounded to bfloat16.
    exact = functools.partial(
      nnx.Linear,
      use_bias=False,
      dtype=sizes.dtype,
      preferred_element_type=jnp.promote_types(sizes.dtype, jnp.float32),
      rngs=rngs,
    )
    self.selection = exact(self.channels, self.rank + 2 * n)
    # Uniform from -rank^-1/2 to rank^-1/2.
    draw = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    self.step = exact(self.rank, self.channels, kernel_init=draw)
    self.step_bias = nnx.Param(
      step_size.draw_bias(rngs.params(), (self.channels,))
    )
    rates = jnp.log(jnp.arange(1.0, n + 1))
    self.a_log = nnx.Param(jnp.tile(rates, (self.channels, 1)))
    self.skip = nnx.Param(jnp.ones(self.channels))
    self.output = dense(self.channels, width)

  def init_state(self, batch: int) -> MambaState:
    """The state before the first token."""
    groups = self.sizes.num_heads, self.channels // self.sizes.num_heads
    shape = batch, *groups, self.options.state_size
    memory = jnp.zeros(shape, jnp.result_type(float))
    return MambaState(
      conv=self.conv.init_state(batch),
      memory=placement.constrain(memory, 'memory'),
    )

  def _select(self, x: jax.Array, memory: jax.Array, starts):
    """(y, memory) of the state space, for x [b, t, d] after the SiLU."""
    found = placement.constrain(self.selection(x), 'level')
    step, write, read = jnp.split(
      found, [self.rank, self.rank + self.options.state_size], axis=-1
    )
    step = placement.constrain(self.step(step), 'heads')
    step = jax.nn.softplus(step + self.step_bias[...])
    groups = self.sizes.num_heads, self.channels // self.sizes.num_heads
    y, memory = select(
      -jnp.exp(self.a_log[...]).reshape(*groups, -1),
      memory,
      x.reshape(*x.shape[:2], *groups),
      step.reshape(*x.shape[:2], *groups),
      write,
      read,
      starts,
    )
    y = placement.constrain(y, 'heads').reshape(x.shape)
    return y + self.skip[...] * x, memory

  def __call__(
    self,
    x: jax.Array,
    state: MambaState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, MambaState]:
    """Mixes a piece of a sequence.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True where a document starts, anywhere; None:
        nowhere.

    Returns:
      (y, state), y [b, t, width].
    """
    state = self.init_state(x.shape[0]) if state is None else state
    x, spoiled = finite.isolate(x, starts)
    gate = at_least_float32(placement.by_head(self.gate(x)))
    mixed = at_least_float32(placement.by_head(self.input(x)))
    mixed, conv = self.conv(mixed, state.conv, starts)
    y, memory = self._select(
      jax.nn.silu(mixed + self.conv_bias[...]), state.memory, starts
    )
    y = (y * jax.nn.silu(gate)).astype(self.sizes.dtype)
    y = self.output(placement.constrain(y, 'hidden'))
    state = finite.spoil_state(MambaState(conv=conv, memory=memory), spoiled)
    return finite.spoil(y, spoiled), state


def _parameters(options: MambaOptions) -> list[Leaf]:
  del options
  small = functools.partial(
    Leaf, component='gates and rates', kind='linear', used_whole=True
  )
  return [
    Leaf(
      '(input|gate)/kernel', P('fsdp', 'tensor'), 'projections', kind='linear'
    ),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
    Leaf('conv/kernel', P(None, 'tensor'), 'convolution', kind='filter'),
    Leaf('conv_bias', P('tensor'), 'convolution'),
    small('selection/kernel', P(('fsdp', 'tensor'))),
    small('step/kernel', P(None, ('fsdp', 'tensor'))),
    Leaf('step_bias|skip|a_log', P('tensor'), 'gates and rates'),
  ]


def _levels(sizes: Sizes, options: MambaOptions) -> list[Level]:
  del sizes, options
  return [
    Level(
      component='state of Mamba',
      frequency=per_token(1),
      objective='none: step sizes say what is kept',
      context='tokens so far',
      parameters=0,
      passes_on='its reads, to the block',
    )
  ]


def metrics(state: MambaState) -> dict[str, jax.Array]:
  """Norm of the state, by layer: RMS over groups and batch.

  Args:
    state: of stacked layers, [layers, b, ...].
  """
  return {'memory/state_norm': mlp.norms(state.memory)}


def _hidden_multiple(options: MambaOptions) -> float:
  """What is left of the blocks' 12.5 width^2, in sixteenths of the width.

  The layer has 3 1/8 expand width^2.
  """
  return max(2, int(25 - 6.25 * options.expand)) / 16


PART = Part(
  options=MambaOptions,
  build=MambaLayer,
  parameters=_parameters,
  levels=_levels,
  metrics=metrics,
  hidden_multiple=_hidden_multiple,
)
