"""The examples of a generated task of `hope.tasks` as a source of data.

Tasks of positions give rows of numbers; of tasks of text, `text_tasks` makes
the rows.
"""

from collections.abc import Callable, Iterator
import functools
import zlib

import ml_collections
import numpy as np

from hope.data import sources
from hope.data.background import Background, open_background
from hope.data.text_tasks import TextDraw
from hope.data.tokenization import Tokenizer
from hope.tasks import TASKS, TEXT_TASKS, Example

# Examples of a stream, which is endless for every purpose.
_STREAM_LENGTH = 2**48
# Ids are drawn from tables of all of them.
_LARGEST_VOCABULARY = 2**24
# Choice: of a task whose streams are disjoint, one in 6 examples is held out,
# like 2,000 of the 12,000 strings of the formal languages' data.
_DIVISOR = 6


class TaskSource:
  """Random access to the examples of a task, as dicts of [t] arrays.

  Of `data.task.examples` training examples, index i is the one at place
  i % examples of the order of epoch i // examples.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    split: str,
    tokenizer: Tokenizer | None = None,
    background: Background | None = None,
  ):
    """Chooses the stream of examples.

    Args:
      config: The run's configuration.
      split: 'train', a stream for each `config.seed`, or 'heldout', one stream
        whatever the seed, so that runs are compared on the same examples.
      tokenizer: Of the run; tasks of text need it.
      background: Of `data.task.text`, for tasks of text. None: none.

    Raises:
      ValueError: The task is unknown or its options do not fit.
    """
    name = config.data.source.partition(':')[2]
    self._heldout = split != 'train'
    self._stream = (1, 0) if self._heldout else (0, config.seed)
    self._examples = None if self._heldout else config.data.task.examples
    if name in TEXT_TASKS:
      assert tokenizer is not None
      text = TextDraw(name, config, tokenizer, background or Background())
      self._draw = functools.partial(text, heldout=self._heldout)
    else:
      self._draw = _numbers(name, config, self._heldout)

  def __len__(self) -> int:
    return _STREAM_LENGTH

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if self._examples is not None:
      epoch, place = divmod(index, self._examples)
      index = _order(self._stream, self._examples, epoch)[place]
    rng = np.random.default_rng((*self._stream, index))
    return self._draw(rng)._asdict()


def _numbers(
  name: str, config: ml_collections.ConfigDict, heldout: bool
) -> Callable[[np.random.Generator], Example]:
  """What draws the examples of a task of TASKS."""
  _validate(name, config)
  task, seq_len = TASKS[name], config.data.seq_len
  options = config.data.task.copy_and_resolve_references()
  generate = task.generate
  if heldout and task.heldout is not None:
    generate = task.heldout

  def draw(rng: np.random.Generator) -> Example:
    while True:
      example = generate(rng, seq_len, options)
      if not task.disjoint or _is_heldout(example) == heldout:
        return example

  return draw


def background(config: ml_collections.ConfigDict) -> Background | None:
  """The background of a task of text; None: no such task.

  Raises:
    ValueError: `data.task.text` is not there, or no text.
  """
  kind, _, name = config.data.source.partition(':')
  if kind != 'synthetic' or name not in TEXT_TASKS:
    return None
  return open_background(config.data.task.text)


@functools.lru_cache(maxsize=2)
def _order(stream: tuple[int, int], examples: int, epoch: int) -> np.ndarray:
  """The examples of an epoch in their order, [examples]."""
  # Three numbers and a fourth: no example is drawn from such a seed.
  rng = np.random.default_rng((*stream, epoch, 1))
  return rng.permutation(examples)


def metric(config: ml_collections.ConfigDict) -> str | None:
  """Name of the task's metric in `hope.tasks.METRICS`; None: no task."""
  kind, _, name = config.data.source.partition(':')
  if kind != 'synthetic':
    return None
  return TASKS[name].metric if name in TASKS else 'exact_match'


def _is_heldout(example: Example) -> bool:
  return zlib.crc32(example.inputs.tobytes()) % _DIVISOR == 0


def longer(
  config: ml_collections.ConfigDict,
) -> Iterator[tuple[str, ml_collections.ConfigDict]]:
  """Yields the bins of `evals.longer`: names, as '51-100', and configurations.

  A bin starts where the one before it ends, the first one behind
  `data.task.max_length`, of tasks of text behind `data.seq_len`. Its rows are
  whole multiples of `data.seq_len`.

  Raises:
    ValueError: The bins do not ascend, or examples have one length.
  """
  ends = tuple(config.evals.longer)
  if not ends:
    return
  kind, _, name = config.data.source.partition(':')
  sized = [name for name, task in TASKS.items() if task.size == 'max_length']
  if kind != 'synthetic' or name not in [*sized, *TEXT_TASKS]:
    raise ValueError(
      f'evals.longer={ends}: examples of data.source={config.data.source} are '
      'of one length; leave it at (), or take one of '
      f'{", ".join(f"synthetic:{x}" for x in [*sized, *TEXT_TASKS])}.'
    )
  text, unit = name in TEXT_TASKS, config.data.seq_len
  last = unit if text else config.data.task.max_length
  first = 'data.seq_len' if text else 'data.task.max_length'
  for end in ends:
    if end <= last:
      raise ValueError(
        f'evals.longer={ends}: {end} must be above {last}, where the bin '
        f'before it ends; give ascending lengths above {first}.'
      )
    changed = ml_collections.ConfigDict(config.to_dict())
    if text:
      changed.data.task.min_size = last + 1
      changed.data.task.max_size = least = end
    else:
      changed.data.task.min_length, changed.data.task.max_length = last + 1, end
      least = TASKS[name].least(changed.data.task).seq_len
    changed.data.seq_len = -(-least // unit) * unit
    yield f'{last + 1}-{end}', changed
    last = end


def _validate(name: str, config: ml_collections.ConfigDict):
  """Raises ValueError for a task that cannot be generated."""
  if name not in TASKS:
    raise ValueError(
      f'data.source=synthetic:{name}: unknown task; '
      f'{sources.nearest(name, (*TASKS, *TEXT_TASKS))}'
    )
  options, length = config.data.task, config.data.seq_len
  size, option = options.vocab_size, TASKS[name].size
  if option is not None and not options[option] >= 1:
    raise ValueError(f'data.task.{option}={options[option]}: give at least 1.')
  if not size <= _LARGEST_VOCABULARY:
    raise ValueError(
      f'data.task.vocab_size={size}: give at most {_LARGEST_VOCABULARY}.'
    )
  least = TASKS[name].least(options)
  with_size = f' with data.task.{option}={options[option]}' if option else ''
  for field, given, needed in (
    ('task.vocab_size', size, least.vocab_size),
    ('seq_len', length, least.seq_len),
  ):
    if not given >= needed:
      raise ValueError(
        f'data.{field}={given} is too small for {name}'
        f'{with_size}; give at least {needed}.'
      )
  TASKS[name].check(length, options)
