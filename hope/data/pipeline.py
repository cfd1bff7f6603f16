"""Batches: documents -> tokens -> packed sequences -> batches, with grain.

A batch is a dict of NumPy arrays, b rows (this process's share of
`data.batch_size`) by t = `data.seq_len` tokens:

  inputs   int32 [b, t]
  targets  int32 [b, t]    the next token, or the answer of a synthetic task
  weights  float32 [b, t]  0 where there is no target
"""

from collections.abc import Iterator, Sequence
import json
from typing import Any

from absl import flags, logging
import grain
import ml_collections
import numpy as np

from hope.data import sources, synthetic
from hope.data.tokenization import Tokenizer

Batch = dict[str, np.ndarray]

# Documents of a process that are read in turn, one sequence of each. Without
# this, all rows of a batch would be pieces of one document.
_OPEN_DOCUMENTS = 64
# Without grain's threads: reading and encoding are too cheap to hand over.
_READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class BatchIterator(Iterator[Batch]):
  """An endless iterator whose position can be saved and set.

  The state is a JSON value that belongs to the process that gave it and to the
  same data settings; batches after `set_state` are bit-identical.
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
    """Moves to a position that `get_state` returned.

    Raises:
      ValueError: The state comes from other data, settings or processes.
    """
    theirs = state['identity']
    changed = [
      f'{name} was {theirs.get(name)} and is {value}'
      for name, value in self._identity.items()
      if theirs.get(name) != value
    ]
    if changed:
      raise ValueError(
        f'the data position was saved in another setting: {"; ".join(changed)}.'
        ' Restore the setting, or start the data anew without a position.'
      )
    self._iterator.set_state(_tuples(state['position']))

  def close(self):
    """Stops the processes that read ahead; the iterator is of no use then."""
    self._iterator.close()
    # Grain's finalizer fails noisily if it is left to the interpreter's end.
    del self._iterator


def train_iterator(
  config: ml_collections.ConfigDict,
  tokenizer: Tokenizer,
  *,
  corpus: sources.Corpus | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> BatchIterator:
  """Returns endless shuffled batches of the training data.

  Documents are shuffled anew in each epoch and dealt out to the processes; a
  process keeps up to 64 documents open and takes a sequence of each in turn.

  Args:
    config: The run's configuration.
    tokenizer: Encodes the documents; synthetic tasks do not use it.
    corpus: The opened `data.source`. None: opens it.
    process_index: This process.
    process_count: Processes that share each batch.

  Raises:
    ValueError: The data or its settings cannot make a batch.
  """
  rows = _rows(config, process_count)
  shard = slice(process_index, None, process_count)
  identity = config.data.to_dict() | {
    'seed': config.seed,
    'vocab_size': tokenizer.vocab_size,
    'process': [process_index, process_count],
  }
  # Where the data lie may change between two starts of a run.
  del identity['tfds_dir']
  if is_synthetic(config):
    source = synthetic.SyntheticSource(config, 'train')
    dataset = grain.MapDataset.source(source)[shard].to_iter_dataset(_READ)
    dataset = dataset.batch(rows, drop_remainder=True)
  else:
    corpus = corpus or sources.open_corpus(config)
    identity['documents'] = corpus.source.fingerprint()
    tokens = grain.MapDataset.source(_TrainingTokens(corpus, tokenizer))
    tokens = tokens.shuffle(seed=config.seed).repeat()[shard]
    num_open = max(1, min(_OPEN_DOCUMENTS, len(corpus.train) // process_count))
    dataset = grain.experimental.ZipIterDataset(
      [
        grain.experimental.ConcatThenSplitIterDataset(
          tokens[i::num_open].to_iter_dataset(_READ),
          length_struct={'tokens': config.data.seq_len + 1},
        )
        for i in range(num_open)
      ]
    ).map(_stack)
    dataset = grain.experimental.RebatchIterDataset(dataset, rows)
    dataset = dataset.map(next_token_batch)
  return BatchIterator(_read_ahead(dataset, config.data.workers), identity)


def heldout_batches(
  config: ml_collections.ConfigDict,
  tokenizer: Tokenizer,
  num_batches: int,
  *,
  corpus: sources.Corpus | None = None,
  process_index: int = 0,
  process_count: int = 1,
) -> tuple[list[Batch], float | None]:
  """Returns held-out batches, always the same, and bytes per token.

  Held-out documents are joined in the order of the hash of their names, as many
  as there are sequences to fill, or all; sequences are cut and taken at even
  distances.

  Args:
    config: The run's configuration.
    tokenizer: Encodes the documents.
    num_batches: Batches wanted. Fewer come, with a warning, where the held-out
      documents do not fill them.
    corpus: The opened `data.source`. None: opens it.
    process_index: This process, which gets its rows of each batch.
    process_count: Processes that share each batch.

  Returns:
    The batches, and the bytes that a token of these documents stands for, with
    separators counted as tokens (bits per byte are nats / ln 2 / bytes per
    token); None for synthetic tasks.

  Raises:
    ValueError: The held-out documents do not fill one batch.
  """
  rows = _rows(config, process_count)
  wanted = num_batches * config.data.batch_size
  if is_synthetic(config):
    source = synthetic.SyntheticSource(config, 'heldout')
    examples = [source[i] for i in range(wanted)]
    whole = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
    bytes_per_token = None
  else:
    corpus = corpus or sources.open_corpus(config)
    length = config.data.seq_len + 1
    tokens, bytes_per_token = _heldout_tokens(
      corpus, tokenizer, wanted, wanted * length
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
    sequences = tokens[: available * length].reshape(available, length)
    whole = next_token_batch({'tokens': sequences[chosen]})
  first = process_index * rows
  starts = range(first, wanted, config.data.batch_size)
  batches = [{k: v[s : s + rows] for k, v in whole.items()} for s in starts]
  return batches, bytes_per_token


def eval_batches(
  config: ml_collections.ConfigDict,
  tokenizer: Tokenizer,
  num_batches: int,
  **kwargs: Any,
) -> list[Batch]:
  """Returns the batches of `heldout_batches` alone."""
  return heldout_batches(config, tokenizer, num_batches, **kwargs)[0]


def is_synthetic(config: ml_collections.ConfigDict) -> bool:
  """Returns whether the data are generated rather than read."""
  return config.data.source.partition(':')[0] == 'synthetic'


def next_token_batch(packed: dict[str, np.ndarray]) -> Batch:
  """Splits sequences {'tokens': [b, t + 1]} into inputs and targets."""
  tokens = packed['tokens']
  return {
    'inputs': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'weights': np.ones(tokens[:, 1:].shape, np.float32),
  }


class _TrainingTokens:
  """The training documents' tokens, each with its separator behind it."""

  def __init__(self, corpus: sources.Corpus, tokenizer: Tokenizer):
    self._corpus = corpus
    self._tokenizer = tokenizer

  def __len__(self) -> int:
    return len(self._corpus.train)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    text = self._corpus.source.read(int(self._corpus.train[index]))
    return {'tokens': encode_document(self._tokenizer, text)}


def encode_document(tokenizer: Tokenizer, text: bytes) -> np.ndarray:
  """Returns a document's tokens and the separator, int32 [n + 1]."""
  separator = np.array([tokenizer.document_separator], np.int32)
  return np.concatenate([tokenizer.encode(text), separator])


def _heldout_tokens(
  corpus: sources.Corpus,
  tokenizer: Tokenizer,
  num_documents: int,
  num_tokens: int,
) -> tuple[np.ndarray, float]:
  """Joins held-out documents until there are enough of both, or all.

  Returns:
    Their tokens, [n], and the mean bytes per token.
  """
  parts, total_bytes, total_tokens = [], 0, 0
  for _, text in corpus.documents('heldout'):
    parts.append(encode_document(tokenizer, text))
    total_bytes += len(text)
    total_tokens += len(parts[-1])
    if len(parts) >= num_documents and total_tokens >= num_tokens:
      break
  return np.concatenate(parts), total_bytes / total_tokens


def _rows(config: ml_collections.ConfigDict, process_count: int) -> int:
  """Returns the rows of a batch that one process holds."""
  for field in ('seq_len', 'batch_size'):
    if config.data[field] < 1:
      raise ValueError(f'data.{field}={config.data[field]}: give at least 1.')
  rows, rest = divmod(config.data.batch_size, process_count)
  if rest:
    below, above = rows * process_count, (rows + 1) * process_count
    raise ValueError(
      f'data.batch_size={config.data.batch_size} does not divide over '
      f'{process_count} processes; try '
      f'{f"{below} or " if below else ""}{above}.'
    )
  return rows


def _stack(sequences: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {'tokens': np.stack([s['tokens'] for s in sequences])}


def _read_ahead(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
  """Moves the dataset into `workers` processes; 0 leaves it here."""
  if workers < 0:
    raise ValueError(f'data.workers={workers}: give 0 or more.')
  if not workers:
    return dataset
  # Grain reads absl flags, which fails outside absl.app.run.
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


def _tuples(state: Any) -> Any:
  """Turns JSON's lists into the tuples that grain compares with."""
  if isinstance(state, dict):
    return {k: _tuples(v) for k, v in state.items()}
  if isinstance(state, list):
    return tuple(map(_tuples, state))
  return state
