"""The initial state of the memories of a layer: parameters, learned outside."""

from flax import nnx
import jax
import jax.numpy as jnp

from hope.layers.orthogonal import orthogonal
from hope.memory import mlp

# Norm of a memory's initial output, of a unit input.
_SCALE = 0.3


def retention_bias(heads: int) -> jax.Array:
  """Logits [heads] of retention with which things last 64 to 2,048 tokens."""
  return jnp.log(jnp.logspace(6, 11, heads, base=2.0) - 1)


class Memory(nnx.Module):
  """The initial state of one memory per head: a parameter, learned outside."""

  def __init__(self, heads: int, i: int, f: int, o: int, *, rngs: nnx.Rngs):
    if f:
      # silu(z) is nearly z / 2, so that features of unit vectors start with
      # norm 1, and as far apart as the vectors are.
      init = orthogonal(scale=2.0)
      self.up = nnx.Param(init(rngs.params(), (heads, i, f)))
    std = _SCALE / o**0.5
    shape = (heads, f or i, o)
    self.down = nnx.Param(std * jax.random.normal(rngs.params(), shape))

  def kernels(self) -> mlp.Kernels:
    """Kernels of one memory: up [n, i, f], down [n, 1, f, o]."""
    up = self.up[...] if hasattr(self, 'up') else None
    return mlp.Kernels(up, (self.down[...][:, None],))
