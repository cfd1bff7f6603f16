"""The gated feed-forward of Llama: x + (silu(z G) * (z U)) D, z = norm(x).

SwiGLU, arXiv:2002.05202.
"""

import dataclasses

from flax import nnx
import jax
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers.dense import dense_layer
from hope.layers.norm import RMSNorm
from hope.parallel import placement
from hope.parts import Divided, Leaf, Part, Sizes


@dataclasses.dataclass(frozen=True)
class SwiGLUOptions:
  """Options of the feed-forward."""

  hidden: int | None = field(
    None,
    'Hidden width. None: 8/3 of the width, rounded up to a multiple of 64.',
    minimum=1,
    maximum=2**22,
  )


class SwiGLU(nnx.Module):
  """The feed-forward: `init_state(batch)`, `__call__(x, state)`."""

  def __init__(self, sizes: Sizes, hidden: int, *, rngs: nnx.Rngs):
    self.norm = RMSNorm(sizes.width, sizes.norm_eps)

    def dense(i: int, o: int) -> nnx.Linear:
      return dense_layer(i, o, dtype=sizes.dtype, rngs=rngs)

    self.gate = dense(sizes.width, hidden)
    self.up = dense(sizes.width, hidden)
    self.down = dense(hidden, sizes.width)

  def init_state(self, batch: int) -> tuple[()]:
    """Nothing: there is no memory within a sequence."""
    del batch
    return ()

  def __call__(
    self,
    x: jax.Array,
    state: tuple[()] | None = None,
    starts: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[()]]:
    """Returns (x + its output, ()) for x [b, t, width].

    `starts`, bool [b, t], changes nothing: no state is kept.
    """
    del state, starts
    z = self.norm(x)
    hidden = jax.nn.silu(self.gate(z)) * self.up(z)
    return x + self.down(placement.constrain(hidden, 'hidden')), ()


def _hidden(sizes: Sizes, options: SwiGLUOptions) -> int:
  return options.hidden or -(-8 * sizes.width // 3 // 64) * 64


def _build(sizes: Sizes, options: SwiGLUOptions, *, rngs: nnx.Rngs) -> SwiGLU:
  return SwiGLU(sizes, _hidden(sizes, options), rngs=rngs)


def _parameters(options: SwiGLUOptions) -> list[Leaf]:
  del options
  return [
    Leaf('norm/scale', P(), 'norms'),
    Leaf(
      '(gate|up)/kernel', P('fsdp', 'tensor'), 'feed-forward', kind='linear'
    ),
    Leaf('down/kernel', P('tensor', 'fsdp'), 'feed-forward', kind='linear'),
  ]


def _divided(sizes: Sizes, options: SwiGLUOptions) -> list[Divided]:
  hidden = _hidden(sizes, options)
  return [
    Divided('the hidden width of a feed-forward', hidden, ('fsdp', 'tensor'))
  ]


PART = Part(
  options=SwiGLUOptions,
  build=_build,
  parameters=_parameters,
  divided=_divided,
  with_hidden=lambda hidden, width: {'hidden': hidden},
)
