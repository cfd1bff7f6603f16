"""Opening the data of a run: all that a training loop needs."""

from collections.abc import Iterator, Sequence
import functools
from typing import Any

import ml_collections

from hope.data import generated
from hope.data.identity import run_identity
from hope.data.pipeline import (
  Batch,
  BatchIterator,
  Heldout,
  heldout_batches,
  is_synthetic,
  train_iterator,
)
from hope.data.sources import open_corpus
from hope.data.tokenization import open_tokenizer


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
    self._background = generated.background(config)
    self._options = {
      'corpus': self._corpus,
      'background': self._background,
      'rows': rows,
    }

  @functools.cached_property
  def identity(self) -> dict[str, Any]:
    """What two starts must share to be the same run; see `run_identity`.

    It is in every position of `train_iterator`.
    """
    return run_identity(
      self._config, self.tokenizer, self._corpus, self._background
    )

  def documents(self, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields name and text of the documents of 'train' or 'heldout'."""
    return iter(()) if self._corpus is None else self._corpus.documents(split)

  def train_iterator(self) -> BatchIterator:
    """Returns a new iterator at the first training batch."""
    return train_iterator(self._config, self.tokenizer, **self._options)

  def eval_batches(self) -> list[Batch]:
    """Returns `evals.batches` held-out batches, the same in each call."""
    return self._heldout.batches

  def longer_batches(self) -> dict[str, list[Batch]]:
    """Returns batches of each bin of `evals.longer`, as '51-100'."""
    return {name: heldout.batches for name, heldout in self._longer.items()}

  @property
  def metric(self) -> str | None:
    """What the task is scored by, of `hope.tasks.METRICS`; None: texts."""
    return generated.metric(self._config)

  @property
  def heldout_text(self) -> bytes | None:
    """The bytes that the targets of `eval_batches` stand for, of all processes.

    As they are in the documents: what the model is scored on, and what a
    baseline has to be scored on. None for synthetic tasks.
    """
    return self._heldout.text

  @property
  def bytes_per_token(self) -> float | None:
    """Bytes of `heldout_text` per target; None for synthetic tasks.

    Bits per byte are nats per token / ln 2 / bytes_per_token.
    """
    if self.heldout_text is None:
      return None
    return len(self.heldout_text) / self._heldout.targets

  @functools.cached_property
  def _heldout(self) -> Heldout:
    return self._heldout_of(self._config)

  @functools.cached_property
  def _longer(self) -> dict[str, Heldout]:
    bins = generated.longer(self._config)
    return {name: self._heldout_of(config) for name, config in bins}

  def _heldout_of(self, config: ml_collections.ConfigDict) -> Heldout:
    batches = config.evals.batches
    return heldout_batches(config, self.tokenizer, batches, **self._options)


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
