"""MAD's decoder of the compression task (arXiv:2403.17844).

All it knows of a sequence is one vector e, after the last token. At position i
it computes

  h_0 = e + p_i,  h_n = gelu(W_n norm(h_(n-1)) + b_n) for n = 1, 2

with fixed sines and cosines p_i; logits are of h_2 as those of any model.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from hope.layers.dense import dense_layer
from hope.layers.norm import RMSNorm
from hope.parts import Leaf

PARAMETERS = (
  Leaf('norm_(1|2)/scale', P(), 'norms'),
  Leaf(
    'linear_(1|2)/kernel',
    P(('fsdp', 'tensor')),
    'decoder',
    kind='linear',
    used_whole=True,
  ),
  Leaf('linear_(1|2)/bias', P(), 'decoder'),
)


def positions(length: int, width: int) -> np.ndarray:
  """Sines and cosines, float32 [length, width].

  Their frequencies fall from 1 to 1e-4 over width // 2 sines; as many cosines
  follow, and a 0 where the width is odd.

  Args:
    length: tokens.
    width: of the model.
  """
  frequencies = 1e-4 ** np.linspace(0, 1, width // 2)
  angles = np.arange(length)[:, None] * frequencies
  found = np.zeros((length, width), np.float32)
  found[:, : 2 * (width // 2)] = np.concatenate(
    [np.sin(angles), np.cos(angles)], axis=1
  )
  return found


class Decoder(nnx.Module):
  """Two layers over the vector of a sequence and each position."""

  def __init__(
    self, width: int, norm_eps: float, dtype: jnp.dtype, *, rngs: nnx.Rngs
  ):
    self.norm_1, self.norm_2 = (RMSNorm(width, norm_eps) for _ in range(2))
    self.linear_1, self.linear_2 = (
      dense_layer(width, width, use_bias=True, dtype=dtype, rngs=rngs)
      for _ in range(2)
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Decodes the last of the vectors x [b, t, width] to [b, t, width]."""
    x = x[:, -1:] + positions(*x.shape[1:]).astype(x.dtype)
    x = jax.nn.gelu(self.linear_1(self.norm_1(x)), approximate=False)
    return jax.nn.gelu(self.linear_2(self.norm_2(x)), approximate=False)
