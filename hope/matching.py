"""Models of equal size: the number of parameters, and how to meet another's."""

import copy

from flax import nnx
import jax
import ml_collections

from hope import blocks
from hope.config import resolve
from hope.model import Hope

# Hidden widths that are multiples of these divide over more devices.
_MULTIPLES = (64, 32, 16, 8, 4, 2, 1)
_CLOSE, _BOUND = 0.005, 0.01


def count_parameters(
  config: ml_collections.ConfigDict, vocab_size: int | None = None
) -> int:
  """Parameters of a configuration's model; none is made.

  Args:
    config: resolved or not.
    vocab_size: of the data; None: `model.vocab_size` says it.
  """
  return size(resolve(config, vocab_size or config.model.vocab_size))


def size(config: ml_collections.FrozenConfigDict) -> int:
  """Parameters of the model that a resolved configuration describes."""
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def match_parameters(
  config: ml_collections.ConfigDict,
  like: ml_collections.ConfigDict | int,
  vocab_size: int | None = None,
) -> ml_collections.ConfigDict:
  """Makes a model as large as another by the width of its feed-forwards.

    matched = match_parameters(experiment('text_memory'), like=other)

  Args:
    config: of the model; it is not changed.
    like: configuration of the other model, or its number of parameters.
    vocab_size: of the data of both; None: `model.vocab_size` says it.

  Returns:
    A configuration within 1%, usually 0.5%, of the other number. All its
    feed-forwards have the same hidden width.

  Raises:
    ValueError: where no width gives that number: the mixer alone has more, or
      `model.pattern` states the width.
  """
  if not isinstance(like, int):
    like = count_parameters(like, vocab_size)
  resolved = resolve(config, vocab_size or config.model.vocab_size)
  width, names = resolved.model.width, set()
  for block in blocks.pattern(resolved):
    names.add(block.feedforward.name)

  def with_hidden(hidden: int) -> tuple[ml_collections.ConfigDict, int]:
    """(configuration, parameters) with this hidden width."""
    new = copy.deepcopy(config)
    for name in names:
      part = blocks.FEEDFORWARD[name]
      new.model[name].update(part.with_hidden(hidden, width))
    return new, count_parameters(new, vocab_size)

  one, two = (with_hidden(x)[1] for x in (width, 2 * width))
  if one != two:
    wanted = width * (1 + (like - one) / (two - one))
    for multiple in _MULTIPLES:
      hidden = max(1, round(wanted / multiple)) * multiple
      found, count = with_hidden(hidden)
      off = abs(count / like - 1)
      if off <= (_BOUND if multiple == 1 else _CLOSE):
        return found
  raise ValueError(
    f'no width of the feed-forwards of model.pattern={config.model.pattern!r} '
    f'gives {like:,} parameters: at a hidden width of {width} it has {one:,}, '
    f'at {2 * width} {two:,}. Change model.width, or leave out the width that '
    'the pattern states.'
  )
