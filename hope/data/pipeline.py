"""Batches: documents -> tokens -> packed sequences -> batches, with grain.

A batch is a dict of NumPy arrays, b rows (those of `data.batch_size` that this
process reads) by t = `data.seq_len` tokens:

  inputs   int32 [b, t]
  targets  int32 [b, t]    the next token, or the answer of a synthetic task
  weights  float32 [b, t]  0 where there is no target
  starts   bool [b, t]     with `data.segments`: a document starts here
"""

from collections.abc import Callable, Iterator, Sequence
import json
from typing import Any, NamedTuple

from absl import logging
import grain
import ml_collections
import numpy as np

from hope.data import dealing, generated, sources
from hope.data.background import Background
from hope.data.encoding import TrainingTokens, heldout_tokens
from hope.data.identity import run_identity
from hope.data.packing import Packing
from hope.data.tokenization import Tokenizer

Batch = dict[str, np.ndarray]

# Without grain's threads: reading and encoding are too cheap to hand over.
_READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)

# Tokens of a step, all processes together: places fit an int32.
_LARGEST_BATCH = 2**31


class _Rows(grain.IterDataset):
  """Some rows of every batch.

  The examples of a run are one sequence, whatever processes share it: row r of
  batch n is example n b + r, and example s comes from lane s mod l. A process
  reads the lanes of its rows alone, as l is a multiple of b.
  """

  def __init__(
    self,
    lane: Callable[[int], grain.IterDataset],
    lanes: int,
    batch_size: int,
    rows: Sequence[int],
  ):
    """Args: the dataset of a lane by its number, l, b, and the rows r."""
    super().__init__()
    self.lane, self.lanes = lane, lanes
    self.batch_size, self.rows = batch_size, rows

  def __iter__(self) -> grain.DatasetIterator:
    return _RowsIterator(self)


class _RowsIterator(grain.DatasetIterator):
  """An iterator of `_Rows`; its state has the lanes by their numbers."""

  def __init__(self, dataset: _Rows):
    super().__init__()
    self._dataset = dataset
    self._turns = dataset.lanes // dataset.batch_size
    self._lanes = {
      number: iter(dataset.lane(number))
      for turn in range(self._turns)
      for number in self._numbers(turn)
    }
    self._batches = 0

  def _numbers(self, batch: int) -> list[int]:
    """The lanes of a batch."""
    first = batch % self._turns * self._dataset.batch_size
    return [first + row for row in self._dataset.rows]

  def __next__(self) -> Batch:
    examples = [next(self._lanes[n]) for n in self._numbers(self._batches)]
    self._batches += 1
    return {k: np.stack([e[k] for e in examples]) for k in examples[0]}

  def get_state(self) -> dict[str, Any]:
    lanes = {str(n): lane.get_state() for n, lane in self._lanes.items()}
    return {'batches': self._batches, 'lanes': lanes}

  def set_state(self, state: dict[str, Any]) -> None:
    self._batches = state['batches']
    for number, lane in self._lanes.items():
      lane.set_state(_tuples(state['lanes'][str(number)]))


class BatchIterator(Iterator[Batch]):
  """An endless iterator whose position can be saved and set.

  The state is a JSON value that belongs to the same data settings; batches
  after `set_state` are bit-identical. `join_states` makes one state of those of
  all processes, which any other number of processes can go on from.
  """

  def __init__(self, dataset: grain.IterDataset, identity: dict[str, Any]):
    """Starts at the first batch.

    Args:
      dataset: Endless batches.
      identity: JSON values that a state must share to be accepted.
    """
    self._iterator = iter(dataset)
    self._identity = identity

  def __next__(self) -> Batch:
    return next(self._iterator)

  def get_state(self) -> dict[str, Any]:
    """Returns the position behind the last batch, as a JSON value."""
    state = {
      'identity': self._identity,
      'position': self._iterator.get_state(),
    }
    return json.loads(json.dumps(state))  # grain's tuples become lists

  def set_state(self, state: dict[str, Any]):
    """Moves to a position that `get_state` or `join_states` returned.

    Raises:
      ValueError: The state comes from other data or settings, or lacks rows
        that this process reads.
    """
    if changed := changes(state['identity'], self._identity):
      raise ValueError(
        f'the data position was saved with other data: {changed}. Restore '
        'them, or start the run anew in another workdir.'
      )
    try:
      self._iterator.set_state(state['position'])
    except KeyError as error:
      raise ValueError(
        f'the data position lacks lane {error}: it is of one process of '
        'several; join the states of all.'
      ) from None

  def close(self):
    """Stops reading ahead; the iterator is of no use then."""
    self._iterator.close()


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
  """Returns what differs between two identities, in words."""
  return '; '.join(
    f'{name} was {before.get(name)} and is {value}'
    for name, value in after.items()
    if before.get(name) != value
  )


def join_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Returns the position of a run from those of its processes.

  Args:
    states: Of `BatchIterator.get_state` in every process, after the same batch.

  Raises:
    ValueError: The processes are not at the same batch, or of different data.
  """
  batches = {state['position']['batches'] for state in states}
  if len(batches) > 1:
    raise ValueError(f'the processes are at different batches: {batches}.')
  for state in states[1:]:
    if changed := changes(states[0]['identity'], state['identity']):
      raise ValueError(
        f'the processes read different data: {changed}. Give all of them the '
        'same documents, tokenizer and settings.'
      )
  lanes = {}
  for state in states:
    lanes |= state['position']['lanes']
  lanes = {n: lanes[n] for n in sorted(lanes, key=int)}
  return states[0] | {'position': states[0]['position'] | {'lanes': lanes}}


def train_iterator(
  config: ml_collections.ConfigDict,
  tokenizer: Tokenizer,
  *,
  corpus: sources.Corpus | None = None,
  background: Background | None = None,
  rows: Sequence[int] | None = None,
) -> BatchIterator:
  """Returns endless shuffled batches of the training data.

  Up to 256 documents, or places of few documents, give a sequence each in turn;
  see `dealing.deal`. A process reads those of its rows. The batches do not
  depend on the number of processes.

  Args:
    config: The run's configuration.
    tokenizer: Encodes the documents; of synthetic tasks, those of text use it.
    corpus: The opened `data.source`. None: opens it.
    background: Of a task of text, the opened `data.task.text`. None: opens it.
    rows: The rows of each batch that this process reads. None: all.

  Raises:
    ValueError: The data or its settings cannot make a batch.
  """
  rows, batch_size = _rows(config, rows), config.data.batch_size
  background = background or generated.background(config)
  if is_synthetic(config):
    source = generated.TaskSource(config, 'train', tokenizer, background)
    examples, lanes = grain.MapDataset.source(source), batch_size

    def lane(number: int) -> grain.IterDataset:
      return examples[number::lanes].to_iter_dataset(_READ)

  else:
    corpus = corpus or sources.open_corpus(config)
    packing, encode = Packing(config), TrainingTokens(corpus, tokenizer)
    sequences, lanes = dealing.deal(
      corpus,
      lambda index: packing.lay_out(encode(index)),
      seed=config.seed,
      batch_size=batch_size,
      length=packing.length,
      align=packing.align,
    )

    def lane(number: int) -> grain.IterDataset:
      return sequences(number).map(packing.rows)

  dataset: grain.IterDataset = _Rows(lane, lanes, batch_size, rows)
  if config.reading.ahead:
    dataset = grain.experimental.ThreadPrefetchIterDataset(
      dataset, prefetch_buffer_size=config.reading.ahead
    )
  identity = run_identity(config, tokenizer, corpus, background)
  return BatchIterator(dataset, identity)


class Heldout(NamedTuple):
  """Held-out batches, and what their targets stand for.

  Attributes:
    batches: of the rows that this process reads.
    text: the bytes that the targets of all rows stand for, in order, as they
      are in the documents (separators stand for none). None: synthetic tasks.
    targets: how many targets all rows have.
  """

  batches: list[Batch]
  text: bytes | None
  targets: int


def heldout_batches(
  config: ml_collections.ConfigDict,
  tokenizer: Tokenizer,
  num_batches: int,
  *,
  corpus: sources.Corpus | None = None,
  background: Background | None = None,
  rows: Sequence[int] | None = None,
) -> Heldout:
  """Returns held-out batches, always the same, and the text of their targets.

  Held-out documents are joined in the order of the hash of their names, as many
  as there are sequences to fill, or all; sequences are cut and taken at even
  distances.

  Args:
    config: The run's configuration.
    tokenizer: Encodes the documents.
    num_batches: Batches wanted. Fewer come, with a warning, where the held-out
      documents do not fill them.
    corpus: The opened `data.source`. None: opens it.
    background: Of a task of text, the opened `data.task.text`. None: opens it.
    rows: The rows of each batch that this process reads. None: all.

  Raises:
    ValueError: The held-out documents do not fill one batch, or the tokenizer
      changes them.
  """
  rows = _rows(config, rows)
  wanted = num_batches * config.data.batch_size
  if is_synthetic(config):
    source = generated.TaskSource(config, 'heldout', tokenizer, background)
    examples = [source[i] for i in range(wanted)]
    whole = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
    text = None
  else:
    corpus = corpus or sources.open_corpus(config)
    packing = Packing(config)
    length = packing.length
    tokens, sizes, joined = heldout_tokens(
      config, corpus, tokenizer, packing, wanted
    )
    available = len(tokens) // length
    if available < config.data.batch_size:
      raise ValueError(
        f'{len(corpus.heldout)} held-out documents hold {available} sequences '
        f'of data.seq_len={config.data.seq_len} tokens and data.batch_size='
        f'{config.data.batch_size} needs as many for one batch; lower either, '
        'or raise data.heldout_fraction.'
      )
    if available < wanted:
      wanted = available - available % config.data.batch_size
      logging.warning(
        'Held-out documents fill %d of the %d batches wanted.',
        wanted // config.data.batch_size,
        num_batches,
      )
    chosen = np.arange(wanted) * available // wanted
    places = (chosen * length)[:, None] + np.arange(length)
    whole = packing.rows({'tokens': tokens[places]})
    ends = np.cumsum(sizes)
    first, last = places[:, packing.length - packing.seq_len], places[:, -1]
    text = b''.join(
      joined[start:end]
      for start, end in zip(
        (ends - sizes)[first].tolist(), ends[last].tolist(), strict=True
      )
    )
    if not text:
      raise ValueError(
        f'the held-out documents of data.source={config.data.source} hold no '
        'text; raise data.heldout_fraction.'
      )
  starts = range(0, wanted, config.data.batch_size)
  batches = [
    {k: v[np.add(start, rows)] for k, v in whole.items()} for start in starts
  ]
  return Heldout(batches, text, int(whole['weights'].sum()))


def eval_batches(
  config: ml_collections.ConfigDict,
  tokenizer: Tokenizer,
  num_batches: int,
  **kwargs: Any,
) -> list[Batch]:
  """Returns the batches of `heldout_batches` alone."""
  return heldout_batches(config, tokenizer, num_batches, **kwargs).batches


def is_synthetic(config: ml_collections.ConfigDict) -> bool:
  """Returns whether the data are generated rather than read."""
  return config.data.source.partition(':')[0] == 'synthetic'


def _rows(
  config: ml_collections.ConfigDict, rows: Sequence[int] | None
) -> Sequence[int]:
  """Returns the rows of a batch that are read, all by default."""
  for field in ('seq_len', 'batch_size'):
    if not config.data[field] >= 1:
      raise ValueError(f'data.{field}={config.data[field]}: give at least 1.')
  tokens = config.data.batch_size * config.data.seq_len
  if not tokens < _LARGEST_BATCH:
    raise ValueError(
      f'data.batch_size={config.data.batch_size} and data.seq_len='
      f'{config.data.seq_len} are {tokens} tokens a step; lower either, to '
      f'less than {_LARGEST_BATCH}.'
    )
  return range(config.data.batch_size) if rows is None else rows


def _tuples(state: Any) -> Any:
  """Turns JSON's lists into the tuples that grain compares with."""
  if isinstance(state, dict):
    return {k: _tuples(v) for k, v in state.items()}
  if isinstance(state, list):
    return tuple(map(_tuples, state))
  return state
