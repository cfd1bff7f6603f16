"""Linear recurrences with one matrix per head, through the chunk solver.

With the state S [o, i] and k, q, v as columns, as their papers write them:

  linear_attention  S_t = S_{t-1} + v_t f(k_t)^T, z_t = z_{t-1} + f(k_t),
                    y_t = S_t f(q_t) / z_t.f(q_t), f = elu + 1
                    (arXiv:2006.16236)
  retnet            S_t = gamma S_{t-1} + v_t k_t^T, y_t = S_t q_t / sqrt(i), q
                    and k rotated, gamma = 1 - 2^(-5 - head) (arXiv:2307.08621)
  deltanet          S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,
                    y_t = S_t q_t, |q| = |k| = 1 (arXiv:2406.06484)
  gated_deltanet    S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T)
                          + beta_t v_t k_t^T (arXiv:2412.06464)
  comba             S_t = S_{t-1} (alpha_t I - b beta_t k_t k_t^T)
                          + beta_t v_t k_t^T,
                    y_t = S_t (q_t - d k_t) (arXiv:2506.02475)

beta = sigmoid(x W), times two with negative_eigenvalues; alpha = exp(-exp(a)
softplus(x W + b)), with a and b as Mamba2 draws them. Comba's b = sigmoid(B);
B, which starts at 1, and d are learned numbers of each head.

Choice: d k is subtracted after q and k are normalised, as the equations of
Comba have it. Its public code subtracts d b k before, and normalises b k, which
takes b away.
Choice: all have the same layer around the recurrence, so that they differ
in it alone: a causal convolution and SiLU on q, k and v, RMSNorm of each head's
output, and a gate silu(x W) on it. conv_width=0 and output_gate=False leave
them out.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers import rotary, step_size
from hope.layers.convolution import CausalConvolution
from hope.layers.dense import dense_layer, split_heads
from hope.layers.norm import RMSNorm, l2_normalize
from hope.layers.precision import at_least_float32
from hope.memory import finite, linear, mlp, objectives, stream
from hope.memory.segments import positions
from hope.parallel import placement
from hope.parts import (
  BY_HEAD,
  ONE_PROJECTION,
  InnerLosses,
  Leaf,
  Level,
  Part,
  Sizes,
  divided_heads,
  per_token,
)

RULES = ('linear_attention', 'retnet', 'deltanet', 'gated_deltanet', 'comba')


@dataclasses.dataclass(frozen=True)
class DeltaOptions:
  """Options of the layer."""

  rule: str = field('gated_deltanet', 'The recurrence.', choices=RULES)
  chunk_size: int = field(
    64,
    'Tokens that are computed at once; numbers do not depend on it.',
    unit='tokens',
    minimum=1,
  )
  conv_width: int = field(
    4,
    'Tokens that the causal convolution of q, k and v sees. 0: there is none, '
    'nor an activation after it.',
    unit='tokens',
    minimum=0,
    maximum=2**12,
  )
  output_gate: bool = field(True, "Whether a head's output is gated.")
  negative_eigenvalues: bool = field(
    False,
    'Whether beta is in (0, 2) rather than (0, 1), so that a write may turn '
    'what is stored (arXiv:2411.12537).',
  )
  correction: float = field(
    0.02,
    'The d that comba starts from. Published: 0.02 for models of 340M '
    'parameters, 1 for 1.3B.',
  )


class DeltaState(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    conv: [b, conv_width - 1, channels], last inputs of the convolution; ()
      without one.
    memory: S^T, mlp.State of [b, n, i, o].
    memory_position: int32 [] or, where documents have started, [b], tokens
      since the memory's chunk began; None: zero, statically.
    position: int32 [] or [b], tokens seen of the document; () where nothing is
      rotated.
  """

  conv: Any
  memory: mlp.State
  memory_position: jax.Array | None
  position: Any


class DeltaLayer(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(self, sizes: Sizes, options: DeltaOptions, *, rngs: nnx.Rngs):
    """Builds the layer.

    Args:
      sizes: of the model.
      options: of the layer.
      rngs: for parameters.
    """
    stream.check_kernel(sizes.kernel, options.chunk_size)
    self.sizes, self.options, self.measures = sizes, options, False
    width, heads = sizes.width, sizes.num_heads

    def dense(outputs: int) -> nnx.Linear:
      return dense_layer(width, outputs, dtype=sizes.dtype, rngs=rngs)

    self.qkv = dense(3 * width)
    if options.conv_width:
      self.conv = CausalConvolution(3 * width, options.conv_width, rngs=rngs)
    if self._erases:
      self.beta = dense(heads)
    if self._decays:
      self.alpha = dense(heads)
      key = rngs.params()
      self.alpha_log = nnx.Param(
        jnp.log(jax.random.uniform(key, (heads,), minval=1.0, maxval=16.0))
      )
      self.alpha_bias = nnx.Param(step_size.draw_bias(rngs.params(), (heads,)))
    if options.rule == 'comba':
      self.feedback = nnx.Param(jnp.ones(heads))
      self.correction = nnx.Param(options.correction * jnp.ones(heads))
    if options.output_gate:
      self.gate = dense(width)
    self.norm = RMSNorm(width // heads)
    self.output = dense(width)

  @property
  def _erases(self) -> bool:
    return self.options.rule in ('deltanet', 'gated_deltanet', 'comba')

  @property
  def _decays(self) -> bool:
    return self.options.rule in ('gated_deltanet', 'comba')

  @property
  def _rotates(self) -> bool:
    return self.options.rule == 'retnet'

  def init_state(self, batch: int) -> DeltaState:
    """The state before the first token."""
    head = self.sizes.width // self.sizes.num_heads
    values = head + (self.options.rule == 'linear_attention')
    dtype = jnp.result_type(float)
    memory = linear.init_state(batch, self.sizes.num_heads, head, values, dtype)
    return DeltaState(
      conv=self.conv.init_state(batch) if self.options.conv_width else (),
      memory=placement.constrain(memory, 'memory'),
      memory_position=jnp.int32(0),
      position=jnp.int32(0) if self._rotates else (),
    )

  def _read_inputs(self, x: jax.Array, state: DeltaState, starts):
    """(q, k, v, conv): [b, t, n, d] each, and the convolution's state."""
    mixed, conv = placement.by_head(self.qkv(x)), state.conv
    if self.options.conv_width:
      mixed, conv = self.conv(mixed, conv, starts)
      mixed = jax.nn.silu(mixed)
    q, k, v = split_heads(at_least_float32(mixed), self.sizes.num_heads, 3)
    return q, k, v, conv

  def _rates(self, x: jax.Array) -> dict[str, jax.Array]:
    """The rates of `linear.remember` that are not left at their defaults."""
    rates, rule = {}, self.options.rule
    if self._erases:
      beta = placement.by_head(self.beta(x))
      beta = jax.nn.sigmoid(at_least_float32(beta))[..., None]
      rates['beta'] = beta * (2 if self.options.negative_eigenvalues else 1)
    if self._decays:
      step = placement.by_head(self.alpha(x))
      step = jax.nn.softplus(at_least_float32(step) + self.alpha_bias[...])
      rates['alpha'] = jnp.exp(-jnp.exp(self.alpha_log[...]) * step)[..., None]
    if rule == 'comba':
      rates['feedback'] = jax.nn.sigmoid(self.feedback[...])[:, None]
    if rule == 'retnet':
      heads = jnp.arange(self.sizes.num_heads)
      rates['alpha'] = (1 - 2.0 ** (-5 - heads))[:, None]
    return rates

  def _features(self, q: jax.Array, k: jax.Array, v: jax.Array, place):
    """Queries, keys and values as the recurrence has them."""
    head, rule = q.shape[-1], self.options.rule
    if rule == 'linear_attention':
      # A value of 1 beside v: what is read of it is the normaliser.
      one = jnp.ones_like(v[..., :1])
      v = jnp.concatenate([v, one], axis=-1)
      return jax.nn.elu(q) + 1, jax.nn.elu(k) + 1, v
    if rule == 'retnet':
      frequency = rotary.frequencies(head // 2, 1e4)
      q = rotary.rotate(q, place, frequency)
      return q * head**-0.5, rotary.rotate(k, place, frequency), v
    q, k = l2_normalize(q), l2_normalize(k)
    if rule == 'comba':
      q -= self.correction[...][:, None] * k
    return q, k, v

  def _losses(self, predictions: jax.Array, v: jax.Array):
    """The memory's objective before each write, mean over heads, [b, t]."""
    head = self.sizes.width // self.sizes.num_heads
    name = 'l2' if self._erases else 'dot'
    # Without linear attention's normaliser.
    losses = objectives.loss(name, predictions[..., :head], v[..., :head])
    return {'memory': losses.mean((2, 3))}

  def __call__(
    self,
    x: jax.Array,
    state: DeltaState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, DeltaState]:
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
    q, k, v, conv = self._read_inputs(x, state, starts)
    position = place = state.position
    if self._rotates:
      place = positions(state.position, t, starts)
      position = place[..., -1] + 1
    q, k, v = self._features(q, k, v, place)
    y, memory, memory_position, predictions = linear.remember(
      state.memory,
      state.memory_position,
      q,
      k,
      v,
      erase=self._erases,
      chunk=self.options.chunk_size,
      kernel=self.sizes.kernel,
      starts=starts,
      predicts=self.measures,
      **self._rates(x),
    )
    if predictions is not None:
      losses = self._losses(predictions, v)
      self.inner_losses = InnerLosses(finite.spoil(losses, spoiled))
    if self.options.rule == 'linear_attention':
      y = y[..., :-1] / y[..., -1:]
    y = self.norm(placement.constrain(y, 'heads')).reshape(b, t, width)
    y = y.astype(self.sizes.dtype)
    if self.options.output_gate:
      y *= jax.nn.silu(placement.by_head(self.gate(x)))
    y = self.output(placement.constrain(y, 'hidden'))
    conv, memory = finite.spoil_state((conv, memory), spoiled)
    state = DeltaState(
      conv=conv,
      memory=memory,
      memory_position=memory_position,
      position=position,
    )
    return finite.spoil(y, spoiled), state


def _parameters(options: DeltaOptions) -> list[Leaf]:
  del options
  projection = functools.partial(
    Leaf, spec=P('fsdp', 'tensor'), component='projections', kind='linear'
  )
  return [
    projection('qkv/kernel', split=BY_HEAD),
    projection('gate/kernel', split=ONE_PROJECTION),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
    Leaf('conv/kernel', P(None, 'tensor'), 'convolution', kind='filter'),
    Leaf(
      '(beta|alpha)/kernel',
      P('fsdp', 'tensor'),
      'gates and rates',
      kind='linear',
    ),
    Leaf(
      'alpha_log|alpha_bias|feedback|correction',
      P('tensor'),
      'gates and rates',
    ),
    Leaf('norm/scale', P(), 'norms'),
  ]


_OBJECTIVES = {
  'linear_attention': '-<S k, v>',
  'retnet': '-<S k, v>, decayed',
  'deltanet': '1/2 |S k - v|^2',
  'gated_deltanet': '1/2 |S k - v|^2, decayed',
  'comba': '1/2 |S k - v|^2, decayed',
}


def _levels(sizes: Sizes, options: DeltaOptions) -> list[Level]:
  del sizes
  return [
    Level(
      component=f'memory of {options.rule}',
      frequency=per_token(1),
      objective=_OBJECTIVES[options.rule],
      context='keys, values so far',
      parameters=0,
      passes_on='its reads, to the block',
    )
  ]


def _check(sizes: Sizes, options: DeltaOptions) -> None:
  stream.check_kernel(sizes.kernel, options.chunk_size)
  if options.rule == 'retnet' and sizes.width // sizes.num_heads % 2:
    raise ValueError(
      f'model.width={sizes.width} / model.num_heads={sizes.num_heads} must be '
      "even, for the rotation of positions of model.delta.rule='retnet'."
    )
  if options.rule == 'comba' and options.negative_eigenvalues:
    raise ValueError(
      "model.delta.rule='comba' cannot have "
      'model.delta.negative_eigenvalues=True: its factor along a key, '
      'alpha - b beta, is above -1 for beta up to 1, and would reach -2; set '
      'negative_eigenvalues=False.'
    )
  stream.check_whole(sizes.kernel, sizes.seq_len, options.chunk_size)


def metrics(state: DeltaState) -> dict[str, jax.Array]:
  """Norm of what the memory holds, by layer: RMS over heads and batch.

  Args:
    state: of stacked layers, [layers, b, ...].
  """
  return {'memory/state_norm': mlp.norms(state.memory.now)}


def _chunks(options: DeltaOptions) -> list[int]:
  return [options.chunk_size]


PART = Part(
  options=DeltaOptions,
  build=DeltaLayer,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  divided=divided_heads,
  chunks=_chunks,
  metrics=metrics,
  hidden_multiple=lambda options: 15 / 16 if options.output_gate else 17 / 16,
)
