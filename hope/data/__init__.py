"""Data of a run: `open_data` gives a training loop all that it needs."""

from collections.abc import Sequence
import functools

import ml_collections

from hope.data.pipeline import (
  Batch,
  BatchIterator,
  eval_batches,
  heldout_batches,
  is_synthetic,
  join_states,
  train_iterator,
)
from hope.data.sources import documents, open_corpus
from hope.data.tokenization import Tokenizer, open_tokenizer

__all__ = [
  'Batch',
  'BatchIterator',
  'Data',
  'Tokenizer',
  'documents',
  'eval_batches',
  'heldout_batches',
  'is_synthetic',
  'join_states',
  'open_data',
  'open_tokenizer',
  'train_iterator',
]


class Data:
  """The tokenizer, the training batches and the held-out batches of a run.

  Attributes:
    tokenizer: Encodes the documents and the prompt.
    vocab_size: Tokens of the tokenizer.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: str | None = None,
    rows: Sequence[int] | None = None,
  ):
    """Opens the source once; see `open_data`."""
    self._corpus = None if is_synthetic(config) else open_corpus(config)
    self.tokenizer = open_tokenizer(config, workdir, self._corpus)
    self.vocab_size = self.tokenizer.vocab_size
    self._config = config
    self._options = {'corpus': self._corpus, 'rows': rows}

  def train_iterator(self) -> BatchIterator:
    """Returns a new iterator at the first training batch."""
    return train_iterator(self._config, self.tokenizer, **self._options)

  def eval_batches(self) -> list[Batch]:
    """Returns `train.eval_batches` held-out batches, the same in each call."""
    return self._heldout[0]

  @property
  def bytes_per_token(self) -> float | None:
    """Bytes of held-out text per token; None for synthetic tasks.

    Bits per byte are nats per token / ln 2 / bytes_per_token.
    """
    return self._heldout[1]

  @functools.cached_property
  def _heldout(self) -> tuple[list[Batch], float | None]:
    return heldout_batches(
      self._config,
      self.tokenizer,
      self._config.train.eval_batches,
      **self._options,
    )


def open_data(
  config: ml_collections.ConfigDict,
  workdir: str | None = None,
  rows: Sequence[int] | None = None,
) -> Data:
  """Opens the data of a run.

  Args:
    config: The run's configuration.
    workdir: Folder of the run, which keeps a trained tokenizer. None: keeps
      nothing.
    rows: The rows of every batch that this process reads, as
      `hope.parallel.mesh.rows` says. None: all.

  Raises:
    ValueError: The source, the tokenizer or a setting is wrong or missing.
  """
  return Data(config, workdir, rows)
