"""The LSTM, as studies of formal languages train it.

  i_t, f_t, g_t, o_t = x_t W + h_{t-1} R + b
  c_t = sigmoid(f_t) c_{t-1} + sigmoid(i_t) tanh(g_t)
  h_t = sigmoid(o_t) tanh(c_t)

Hochreiter and Schmidhuber, 1997, with the forget gate of Gers et al., 2000, and
without peepholes; y_t = h_t, h_0 = c_0 = 0.

Choice: R is one dense matrix, as in those studies (arXiv:2009.11264,
arXiv:2207.02098): `model.num_heads` means nothing here. On a mesh it is stored
in parts and used whole: each device computes the recurrence of its rows.
Choice: the forget gate's bias starts at 1 (Jozefowicz et al., 2015), and R as
an orthogonal matrix for each gate, as Flax and Keras draw it.
"""

import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers.dense import dense_layer
from hope.layers.orthogonal import orthogonal
from hope.layers.precision import at_least_float32
from hope.memory import finite
from hope.parallel import placement
from hope.parts import Leaf, Level, Part, Sizes, Split, per_token

# Outputs [4, width]: input gate, forget gate, cell, output gate.
_GATES = Split((4, -1), (-3, -1), (-3, -1))


@dataclasses.dataclass(frozen=True)
class LSTMOptions:
  """Options of the layer."""

  forget_bias: float = field(
    1.0, "Bias of the forget gates at first; the others' is 0."
  )


class LSTMState(NamedTuple):
  """Fast state of the layer for a batch of streams.

  Attributes:
    output: h, [b, width].
    cell: c, [b, width].
  """

  output: jax.Array
  cell: jax.Array


def _step(kernel, state: LSTMState, inputs) -> tuple[LSTMState, jax.Array]:
  """One token of `recur`."""
  gates, start = inputs
  if start is not None:
    state = jax.tree.map(lambda x: jnp.where(start[:, None], 0, x), state)
  gates += jnp.matmul(
    state.output.astype(kernel.dtype),
    kernel,
    preferred_element_type=gates.dtype,
  )
  gates = placement.constrain(gates, 'level')
  write, keep, new, read = jnp.split(gates, 4, axis=-1)
  cell = jax.nn.sigmoid(keep) * state.cell
  cell += jax.nn.sigmoid(write) * jnp.tanh(new)
  output = jax.nn.sigmoid(read) * jnp.tanh(cell)
  return LSTMState(output, cell), output


def _scan(kernel, gates, state, starts):
  step = functools.partial(_step, kernel)
  state, outputs = lax.scan(step, state, (gates, starts))
  return outputs, state


@jax.custom_vjp
def recur(
  kernel: jax.Array,
  gates: jax.Array,
  state: LSTMState,
  starts: jax.Array | None,
) -> tuple[jax.Array, LSTMState]:
  """The recurrence over a piece.

  Its backward pass computes the gradient of the kernel as one matmul over all
  tokens, instead of a sum that grows token by token.

  Args:
    kernel: R, [width, 4 width], in the dtype of matmuls.
    gates: x_t W + b, [t, b, 4 width], float32 or wider.
    state: before the first token, of the dtype of `gates`.
    starts: bool [t, b], True where a document starts; None: nowhere.

  Returns:
    (outputs [t, b, width], state).
  """
  return _scan(kernel, gates, state, starts)


def _recur_fwd(kernel, gates, state, starts):
  def scan(gates, state):
    return _scan(kernel, gates, state, starts)

  (outputs, end), pullback = jax.vjp(scan, gates, state)
  before = jnp.concatenate([state.output[None], outputs[:-1]])
  if starts is not None:
    before = jnp.where(starts[..., None], 0, before)
  return (outputs, end), (pullback, before.astype(kernel.dtype))


def _recur_bwd(residuals, bars):
  pullback, before = residuals
  gates_bar, state_bar = pullback(bars)
  kernel_bar = jnp.einsum(
    'tbi,tbo->io',
    before,
    gates_bar.astype(before.dtype),
    preferred_element_type=gates_bar.dtype,
  )
  return kernel_bar.astype(before.dtype), gates_bar, state_bar, None


recur.defvjp(_recur_fwd, _recur_bwd)


class LSTMLayer(nnx.Module):
  """The layer: `init_state(batch)`, `__call__(x, state) -> (y, state)`."""

  def __init__(self, sizes: Sizes, options: LSTMOptions, *, rngs: nnx.Rngs):
    """Builds the layer; its matrices hold the gates in the order i, f, g, o."""
    self.sizes, width = sizes, sizes.width
    self.input = dense_layer(width, 4 * width, dtype=sizes.dtype, rngs=rngs)
    each = orthogonal()(rngs.params(), (4, width, width))
    self.recurrent = nnx.Param(jnp.concatenate([*each], axis=-1))
    bias = jnp.zeros((4, width)).at[1].set(options.forget_bias)
    self.bias = nnx.Param(bias.reshape(-1))

  def init_state(self, batch: int) -> LSTMState:
    """The state before the first token."""
    zeros = jnp.zeros((batch, self.sizes.width), jnp.result_type(float))
    return placement.constrain(LSTMState(zeros, zeros), 'level')

  def __call__(
    self,
    x: jax.Array,
    state: LSTMState | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, LSTMState]:
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
    gates = placement.constrain(self.input(x), 'hidden')
    gates = placement.constrain(at_least_float32(gates), 'level')
    y, state = recur(
      self.recurrent[...].astype(self.sizes.dtype),
      jnp.swapaxes(gates + self.bias[...], 0, 1),
      state,
      None if starts is None else starts.T,
    )
    # Else the recurrence would be split over devices as its readers are.
    y = placement.constrain(jnp.swapaxes(y, 0, 1), 'level')
    y = y.astype(self.sizes.dtype)
    state = finite.spoil_state(state, spoiled)
    return finite.spoil(y, spoiled), state


def _parameters(options: LSTMOptions) -> list[Leaf]:
  del options
  return [
    Leaf(
      'input/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=_GATES,
    ),
    Leaf(
      'recurrent',
      P('fsdp', 'tensor'),
      'recurrence',
      kind='matrix',
      split=_GATES,
      used_whole=True,
    ),
    Leaf('bias', P('tensor'), 'gates and rates', used_whole=True),
  ]


def _levels(sizes: Sizes, options: LSTMOptions) -> list[Level]:
  del sizes, options
  return [
    Level(
      component='cell of the LSTM',
      frequency=per_token(1),
      objective='none: gates say what is kept',
      context='tokens so far',
      parameters=0,
      passes_on='its output, to the block',
    )
  ]


def metrics(state: LSTMState) -> dict[str, jax.Array]:
  """Norm of the cell, by layer: RMS over the batch.

  Args:
    state: of stacked layers, [layers, b, width].
  """
  square = jnp.sum(jnp.square(state.cell), axis=-1).mean(1)
  return {'memory/state_norm': jnp.sqrt(square)}


PART = Part(
  options=LSTMOptions,
  build=LSTMLayer,
  parameters=_parameters,
  levels=_levels,
  metrics=metrics,
  # 8 width^2 of the blocks' 12.5 are here.
  hidden_multiple=lambda options: 9 / 16,
)
