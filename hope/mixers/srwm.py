r"""The self-referential weight matrix (arXiv:2202.05780).

Each head has one matrix W that makes all that it is changed with, and so
changes itself: with f the softmax, x_t the head's part of the input, and s the
sigmoid,

  y_t, q_t, k_t, beta_t = W_{t-1} f(x_t)
  W_t = W_{t-1} + s(beta_t) (W_{t-1} f(q_t) - W_{t-1} f(k_t)) f(k_t)^T

beta_t has four numbers, the rates of W's rows for y, for q, for k and for beta.
The initial W is learned; heads are joined by a linear projection.

Choice: x_t is not projected, as published: a head reads its part of the normed
residual stream, whose learned scale says how sharp f(x_t) is.
Choice: the initial W has variance 1 / d for heads of width d, so that all rates
start near 1/2.
"""

import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers.dense import dense_layer
from hope.layers.precision import at_least_float32
from hope.memory import finite, mlp, objectives, stream
from hope.parallel import placement
from hope.parts import (
  InnerLosses,
  Leaf,
  Level,
  Part,
  Sizes,
  divided_heads,
  inner_objective,
  per_token,
)


@dataclasses.dataclass(frozen=True)
class SRWMOptions:
  """Options of the layer."""

  input_softmax: bool = field(
    True, 'Whether W is applied to the softmax of the input, or to the input.'
  )


class SRWMState(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    memory: W^T, [b, n, d, 3 d + 4]: its columns make y, q, k and beta.
  """

  memory: jax.Array


def _split(x: jax.Array) -> list[jax.Array]:
  """y, q, k [..., d] and beta [..., 4] of x [..., 3 d + 4]."""
  d = (x.shape[-1] - 4) // 3
  return jnp.split(x, [d, 2 * d, 3 * d], axis=-1)


def modify(w: jax.Array, x: jax.Array):
  """One token.

  Args:
    w: W^T, [..., d, 3 d + 4].
    x: f(x_t), [..., 1, d].

  Returns:
    (w, y, old, new): y [..., 1, d]; W f(k) and W f(q), [..., 1, 3 d + 4].
  """
  y, q, k, beta = _split(x @ w)
  key = jax.nn.softmax(k)
  pair = jnp.concatenate([key, jax.nn.softmax(q)], axis=-2)
  old, new = jnp.split(pair @ w, 2, axis=-2)
  rates = jnp.split(jax.nn.sigmoid(beta), 4, axis=-1)
  changes = map(jnp.multiply, rates, _split(new - old))
  change = jnp.concatenate(list(changes), axis=-1)
  return w + key.swapaxes(-2, -1) * change, y, old, new


class SRWMLayer(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(self, sizes: Sizes, options: SRWMOptions, *, rngs: nnx.Rngs):
    """Builds the layer."""
    self.sizes, self.options, self.measures = sizes, options, False
    heads = sizes.num_heads
    d = sizes.width // heads

    def draw(outputs: int) -> nnx.Param:
      noise = jax.random.normal(rngs.params(), (heads, d, outputs))
      return nnx.Param(d**-0.5 * noise)

    self.y, self.q, self.k, self.beta = draw(d), draw(d), draw(d), draw(4)
    self.output = dense_layer(
      sizes.width, sizes.width, dtype=sizes.dtype, rngs=rngs
    )

  def init_state(self, batch: int) -> SRWMState:
    """The learned W, before the first token."""
    parts = [x[...] for x in (self.y, self.q, self.k, self.beta)]
    w = jnp.concatenate(parts, axis=-1)
    w = jnp.broadcast_to(w, (batch, *w.shape))
    return SRWMState(placement.constrain(w, 'memory'))

  def __call__(
    self,
    x: jax.Array,
    state: SRWMState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, SRWMState]:
    """Mixes a piece of a sequence.

    Args:
      x: [b, t, width].
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True where a document starts, anywhere; None:
        nowhere.

    Returns:
      (y, state), y [b, t, width].
    """
    b, t, width = x.shape
    initial = self.init_state(b)
    state = initial if state is None else state
    x, spoiled = finite.isolate(x, starts)
    x = at_least_float32(placement.by_head(x))
    x = x.reshape(b, t, self.sizes.num_heads, -1)
    if self.options.input_softmax:
      x = jax.nn.softmax(x)

    def body(step: stream.Step):
      w, y, old, new = modify(step.now, step.x)
      loss = objectives.loss('delta', old, new) if self.measures else None
      return w, None, (y, loss)

    found, _, (y, loss) = stream.run(
      body,
      (),
      mlp.State(start=None, now=state.memory, trace=None),
      None,
      x,
      chunk=1,
      starts=starts,
      initial=initial.memory,
    )
    if loss is not None:
      losses = {'memory': loss.mean((2, 3))}
      self.inner_losses = InnerLosses(finite.spoil(losses, spoiled))
    y = placement.constrain(y, 'heads').reshape(b, t, width)
    y = placement.constrain(y.astype(self.sizes.dtype), 'hidden')
    state = SRWMState(finite.spoil_state(found.now, spoiled))
    return finite.spoil(self.output(y), spoiled), state


def _parameters(options: SRWMOptions) -> list[Leaf]:
  del options
  initial = functools.partial(
    Leaf,
    spec=P('tensor', 'fsdp'),
    kind='matrix',
    passes_on='sequences start from it',
  )
  return [
    initial('y|q|k|beta', component='initial self-referential matrix'),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
  ]


def _levels(sizes: Sizes, options: SRWMOptions) -> list[Level]:
  del sizes, options
  return [
    Level(
      component='self-referential matrix W',
      frequency=per_token(1),
      objective=inner_objective('delta', 'W f(k)', 'W f(q)'),
      context='keys, queries so far, its own',
      parameters=0,
      passes_on='its reads, to the block and itself',
    )
  ]


def metrics(state: SRWMState) -> dict[str, jax.Array]:
  """Norm of W, by layer: RMS over heads and batch.

  Args:
    state: of stacked layers, [layers, b, n, d, 3 d + 4].
  """
  return {'memory/state_norm': mlp.norms(state.memory)}


PART = Part(
  options=SRWMOptions,
  build=SRWMLayer,
  parameters=_parameters,
  levels=_levels,
  divided=divided_heads,
  metrics=metrics,
  # The output has width^2 of the blocks' 12.5, W little where heads are many.
  hidden_multiple=lambda options: 23 / 16,
)
