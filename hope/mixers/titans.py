"""Self-referential Titans (Eq. 83-91 of arXiv:2512.24695).

Every memory of {k, v, eta, alpha, memory} (and q by option) is a residual MLP
that learns, token by token, a value for k: M(v) in the paper. The setting
'paper' is Eq. 83-91, with what the paper does not give as below;
`hope.memory.learning` has what else a memory may learn. The settings 'lmm' and
'dla' are Titans' long-term memory (arXiv:2501.00663) and deep linear attention:
one memory, whose keys, values and rates are slow projections.

Choice: the inputs of the k, v, eta, alpha and q memories are L2-normalised per
head, like k, v and q themselves, so that every memory reads unit vectors, at
the scale at which it learns. (With v at the scale of the residual stream,
self-generated targets diverge.)
Choice: eta = eta_max sigmoid(M_eta(x) + bias); alpha = sigmoid(M_alpha(x) +
bias), biases spread over heads so that what is stored lasts from 64 to 2,048
tokens; beta = 0.95 sigmoid(x W + bias). The paper gives no ranges.
Choice: the first layer of a memory starts as a rotation of its input, at twice
its norm: a memory so starts nearly linear and keeps different keys as far apart
as they are. (With random normal numbers recall was learned 200 steps later.)
Choice: the output gate, which the paper does not have, is silu(x W + c) with
silu(c) = 1 and W = 0 at first: it starts open. (From a random W recall of 8
pairs was at 71% when it is now at 99.5%.)
Choice: each layer of `memory` and of the other memories has a learned rate in
(0, 1) that multiplies eta.
Choice: k, v, eta and alpha (and q) learn in one way, since they share a key and
a solve; `memory` may learn in another (`hope.memory.learning`).
"""

import math
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from hope.layers.convolution import CausalConvolution
from hope.layers.dense import dense_layer, split_heads
from hope.layers.memory import Memory, retention_bias
from hope.layers.norm import RMSNorm, l2_normalize
from hope.layers.precision import at_least_float32
from hope.memory import finite, mlp, stream
from hope.mixers import titans_metrics
from hope.mixers.titans_options import TitansOptions
from hope.parallel import placement
from hope.parts import InnerLosses


class TitansState(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    conv: [b, conv_width - 1, channels], last inputs of the convolution.
    projections: mlp.State of the memories that generate; () if they are static.
    projection_position: int32 [] or, where documents have started, [b], tokens
      since their chunk began; None: zero, statically.
    memory: mlp.State of `memory`.
    memory_position: int32 [] or [b], the same for `memory`.
  """

  conv: jax.Array
  projections: mlp.State | tuple[()]
  projection_position: jax.Array | None
  memory: mlp.State
  memory_position: jax.Array | None


# Of a slow projection's kernel.
_INIT = nnx.initializers.lecun_normal()
# silu of it is 1.
_OPEN = 1.2784645
# Logit of the self-generated part of a mixed target, at first.
_SHARE = -2.0


def _logit(x: float | None, default: float) -> float:
  """The number whose sigmoid is x; the default for None."""
  return default if x is None else math.log(x / (1 - x))


def _unit_heads(x: jax.Array, heads: int) -> jax.Array:
  """Unit vectors [b, t, heads, d] of x [b, t, heads d] or [b, t, heads, d]."""
  x = at_least_float32(x)
  return l2_normalize(x.reshape(*x.shape[:2], heads, -1))


def _for_each(kernels: mlp.Kernels, batch: int) -> mlp.Kernels:
  """Initial kernels [n, ...] for every stream, [batch, n, ...]."""
  return placement.constrain(mlp.spread(kernels, batch), 'memory')


class SelfReferentialTitans(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    options: TitansOptions,
    *,
    dtype: jax.typing.DTypeLike = jnp.float32,
    kernel: str = 'xla',
    rngs: nnx.Rngs,
  ):
    """Builds the layer.

    Args:
      width: of the residual stream.
      num_heads: divides the width.
      options: of the layer.
      dtype: of matmul operands.
      kernel: what runs the memories, one of `stream.KERNELS`.
      rngs: for parameters.
    """
    for chunk in (options.chunk_size, options.projection_chunk_size):
      stream.check_kernel(kernel, chunk)
    self.options, self.num_heads, self.dtype = options, num_heads, dtype
    self.kernel, self.measures = kernel, False
    d = width // num_heads
    f = d * options.hidden_multiple
    streams = 3 if options.mix == 'dense' else 1

    def dense(outputs: int, init=_INIT) -> nnx.Linear:
      return dense_layer(
        width, outputs, dtype=dtype, kernel_init=init, rngs=rngs
      )

    if options.mix == 'dense':
      self.mix = dense(3 * width)
    else:
      self.query = dense(width)
    self.conv = CausalConvolution(
      streams * width, options.conv_width, rngs=rngs
    )

    def memory(o: int) -> Memory:
      """One from keys of width d to values of width o."""
      return Memory(num_heads, d, f, o, rngs=rngs)

    if options.projections == 'memories':
      self.k, self.v = memory(d), memory(d)
      if options.q_memory:
        self.q = memory(d)
      self.eta, self.alpha = memory(1), memory(1)
    else:
      self.slow_eta = dense(num_heads)
      if options.retention:
        self.slow_alpha = dense(num_heads)
    self.memory = memory(d)
    self.eta_bias = nnx.Param(jnp.zeros(num_heads))
    if options.projections == 'memories' or options.retention:
      self.alpha_bias = nnx.Param(retention_bias(num_heads))
    if options.has_momentum():
      self.beta = dense_layer(
        width,
        num_heads,
        use_bias=True,
        dtype=dtype,
        kernel_init=nnx.initializers.zeros,
        rngs=rngs,
      )
    # Before the sigmoid, of both layers of a memory.
    rates = jnp.ones((2, num_heads), jnp.float32)
    self.memory_rate = nnx.Param(_logit(options.rate, 2.0) * rates)
    if options.self_modifying:
      self.projection_rate = nnx.Param(
        _logit(options.projection_rate, -2.0) * rates
      )
      if options.projection_target == 'mixed':
        self.projection_share = nnx.Param(_SHARE * jnp.ones(num_heads))
    if options.target == 'mixed':
      self.memory_share = nnx.Param(_SHARE * jnp.ones(num_heads))
    if options.output_norm:
      self.norm = RMSNorm(d)
    if options.output_gate:
      self.gate = dense(width, nnx.initializers.zeros)
    self.output = dense(width)

  def _generators(self) -> mlp.Kernels:
    """The memories that generate: v, (q,) k in a group, eta, alpha in one.

    k, eta and alpha, which read the same, are neighbours.
    """
    wide = [self.v, *([self.q] if self.options.q_memory else []), self.k]
    gates = [self.eta, self.alpha]
    return mlp.stack([[x.kernels() for x in group] for group in (wide, gates)])

  @property
  def _anchored(self) -> bool:
    """Whether fast states are deviations from the initial ones."""
    return self.options.anchor == 'initial'

  def _begin(
    self, kernels: mlp.Kernels, starts: jax.Array | None
  ) -> mlp.Kernels | None:
    """The kernels in the state that a document starts from; None: zeros."""
    if starts is None or self._anchored:
      return None
    return _for_each(kernels, starts.shape[0])

  def _initial(
    self, kernels: mlp.Kernels, batch: int, momentum: bool
  ) -> mlp.State:
    """The fast state that a sequence starts from."""
    now = mlp.spread(kernels, batch)
    zeros = jax.tree.map(jnp.zeros_like, now)
    if self._anchored:
      now = zeros
    trace = zeros if momentum else None
    return placement.constrain(mlp.State(now, now, trace), 'memory')

  def init_state(self, batch: int) -> TitansState:
    """The state before the first token."""
    projections, options = (), self.options
    if options.self_modifying:
      momentum = options.of_projections().momentum
      projections = self._initial(self._generators(), batch, momentum)
    kernels = self.memory.kernels()
    return TitansState(
      conv=self.conv.init_state(batch),
      projections=projections,
      projection_position=jnp.int32(0),
      memory=self._initial(kernels, batch, options.of_memory().momentum),
      memory_position=jnp.int32(0),
    )

  def __call__(
    self,
    x: jax.Array,
    state: TitansState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, TitansState]:
    """Mixes a piece of a sequence.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True where a document starts, at a block's first
        place (`stream.run`); None: nowhere.

    Returns:
      (y, state), y [b, t, width].
    """
    batch, t, _ = x.shape
    options, n = self.options, self.num_heads
    fresh = state is None
    if fresh:
      state = self.init_state(batch)
      state = state._replace(projection_position=None, memory_position=None)
    x, spoiled = finite.isolate(x, starts)
    mixed = self.mix(x) if options.mix == 'dense' else x
    mixed, conv = self.conv(placement.by_head(mixed), state.conv, starts)
    mixed = jax.nn.silu(mixed)
    if options.mix == 'dense':
      x_q, x_k, x_v = split_heads(mixed, n, 3)
    else:
      x_q, x_k, x_v = self.query(mixed), mixed, mixed
    beta = None
    if options.has_momentum():
      beta = placement.by_head(self.beta(x))
      beta = 0.95 * jax.nn.sigmoid(at_least_float32(beta))[..., None]
    q, k, v = (_unit_heads(z, n) for z in (x_q, x_k, x_v))

    if options.projections == 'memories':
      (projected, generating), projections, position = self._project(
        (q, k, v, beta), state, starts
      )
    else:
      projected, generating = (q, k, v, *self._slow_gates(x)), ()
      projections, position = (), jnp.int32(0)
    (y, remembering), memory, memory_position = self._remember(
      projected, beta, state, starts
    )
    if self.measures:
      found = titans_metrics.measured(options, generating, remembering)
      found = {name: x.mean((2, 3)) for name, x in found.items()}
      self.inner_losses = InnerLosses(finite.spoil(found, spoiled))
    if options.output_norm:
      y = self.norm(y)
    y = y.reshape(batch, t, -1).astype(self.dtype)
    if options.output_gate:
      y *= jax.nn.silu(_OPEN + placement.by_head(self.gate(x)))
    y = self.output(placement.constrain(y, 'hidden'))
    conv, projections, memory = finite.spoil_state(
      (conv, projections, memory), spoiled
    )
    state = TitansState(
      conv=conv,
      projections=projections,
      projection_position=position,
      memory=memory,
      memory_position=memory_position,
    )
    return finite.spoil(y, spoiled), state

  def _generate(self, kernels, biases, x):
    """q, k, v, eta, alpha of some tokens: [.., c, d], and [.., c, 1] for gates.

    eta is in (0, 1): the bound is applied where a memory learns.
    """
    x_q, x_k, x_v, _ = x
    wide = kernels.down[0].shape[-3]
    (v,) = mlp.forward(mlp.select(kernels, 0, 1), x_v)
    v, q = v[..., 0, :, :], x_q
    if self.options.q_memory:
      (q,) = mlp.forward(mlp.select(kernels, 1, 2), x_q)
      q = q[..., 0, :, :]
    k, gates = mlp.forward(mlp.select(kernels, wide - 1, wide + 2), x_k)
    k = k[..., 0, :, :]
    gates = jax.nn.sigmoid(gates + biases)
    eta, alpha = gates[..., 0, :, :], gates[..., 1, :, :]
    return l2_normalize(q), l2_normalize(k), l2_normalize(v), eta, alpha

  def _slow_gates(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """eta and alpha [b, t, n, 1] of x [b, t, width], without memories."""

    def gate(of: nnx.Linear, bias: jax.Array) -> jax.Array:
      logits = at_least_float32(placement.by_head(of(x)))
      return jax.nn.sigmoid(logits + bias)[..., None]

    eta = gate(self.slow_eta, self.eta_bias[...])
    if not self.options.retention:
      return eta, jnp.ones_like(eta)
    return eta, gate(self.slow_alpha, self.alpha_bias[...])

  def _spread(self, name: str, batch: int):
    """The learned numbers of a group of memories, `memory` or `projection`.

    Returns:
      (rate, share): rates in (0, 1) of the two layers, [b, n, 1, 1] each, and
      the share of the self-generated target, or None.
    """

    def columns(logits: jax.Array) -> jax.Array:
      """Numbers in (0, 1) of logits [.., n], as [b, .., n, 1, 1]."""
      return mlp.spread(jax.nn.sigmoid(logits)[..., None, None], batch)

    rate = columns(getattr(self, f'{name}_rate')[...])
    share = getattr(self, f'{name}_share', None)
    if share is not None:
      share = columns(share[...])
    return (rate[:, 0], rate[:, 1]), share

  def _project(self, sources, state: TitansState, starts):
    """Runs the memories that generate.

    Returns:
      ((projected, measured), state, position); measured: inner losses and
      changes of q, k, v, eta and alpha, [b, t, n, 1], or ().
    """
    kernels, batch = self._generators(), sources[0].shape[0]
    biases = jnp.stack([self.eta_bias[...], self.alpha_bias[...]], axis=-1)
    biases = biases[..., None, None]
    if not self.options.self_modifying:
      block = jax.tree.map(lambda z: jnp.moveaxis(z, 2, 1), sources)
      ys = self._generate(kernels, biases, block)
      position = state.projection_position
      position = jnp.int32(0) if position is None else position
      ys = jax.tree.map(lambda z: jnp.moveaxis(z, 1, 2), ys)
      return (ys, ()), (), position
    how = self.options.of_projections()
    consts = (
      _for_each(kernels, batch),
      mlp.spread(biases, batch),
      self._spread('projection', batch),
    )

    def body(step: stream.Step):
      first, biases, (rate, share) = step.consts
      base = first if self._anchored else None
      frozen = mlp.add(base, step.start)
      q, k, v, eta, alpha = self._generate(frozen, biases, step.x)
      slow = mlp.forward(first, v) if how.target != 'self' else ()
      targets = how.targets(frozen, v, slow, share)
      new, new_trace, _ = mlp.learn(
        base,
        step.start,
        step.now,
        step.trace,
        k=k,
        targets=targets,
        rates=how.rates(step, eta, alpha, step.x[3], rate),
        objective=how.objective,
      )
      made, measured = (q, k, v, eta, alpha), ()
      if self.measures:
        measured = (
          mlp.losses(frozen, k, targets, how.objective),
          titans_metrics.changes(made, self._generate(first, biases, step.x)),
        )
      return new, new_trace, (made, measured)

    new, position, ys = stream.run(
      body,
      consts,
      state.projections,
      state.projection_position,
      sources,
      chunk=how.chunk,
      kernel=self.kernel,
      starts=starts,
      initial=self._begin(kernels, starts),
    )
    return placement.constrain(ys, 'heads'), new, position

  def _remember(self, projected, beta, state: TitansState, starts):
    """Runs `memory`.

    Returns:
      ((reads [b, t, n, d], inner losses [b, t, n, 1]), state, position).
    """
    options, how = self.options, self.options.of_memory()
    batch = projected[0].shape[0]
    consts = (
      _for_each(self.memory.kernels(), batch) if self._anchored else None,
      self._spread('memory', batch),
    )

    def body(step: stream.Step):
      base, (rate, share) = step.consts
      (q, k, v, eta, alpha), beta = step.x
      frozen = mlp.add(base, step.start)
      targets = how.targets(frozen, v, (v[..., None, :, :],), share)
      new, new_trace, reads = mlp.learn(
        base,
        step.start,
        step.now,
        step.trace,
        k=k,
        targets=targets,
        rates=how.rates(
          step, eta, alpha, beta, rate, read_after=options.read == 'after'
        ),
        objective=how.objective,
        queries=None if options.read == 'chunk' else q,
      )
      if options.read == 'chunk':
        reads = mlp.forward(frozen, q)
      measured = ()
      if self.measures:
        measured = mlp.losses(frozen, k, targets, how.objective)
      return new, new_trace, (reads[0][..., 0, :, :], measured)

    new, position, y = stream.run(
      body,
      consts,
      state.memory,
      state.memory_position,
      (projected, beta),
      chunk=how.chunk,
      kernel=self.kernel,
      starts=starts,
      initial=self._begin(self.memory.kernels(), starts),
    )
    return placement.constrain(y, 'heads'), new, position
