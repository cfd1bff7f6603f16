"""The examples of a generated task of `hope.tasks` as a source of data."""

import ml_collections
import numpy as np

from hope.data import sources
from hope.tasks import TASKS

# Examples of a stream, which is endless for every purpose.
_STREAM_LENGTH = 2**48
# Ids are drawn from tables of all of them.
_LARGEST_VOCABULARY = 2**24


class TaskSource:
  """Random access to the examples of a task, as dicts of [t] arrays."""

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    """Chooses the stream of examples.

    Args:
      config: The run's configuration.
      split: 'train', a stream for each `config.seed`, or 'heldout', one stream
        whatever the seed, so that runs are compared on the same examples.

    Raises:
      ValueError: The task is unknown or its options do not fit.
    """
    name = config.data.source.partition(':')[2]
    _validate(name, config)
    self._task = TASKS[name]
    self._options = config.data.task.copy_and_resolve_references()
    self._seq_len = config.data.seq_len
    self._stream = (0, config.seed) if split == 'train' else (1, 0)

  def __len__(self) -> int:
    return _STREAM_LENGTH

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((*self._stream, index))
    example = self._task.generate(rng, self._seq_len, self._options)
    return example._asdict()


def _validate(name: str, config: ml_collections.ConfigDict):
  """Raises ValueError for a task that cannot be generated."""
  if name not in TASKS:
    raise ValueError(
      f'data.source=synthetic:{name}: unknown task; '
      f'{sources.nearest(name, tuple(TASKS))}'
    )
  options, length = config.data.task, config.data.seq_len
  size, num = options.vocab_size, options.num_pairs
  if not num >= 1:
    raise ValueError(f'data.task.num_pairs={num}: give at least 1.')
  if not size <= _LARGEST_VOCABULARY:
    raise ValueError(
      f'data.task.vocab_size={size}: give at most {_LARGEST_VOCABULARY}.'
    )
  least = TASKS[name].least(options)
  for field, given, needed in (
    ('task.vocab_size', size, least.vocab_size),
    ('seq_len', length, least.seq_len),
  ):
    if not given >= needed:
      raise ValueError(
        f'data.{field}={given} is too small for {name} with '
        f'data.task.num_pairs={num}; give at least {needed}.'
      )
  TASKS[name].check(length, options)
