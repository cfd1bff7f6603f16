"""Test-time training: TTT-Linear and TTT-MLP (arXiv:2407.04620).

With tokens as rows, the hidden state is a model f of one layer, or of two,

  f(z) = z + LN(z W + b)
  f(z) = z + LN(gelu(z W1 + b1) W2 + b2)

that learns |f(k) - v|^2 / 2 by gradient descent over mini-batches of K tokens.
All gradients of a mini-batch are taken at the state W_0 at its start. Token t,
the t-th of its mini-batch, reads f(q_t) with

  W_t = W_0 - tau_t sum_{s <= t} lr_s grad_s(W_0)
  tau_t = max(0, 1 / t + learned),  lr_s = base sigmoid(x_s w) / width of a head

and the next mini-batch starts from W_K. But for tau this is rule (A) of
`hope.memory.rule` without erase, retention and momentum, read after the write:
u = (z, 1), K = (W; b), g the gradient at the layer's output, eta' = lr.

As published for the models named (M): q and k are one projection with a
convolution each, rotated by their places in the mini-batch; the outputs of all
heads are normalised together and multiplied by gelu(x W_gate).
Choice: the convolutions have no bias.
"""

import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers import rotary
from hope.layers.convolution import CausalConvolution
from hope.layers.dense import dense_layer, split_heads
from hope.layers.precision import at_least_float32
from hope.memory import finite, mlp, objectives, stream, test_time
from hope.memory.segments import positions
from hope.parallel import placement
from hope.parts import (
  ONE_PROJECTION,
  InnerLosses,
  Leaf,
  Level,
  Part,
  Sizes,
  divided_heads,
  per_token,
)

MODELS = ('linear', 'mlp')
_BASE_RATES = {'linear': 1.0, 'mlp': 0.1}


@dataclasses.dataclass(frozen=True)
class TTTOptions:
  """Options of the layer."""

  model: str = field('linear', 'The hidden state, f.', choices=MODELS)
  chunk_size: int = field(
    16,
    'Length of a mini-batch, whose gradients are taken at one state.',
    unit='tokens',
    minimum=1,
  )
  hidden_multiple: int = field(
    4,
    "Hidden width of model='mlp' as a multiple of its head's width.",
    minimum=1,
    maximum=64,
  )
  base_rate: float | None = field(
    None,
    "Largest inner learning rate. None: 1, and 0.1 for model='mlp'.",
    minimum=0,
  )
  conv_width: int = field(
    4,
    'Tokens that the causal convolutions of q and k see.',
    unit='tokens',
    minimum=1,
    maximum=2**12,
  )
  rope_theta: float = field(
    1e4, 'Base of the rotary embedding.', above=1, maximum=1e12
  )


class TTTState(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    conv: [b, conv_width - 1, 2 width], last inputs of the convolutions.
    memory: mlp.State of the layers (W; b), each [b, n, i + 1, o].
    memory_position: int32 [] or, where documents have started, [b], tokens
      since the mini-batch began; None: zero, statically.
  """

  conv: jax.Array
  memory: mlp.State
  memory_position: jax.Array | None


class TTTLayer(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(self, sizes: Sizes, options: TTTOptions, *, rngs: nnx.Rngs):
    """Builds the layer.

    Args:
      sizes: of the model.
      options: of the layer.
      rngs: for parameters.
    """
    self.sizes, self.options, self.measures = sizes, options, False
    width, heads = sizes.width, sizes.num_heads
    d = width // heads

    def dense(outputs: int) -> nnx.Linear:
      return dense_layer(width, outputs, dtype=sizes.dtype, rngs=rngs)

    self.qk, self.v, self.gate = dense(width), dense(width), dense(width)
    self.conv = CausalConvolution(2 * width, options.conv_width, rngs=rngs)
    self.rate = dense_layer(
      width, heads, use_bias=True, dtype=sizes.dtype, rngs=rngs
    )
    self.tau = nnx.Param(jnp.zeros(options.chunk_size))
    widths = [d, d]
    if options.model == 'mlp':
      widths.insert(1, d * options.hidden_multiple)
    normal = nnx.initializers.normal(0.02)
    for j, (i, o) in enumerate(zip(widths, widths[1:], strict=False)):
      kernel = nnx.Param(normal(rngs.params(), (heads, i, o)))
      setattr(self, f'w{j}', kernel)
      setattr(self, f'b{j}', nnx.Param(jnp.zeros((heads, 1, o))))
    self.inner_scale = nnx.Param(jnp.ones((heads, 1, d)))
    self.inner_bias = nnx.Param(jnp.zeros((heads, 1, d)))
    self.norm = nnx.LayerNorm(
      width, epsilon=test_time.EPS, use_fast_variance=False, rngs=rngs
    )
    self.output = dense(width)

  def _kernels(self, batch: int) -> tuple[jax.Array, ...]:
    """(W; b) of the layers, [batch, n, i + 1, o]."""
    layers = 2 if self.options.model == 'mlp' else 1
    kernels = tuple(
      jnp.concatenate(
        [getattr(self, f'w{j}')[...], getattr(self, f'b{j}')[...]], axis=1
      )
      for j in range(layers)
    )
    return placement.constrain(mlp.spread(kernels, batch), 'memory')

  def init_state(self, batch: int) -> TTTState:
    """The state before the first token."""
    kernels = self._kernels(batch)
    return TTTState(
      conv=self.conv.init_state(batch),
      memory=mlp.State(kernels, kernels, None),
      memory_position=jnp.int32(0),
    )

  def _read_inputs(self, x: jax.Array, conv: jax.Array, place, starts):
    """((q, k, v, lr, tau, end), conv): [b, t, n, d] and [b, t, n, 1].

    end: tau_K - 1 at the last token of a mini-batch, else 0.
    """
    b, t, width = x.shape
    heads, chunk = self.sizes.num_heads, self.options.chunk_size
    shared = placement.by_head(self.qk(x)).reshape(b, t, heads, 1, -1)
    shared = jnp.broadcast_to(shared, (b, t, heads, 2, width // heads))
    mixed, conv = self.conv(shared.reshape(b, t, -1), conv, starts)
    q, k = split_heads(mixed, heads, 2)
    v = placement.by_head(self.v(x)).reshape(b, t, heads, -1)
    q, k, v = map(at_least_float32, (q, k, v))
    frequency = rotary.frequencies(
      q.shape[-1] // 2, self.options.rope_theta, None
    )
    q, k = (rotary.rotate(z, place, frequency) for z in (q, k))
    base = self.options.base_rate
    base = _BASE_RATES[self.options.model] if base is None else base
    rate = at_least_float32(placement.by_head(self.rate(x)))
    rate = base / q.shape[-1] * jax.nn.sigmoid(rate)[..., None]
    taus = jnp.maximum(0, 1 / jnp.arange(1, chunk + 1) + self.tau[...])
    at = taus.astype(q.dtype)[place][..., None, None]
    at = jnp.broadcast_to(at, rate.shape)
    end = jnp.where(place == chunk - 1, taus[-1] - 1, 0).astype(q.dtype)
    end = jnp.broadcast_to(end[..., None, None], rate.shape)
    return (q, k, v, rate, at, end), conv

  def __call__(
    self,
    x: jax.Array,
    state: TTTState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, TTTState]:
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
    fresh = state is None
    state = self.init_state(b) if fresh else state
    x, spoiled = finite.isolate(x, starts)
    position = state.memory_position
    if position is None:
      position = jnp.int32(0)
    place = positions(position, t, starts)
    place %= self.options.chunk_size
    xs, conv = self._read_inputs(x, state.conv, place, starts)
    norm = self.inner_scale[...], self.inner_bias[...]

    def body(step: stream.Step):
      q, k, v, rate, tau, end = step.x
      inner = test_time.Inner(*step.consts)
      new, y = test_time.learn(
        inner,
        step.start,
        step.now,
        q=q,
        k=k,
        v=v,
        rate=step.counted(rate),
        tau=tau,
        tau_end=1 + jnp.sum(step.counted(end), axis=-2, keepdims=True),
        form=step.form,
      )
      losses = ()
      if self.measures:
        losses = objectives.loss('l2', inner.forward(step.start, k), v)
      return new, None, (y, losses)

    memory, position, (y, losses) = stream.run(
      body,
      mlp.spread(norm, b),
      state.memory,
      None if fresh else state.memory_position,
      xs,
      chunk=self.options.chunk_size,
      starts=starts,
      initial=None if starts is None else self._kernels(b),
    )
    if self.measures:
      found = {'memory': losses.mean((2, 3))}
      self.inner_losses = InnerLosses(finite.spoil(found, spoiled))
    y = placement.constrain(y, 'heads').reshape(b, t, width)
    y = self.norm(y).astype(self.sizes.dtype)
    y *= test_time.gelu(placement.by_head(self.gate(x)))
    y = self.output(placement.constrain(y, 'hidden'))
    conv, memory = finite.spoil_state((conv, memory), spoiled)
    return finite.spoil(y, spoiled), TTTState(conv, memory, position)


def _parameters(options: TTTOptions) -> list[Leaf]:
  del options
  projection = functools.partial(
    Leaf, spec=P('fsdp', 'tensor'), component='projections', kind='linear'
  )
  return [
    projection('(qk|v|gate)/kernel', split=ONE_PROJECTION),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
    Leaf('conv/kernel', P(None, 'tensor'), 'convolution', kind='filter'),
    Leaf('rate/kernel', P('fsdp', 'tensor'), 'gates and rates', kind='linear'),
    Leaf('rate/bias', P('tensor'), 'gates and rates'),
    Leaf('tau', P(), 'gates and rates'),
    Leaf(
      'w[01]',
      P('tensor', 'fsdp'),
      'initial state of memory',
      kind='matrix',
      passes_on='sequences start from it',
    ),
    Leaf(
      'b[01]',
      P('tensor'),
      'initial state of memory',
      passes_on='sequences start from it',
    ),
    Leaf('inner_(scale|bias)', P('tensor'), 'norms'),
    Leaf('norm/(scale|bias)', P(), 'norms'),
  ]


def _levels(sizes: Sizes, options: TTTOptions) -> list[Level]:
  del sizes
  return [
    Level(
      component=f'memory of ttt, {options.model}',
      frequency=per_token(1),
      objective=f'1/2 |f(k) - v|^2, gradients at {options.chunk_size}-token '
      'mini-batches',
      context='keys, values so far',
      parameters=0,
      passes_on='its reads, to the block',
    )
  ]


def _check(sizes: Sizes, options: TTTOptions) -> None:
  if sizes.kernel != 'xla':
    raise ValueError(
      f'compute.kernel={sizes.kernel!r} has no form of ttt, whose layers have '
      "biases; use kernel='xla'."
    )
  stream.check_kernel(sizes.kernel, options.chunk_size)
  if sizes.width // sizes.num_heads % 2:
    raise ValueError(
      f'model.width={sizes.width} / model.num_heads={sizes.num_heads} must be '
      'even, for the rotation of positions of ttt.'
    )


def metrics(state: TTTState) -> dict[str, jax.Array]:
  """Norm of the weights of f, by layer: RMS over heads and batch.

  Args:
    state: of stacked layers, [layers, b, ...].
  """
  return {'memory/state_norm': mlp.norms(state.memory.now)}


def _chunks(options: TTTOptions) -> list[int]:
  return [options.chunk_size]


PART = Part(
  options=TTTOptions,
  build=TTTLayer,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  divided=divided_heads,
  chunks=_chunks,
  metrics=metrics,
  hidden_multiple=lambda options: 1.0,
)
