"""Hope and Hope-Attention (Eq. 94-97 of arXiv:2512.24695).

A block is x + mixer(norm(x)), then the levels of the Continuum Memory System.
The mixer is self-referential Titans (Hope) or causal attention
(Hope-Attention).
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections

from hope.feedforward.cms import CMSOptions, ContinuumMemory
from hope.fields import field
from hope.layers.norm import RMSNorm
from hope.memory.stream import KERNELS
from hope.mixers.attention import AttentionOptions, CausalAttention
from hope.mixers.titans import SelfReferentialTitans, TitansOptions
from hope.parallel import placement

# num_layers, width, num_heads. The paper gives them for 760M (24 layers, width
# 1536, 16 heads) and the width for 1.3B.
PRESETS = {
  'tiny': (4, 128, 2),
  '115m': (12, 768, 12),
  '350m': (24, 1024, 16),
  '760m': (24, 1536, 16),
  '1.3b': (24, 2048, 16),
}


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  """Options of the model; those of its parts are sections below it."""

  preset: str = field(
    'tiny', 'Sizes that fill the fields left at None.', choices=tuple(PRESETS)
  )
  mixer: str = field(
    'titans',
    "Sequence mixer of every block: 'titans' (Hope) or 'attention' "
    '(Hope-Attention).',
    choices=('titans', 'attention'),
  )
  num_layers: int | None = field(
    None, 'Number of blocks. None: from the preset.', minimum=1, maximum=2**12
  )
  width: int | None = field(
    None,
    'Width of the residual stream. None: from the preset.',
    minimum=1,
    maximum=2**17,
  )
  num_heads: int | None = field(
    None, 'Heads of a mixer. None: from the preset.', minimum=1, maximum=2**17
  )
  vocab_size: int | None = field(
    None,
    "Tokens. None: the vocabulary of the data's tokenizer.",
    minimum=1,
    maximum=2**24,
  )
  dtype: str = field(
    'float32',
    'Type of matmul operands. Parameters and all fast states are float32 '
    'whatever it says.',
    choices=('float32', 'bfloat16'),
  )


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
  """How the model is computed."""

  remat: bool = field(
    True,
    'Recompute each block in the backward pass instead of keeping its values.',
  )
  kernel: str = field(
    'xla',
    "What runs the memories over whole chunks: 'xla', or 'pallas', one kernel "
    "that keeps their state in a TPU's VMEM (interpreted, slowly, on a CPU). "
    "Decoding and prompts that do not fill a chunk are 'xla' with either.",
    choices=KERNELS,
  )


class Block(nnx.Module):
  """One block: `init_state(batch)`, `__call__(x, state) -> (x, state)`."""

  def __init__(self, config: ml_collections.ConfigDict, *, rngs: nnx.Rngs):
    model, dtype = config.model, jnp.dtype(config.model.dtype)
    self.norm = RMSNorm(model.width)
    if model.mixer == 'titans':
      self.mixer = SelfReferentialTitans(
        model.width,
        model.num_heads,
        TitansOptions(**model.titans.to_dict()),
        dtype=dtype,
        kernel=config.compute.kernel,
        rngs=rngs,
      )
    else:
      self.mixer = CausalAttention(
        model.width,
        model.num_heads,
        AttentionOptions(**model.attention.to_dict()),
        dtype=dtype,
        rngs=rngs,
      )
    self.cms = ContinuumMemory(
      model.width, CMSOptions(**model.cms.to_dict()), dtype=dtype, rngs=rngs
    )

  def init_state(self, batch: int):
    """The states of the mixer and of the levels."""
    return self.mixer.init_state(batch), self.cms.init_state(batch)

  def __call__(self, x: jax.Array, state=None, starts=None):
    """x [b, t, width]; state and starts as in `Hope`."""
    mixer_state, cms_state = (None, None) if state is None else state
    y, mixer_state = self.mixer(self.norm(x), mixer_state, starts)
    x, cms_state = self.cms(x + y, cms_state, starts)
    return x, (mixer_state, cms_state)


class Hope(nnx.Module):
  """The language model; its blocks are one block with stacked parameters.

  Choice: the embedding is tied to the output layer.
  """

  def __init__(self, config: ml_collections.ConfigDict, *, rngs: nnx.Rngs):
    """Builds the model of a resolved configuration (`hope.config.resolve`)."""
    model = config.model
    self.remat = config.compute.remat
    self.dtype = jnp.dtype(model.dtype)
    self.embed = nnx.Embed(
      model.vocab_size,
      model.width,
      embedding_init=nnx.initializers.normal(1.0),
      dtype=self.dtype,
      rngs=rngs,
    )
    build = lambda key: nnx.split(Block(config, rngs=nnx.Rngs(key)))
    keys = jax.random.split(rngs.params(), model.num_layers)
    graph, _ = nnx.split(
      nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0)))
    )
    self.blocks = nnx.merge(graph, jax.vmap(lambda key: build(key)[1])(keys))
    self.norm = RMSNorm(model.width)

  def init_state(self, batch: int, documents: bool = False):
    """Fast state before the first token, [layers, ...] in every leaf.

    Args:
      batch: streams.
      documents: gives every stream a position of its own, as in the states
        that a call with `starts` returns (for `jax.lax.scan`, whose carry must
        keep its shapes).
    """
    graph, params = nnx.split(self.blocks)
    state = jax.vmap(lambda p: nnx.merge(graph, p).init_state(batch))(params)

    def spread(x):
      if not documents or x.ndim > 1:
        return x
      return jnp.broadcast_to(x[:, None], (*x.shape, batch))

    return jax.tree.map(spread, state)

  def __call__(
    self,
    tokens: jax.Array,
    state=None,
    starts: jax.Array | None = None,
    *,
    last_only: bool = False,
  ):
    """Predicts the next token at every place.

    Args:
      tokens: int32 [b, t].
      state: what the piece before left; None: the sequence starts here.
      starts: bool [b, t], True at the first token of a document, before which
        all fast states are reset; None: nowhere. In a piece of more than one
        token it must be the piece's first, or a multiple of
        `hope.data.packing.alignment` tokens after the document before it
        started; otherwise the logits of the row are NaN.
      last_only: predict after the last token alone: t logits of a large
        vocabulary need more memory than all else that reads a prompt.

    Returns:
      (logits, state), logits float32 [b, t, v], or [b, 1, v] of the last.
    """
    embed_graph, table = nnx.split(self.embed)
    table = placement.gather(nnx.to_pure_dict(table), 'embed', self.dtype)
    embed = nnx.merge(embed_graph, table)
    graph, params, probes = nnx.split(self.blocks, nnx.Param, ...)

    def layer(x, inputs):
      params, probes, state = inputs
      params = placement.gather(params, 'blocks', self.dtype)
      x, state = nnx.merge(graph, params, probes)(x, state, starts)
      return placement.constrain(x, 'tokens'), state

    if self.remat:
      layer = jax.checkpoint(layer, prevent_cse=False)
    x, state = jax.lax.scan(
      layer,
      placement.constrain(embed(tokens), 'tokens'),
      (nnx.to_pure_dict(params), probes, state),
    )
    if last_only:
      x = x[:, -1:]
    x = self.norm(x) * (self.embed.embedding.shape[-1] ** -0.5)
    # Sums are of at least float32 and stay so: logits that are rounded to
    # bfloat16 would tie.
    x = placement.constrain(x, 'logits').astype(self.dtype)
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    table = embed.embedding[...].astype(self.dtype)
    return jnp.matmul(x, table.T, preferred_element_type=dtype), state
