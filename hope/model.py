"""Hope and Hope-Attention (Eq. 94-97 of arXiv:2512.24695).

A block is x + mixer(norm(x)), then a feed-forward. Hope has self-referential
Titans and the levels of the Continuum Memory System ('titans+cms' as
`model.pattern`), Hope-Attention has causal attention ('attention+cms').
"""

from collections.abc import Mapping, Sequence
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections

from hope import blocks
from hope.blocks import BlockSpec
from hope.fields import field
from hope.layers.decoder import Decoder
from hope.layers.dense import dense_layer
from hope.layers.norm import RMSNorm
from hope.memory.stream import KERNELS
from hope.parallel import placement
from hope.parts import InnerLosses

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
  pattern: str = field(
    'titans+cms',
    "Blocks that repeat through the depth, each 'mixer+feedforward', with "
    "commas between: 'titans+cms' is Hope, 'attention+cms' Hope-Attention. "
    "Parentheses hold options that differ from their section's: "
    "'titans+cms, attention(max_context=128)+cms'.",
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
    'Dtype of matmul operands. Parameters and fast states are always float32.',
    choices=('float32', 'bfloat16'),
  )
  norm_eps: float = field(
    1e-6, 'Added to the mean square in RMSNorm.', above=0, maximum=1.0
  )
  tied_head: bool = field(
    True, 'Whether the embedding is the output layer too.'
  )
  logit_scale: float | None = field(
    None,
    'Factor of the logits. None: width^-0.5 with a tied head, 1 without.',
    above=0,
  )
  decoder: bool = field(
    False,
    'Whether all positions are decoded from the vector after the last token, '
    'by two layers: the model of synthetic:compression, and of no other data.',
  )


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
  """How the model is computed."""

  remat: bool = field(
    True,
    'Recompute each block in the backward pass instead of keeping its values.',
  )
  unroll: int = field(
    1,
    'Repeats of the pattern up to which they are compiled one after another: '
    'a model of few layers is then a seventh faster than as a loop, but takes '
    'longer to compile.',
    minimum=1,
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

  def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs):
    self.norm = RMSNorm(spec.sizes.width, spec.sizes.norm_eps)
    self.mixer = spec.mixer.build(spec.sizes, rngs)
    self.feedforward = spec.feedforward.build(spec.sizes, rngs)

  def init_state(self, batch: int):
    """The states of the mixer and of the feed-forward."""
    return self.mixer.init_state(batch), self.feedforward.init_state(batch)

  def __call__(self, x: jax.Array, state=None, starts=None):
    """x [b, t, width]; state and starts as in `Hope`."""
    mixer_state, feedforward_state = (None, None) if state is None else state
    y, mixer_state = self.mixer(self.norm(x), mixer_state, starts)
    x, feedforward_state = self.feedforward(x + y, feedforward_state, starts)
    return x, (mixer_state, feedforward_state)

  def pop_inner_losses(self) -> dict[str, jax.Array]:
    """What the block's memories measured in a call: [b, t] by name."""
    found = nnx.to_pure_dict(nnx.pop(self, InnerLosses))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    names = [(path[-1].key, values) for path, values in leaves]
    return {
      name if '/' in name else f'{name}/inner_loss': values
      for name, values in names
    }


def _stack(spec: BlockSpec, keys: jax.Array) -> Block:
  """A block whose parameters are stacked, drawn from keys [repeats]."""

  def build(key: jax.Array):
    return nnx.split(Block(spec, rngs=nnx.Rngs(key)))

  graph, _ = nnx.split(nnx.eval_shape(lambda: Block(spec, rngs=nnx.Rngs(0))))
  return nnx.merge(graph, jax.vmap(lambda key: build(key)[1])(keys))


class Hope(nnx.Module):
  """The language model.

  Layer r * p + i is repeat r of block i of the pattern's p blocks; the
  parameters of a block are stacked over its repeats.

  Choice: by default the embedding is also the output layer (`tied_head`).

  Attributes:
    table: a row for each kind of parameter (`hope.blocks.parameters`).
    pattern: the blocks of one repeat.
  """

  def __init__(self, config: ml_collections.ConfigDict, *, rngs: nnx.Rngs):
    """Builds the model of a resolved configuration (`hope.config.resolve`)."""
    model = config.model
    self.remat, self.unroll = config.compute.remat, config.compute.unroll
    self.dtype = jnp.dtype(model.dtype)
    self.pattern, self.table = blocks.pattern(config), blocks.parameters(config)
    self.embed = nnx.Embed(
      model.vocab_size,
      model.width,
      embedding_init=nnx.initializers.normal(1.0),
      dtype=self.dtype,
      rngs=rngs,
    )
    count = len(self.pattern)
    keys = jax.random.split(rngs.params(), model.num_layers)
    self.blocks = nnx.List(
      _stack(spec, keys[place::count])
      for place, spec in enumerate(self.pattern)
    )
    self.decodes = model.decoder
    if model.decoder:
      self.decoder = Decoder(model.width, model.norm_eps, self.dtype, rngs=rngs)
    self.norm = RMSNorm(model.width, model.norm_eps)
    self.logit_scale = model.logit_scale
    if self.logit_scale is None:
      self.logit_scale = model.width**-0.5 if model.tied_head else 1.0
    self.tied_head = model.tied_head
    if not model.tied_head:
      self.head = dense_layer(
        model.width, model.vocab_size, dtype=self.dtype, rngs=rngs
      )

  def init_state(self, batch: int, documents: bool = False):
    """The state before the first token: a tuple, of each block of the pattern.

    Every leaf is [repeats, ...].

    Args:
      batch: streams.
      documents: whether positions are [repeats, batch], as in the states that
        a call with `starts` returns, and not [repeats] (`jax.lax.scan` needs a
        carry of constant shapes).
    """

    def spread(x):
      if not documents or x.ndim > 1:
        return x
      return jnp.broadcast_to(x[:, None], (*x.shape, batch))

    def of_block(block: Block):
      graph, params = nnx.split(block)
      return jax.vmap(lambda p: nnx.merge(graph, p).init_state(batch))(params)

    state = tuple(of_block(block) for block in self.blocks)
    return jax.tree.map(spread, state)

  def metrics(self, state) -> dict[str, jax.Array]:
    """Scalars [] to log of a state, by name: 'memory/state_norm/layer_0'."""
    found = []
    for spec, states in zip(self.pattern, state, strict=True):
      of_block = {}
      for chosen, of_part in zip(spec.parts.values(), states, strict=True):
        of_block |= chosen.part.metrics(of_part)
      found.append(of_block)
    return self.by_layer(found)

  def by_layer(
    self, of_blocks: Sequence[Mapping[str, jax.Array]]
  ) -> dict[str, jax.Array]:
    """What is known of each block of the pattern, by layer.

    Args:
      of_blocks: arrays [repeats, ...] by name, as 'memory/state_norm'.

    Returns:
      Arrays [...] by name and layer, as 'memory/state_norm/layer_0'.
    """
    count = len(self.pattern)
    return {
      f'{name}/layer_{repeat * count + place}': value
      for place, of_block in enumerate(of_blocks)
      for name, values in of_block.items()
      for repeat, value in enumerate(values)
    }

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
      state: returned for the previous piece; None: the sequence starts here.
      starts: bool [b, t], True at the first token of a document, before which
        all fast states are reset; None: nowhere. In a piece of more than one
        token it must be the piece's first, or a multiple of
        `hope.data.packing.alignment` tokens after the document before it
        started; otherwise the logits of the row are NaN.
      last_only: computes only the logits after the last token: all logits of a
        long prompt need more memory than the rest of the model.

    Returns:
      (logits, state), logits float32 [b, t, v], or [b, 1, v] of the last.

    Raises:
      ValueError: for a state, where `model.decoder` decodes whole sequences.
    """
    x, state, embed = self._read(tokens, state, starts, last_only)
    # Accumulate in float32 or wider, and keep it: logits rounded to bfloat16
    # would tie.
    x = placement.constrain(x * self.logit_scale, 'logits').astype(self.dtype)
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    return jnp.matmul(
      x, self._output_kernel(embed), preferred_element_type=dtype
    ), state

  def features(
    self, tokens: jax.Array, state=None, starts: jax.Array | None = None
  ) -> jax.Array:
    """What the output layer reads after the last token, [b, width].

    Args:
      tokens: int32 [b, t].
      state: as in `__call__`, like what follows.
      starts: bool [b, t].
    """
    return self._read(tokens, state, starts, last_only=True)[0][:, 0]

  def _read(self, tokens: jax.Array, state, starts, last_only: bool):
    """(normalized output of the blocks [b, t, width], state, embedding)."""
    if self.decodes and state is not None:
      raise ValueError(
        'model.decoder=True decodes whole sequences, which nothing goes on '
        'from; give all tokens at once, without a state.'
      )
    embed_graph, params = nnx.split(self.embed)
    params = placement.gather(
      nnx.to_pure_dict(params), 'embed', self.dtype, self.table
    )
    embed = nnx.merge(embed_graph, params)
    graphs, params, probes = zip(
      *(nnx.split(block, nnx.Param, ...) for block in self.blocks), strict=True
    )

    def apply(place: int, x, inputs):
      params, probes, state = inputs
      params = placement.gather(
        params, f'blocks/{place}', self.dtype, self.table
      )
      block = nnx.merge(graphs[place], params, probes)
      x, state = block(x, state, starts)
      return placement.constrain(x, 'tokens'), (state, block.pop_inner_losses())

    repeats = jax.tree.leaves(params)[0].shape[0]
    unrolled = repeats <= self.unroll
    if self.remat:
      # In a loop, what is recomputed cannot be merged with what was computed.
      apply = jax.checkpoint(apply, prevent_cse=unrolled, static_argnums=0)

    def repeat(x, inputs):
      found = []
      for place, of_block in enumerate(zip(*inputs, strict=True)):
        x, new = apply(place, x, of_block)
        found.append(new)
      return x, tuple(zip(*found, strict=True))

    x, (state, losses) = jax.lax.scan(
      repeat,
      placement.constrain(embed(tokens), 'tokens'),
      (
        tuple(nnx.to_pure_dict(p) for p in params),
        probes,
        (None,) * len(graphs) if state is None else state,
      ),
      unroll=repeats if unrolled else 1,
    )
    if any(losses):
      self.inner_losses = InnerLosses(losses)
    if self.decodes:
      x = self._decoded(x)
    if last_only:
      x = x[:, -1:]
    return self.norm(x), state, embed

  def _decoded(self, x: jax.Array) -> jax.Array:
    """What the decoder makes of x [b, t, width], of the same shape."""
    graph, params = nnx.split(self.decoder)
    params = placement.gather(
      nnx.to_pure_dict(params), 'decoder', self.dtype, self.table
    )
    return placement.constrain(nnx.merge(graph, params)(x), 'tokens')

  def _output_kernel(self, embed: nnx.Embed) -> jax.Array:
    """[width, v], in the dtype of matmuls."""
    if self.tied_head:
      return embed.embedding[...].astype(self.dtype).T
    kernel = nnx.to_pure_dict(nnx.state(self.head))
    kernel = placement.gather(kernel, 'head', self.dtype, self.table)['kernel']
    return kernel.astype(self.dtype)
