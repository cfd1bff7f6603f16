"""The blocks of a model: what `model.pattern` says, and their parameters."""

import ast
from collections.abc import Iterator
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import ml_collections

from hope.feedforward import FEEDFORWARD
from hope.fields import declared, nearest
from hope.layers import decoder
from hope.mixers import MIXERS
from hope.parts import Divided, Leaf, Part, Sizes

Config = ml_collections.ConfigDict | ml_collections.FrozenConfigDict


class Chosen(NamedTuple):
  """A mixer or feed-forward of the pattern.

  Attributes:
    name: in MIXERS or FEEDFORWARD.
    part: that it names.
    options: its own, an instance of `part.options`.
  """

  name: str
  part: Part
  options: Any

  def build(self, sizes: Sizes, rngs: nnx.Rngs) -> Any:
    """The module."""
    return self.part.build(sizes, self.options, rngs=rngs)


class BlockSpec(NamedTuple):
  """A block of the pattern."""

  sizes: Sizes
  mixer: Chosen
  feedforward: Chosen

  @property
  def parts(self) -> dict[str, Chosen]:
    """Mixer and feed-forward, by their names in a block."""
    return {'mixer': self.mixer, 'feedforward': self.feedforward}


def sizes(config: Config) -> Sizes:
  """The sizes that all parts of a model share; the config is resolved."""
  model = config.model
  return Sizes(
    width=model.width,
    num_heads=model.num_heads,
    seq_len=config.data.seq_len,
    dtype=jnp.dtype(model.dtype),
    kernel=config.compute.kernel,
    norm_eps=model.norm_eps,
  )


def pattern(config: Config) -> tuple[BlockSpec, ...]:
  """The blocks that repeat through the depth of a model.

  `model.pattern` is text: blocks with commas between, each 'mixer+feedforward'.
  Options in parentheses after a name replace those of its section, such as
  model.titans, for this block; the name of a setting of the part replaces all
  options that it states.

    titans+cms
    titans(paper, read='chunk')+cms
    titans+cms(periods=(1, 4)), attention(max_context=128)+cms

  Raises:
    ValueError: for a text that cannot be read, or a name or option that does
      not exist.
  """
  text = config.model.pattern
  try:
    tree = ast.parse(f'({text},)', mode='eval').body
  except (SyntaxError, ValueError, MemoryError, RecursionError):
    tree = None
  if not isinstance(tree, ast.Tuple) or not tree.elts:
    raise _unreadable(text)
  return tuple(_block(config, text, block) for block in tree.elts)


def _unreadable(text: str) -> ValueError:
  return ValueError(
    f'model.pattern={text!r} cannot be read; write blocks with commas between, '
    "each 'mixer+feedforward', as 'titans+cms, attention(max_context=128)+cms'."
  )


def _block(config: Config, text: str, tree: ast.expr) -> BlockSpec:
  if not (isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add)):
    raise _unreadable(text)
  mixer = _chosen(config, text, tree.left, MIXERS)
  feedforward = _chosen(config, text, tree.right, FEEDFORWARD)
  of_block = dataclasses.replace(
    sizes(config), hidden_multiple=mixer.part.hidden_multiple(mixer.options)
  )
  return BlockSpec(of_block, mixer, feedforward)


def _chosen(
  config: Config, text: str, tree: ast.expr, registry: dict[str, Part]
) -> Chosen:
  """The part that a name, or a call of it with options, stands for."""
  name, given, named = tree, [], []
  if isinstance(tree, ast.Call):
    name, given, named = tree.func, tree.keywords, tree.args
  if not isinstance(name, ast.Name):
    raise _unreadable(text)
  if name.id not in registry:
    raise ValueError(
      f'model.pattern={text!r} names {name.id!r}; there are '
      f'{", ".join(registry)}.{nearest(name.id, registry)}'
    )
  part, options = registry[name.id], dict(config.model.get(name.id, {}))
  for setting in named:
    if not isinstance(setting, ast.Name):
      raise _unreadable(text)
    if setting.id not in part.settings:
      raise ValueError(
        f'model.pattern={text!r}: {name.id} has no setting {setting.id!r}; it '
        f'has {", ".join(part.settings) or "none"}.'
        f'{nearest(setting.id, part.settings)}'
      )
    options |= part.settings[setting.id]
  for keyword in given:
    if keyword.arg not in options:
      raise ValueError(
        f'model.pattern={text!r}: {name.id} has no option {keyword.arg!r}; it '
        f'has {", ".join(options)}.{nearest(keyword.arg, options)}'
      )
    try:
      value = ast.literal_eval(keyword.value)
    except ValueError:
      raise _unreadable(text) from None
    stated = declared(part.options)[keyword.arg]
    place = f'model.pattern: {keyword.arg} of {name.id}'
    options[keyword.arg] = stated.check(place, value)
  return Chosen(name.id, part, part.options(**options))


_NORM = Leaf('norm/scale', P(), 'norms')


def parameters(config: Config) -> tuple[Leaf, ...]:
  """The table of a model's parameters, by their paths in it."""
  tied = config.model.tied_head
  table = [
    Leaf(
      'embed/embedding',
      P(None, ('fsdp', 'tensor')),
      'embedding (and output)' if tied else 'embedding',
      kind='embedding',
      used_whole=True,
    ),
    Leaf(
      'head/kernel',
      P(('fsdp', 'tensor')),
      'output',
      kind='embedding',
      used_whole=True,
    ),
    _NORM,
    *(leaf.below('decoder') for leaf in decoder.PARAMETERS),
  ]
  for place, block in enumerate(pattern(config)):
    prefix = f'blocks/{place}'
    table.append(_NORM.below(prefix))
    for name, (_, part, options) in block.parts.items():
      rows = part.parameters(options)
      table += [leaf.below(f'{prefix}/{name}') for leaf in rows]
  return tuple(table)


def parts(config: Config) -> Iterator[tuple[Sizes, Part, Any]]:
  """Sizes, part and options of every mixer and feed-forward of the pattern."""
  for block in pattern(config):
    for chosen in block.parts.values():
      yield block.sizes, chosen.part, chosen.options


def divided(config: Config) -> list[Divided]:
  """The sizes of a model that the axes of its mesh must divide."""
  model = config.model
  found = [
    Divided('model.num_heads', model.num_heads, ('tensor', 'seq')),
    Divided('data.seq_len', config.data.seq_len, ('seq', 'tensor')),
    Divided('model.width', model.width, ('fsdp', 'tensor')),
  ]
  for sizes, part, options in parts(config):
    found += part.divided(sizes, options)
  return found


def least_parameters(config: Config) -> int:
  """A lower bound on the parameters of a resolved configuration's model."""
  model = config.model
  of_blocks = sum(
    part.least_parameters(sizes, options)
    for sizes, part, options in parts(config)
  )
  repeats = model.num_layers // len(pattern(config))
  return repeats * of_blocks + model.width * (model.vocab_size or 1)


def chunks(config: Config) -> list[int]:
  """Chunk sizes of all memories of the model, in tokens."""
  return [
    size for _, part, options in parts(config) for size in part.chunks(options)
  ]


def check(config: Config) -> None:
  """Raises ValueError for parts of a model that cannot work together.

  Args:
    config: whose fields are each checked, with its sizes filled in.
  """
  model, count = config.model, len(pattern(config))
  if model.num_layers % count:
    raise ValueError(
      f'model.num_layers={model.num_layers} is not a multiple of the {count} '
      f'blocks of model.pattern={model.pattern!r}; try '
      f'{-(-model.num_layers // count) * count}.'
    )
  for sizes, part, options in parts(config):
    part.check(sizes, options)
