"""Baselines for a language model, in bits per byte of the held-out bytes.

Two numbers that need no accelerator and no choice of hyperparameters: a count
model of contexts of two bytes, which sees the training bytes, and `xz -9`,
which does not. A model that has learned anything of the text beyond its
spelling is well below the first.
"""

from collections.abc import Iterable, Iterator
import lzma

import numpy as np

from hope.data import Data

# Training bytes that are counted for the order-2 baseline of a run: a few
# seconds, while the other processes wait.
_COUNTED = 1 << 28
# Bytes counted at once. It bounds the memory that counting takes beside the
# tables, which take 256 MiB.
_BATCH = 1 << 23


class Order2Model:
  """Next-byte probabilities from counts, with Witten-Bell interpolation.

  With n(h c) the times that byte c followed context h in training, N(h) their
  sum over c and T(h) the number of different bytes that followed h,

    p(c | h) = (n(h c) + T(h) p(c | h')) / (N(h) + T(h)),

  where h' is h without its first byte and p(c | h') = 1/256 below the empty
  context. A context that was never seen leaves p(c | h'). The weights follow
  from the training counts; nothing is fitted to the held-out bytes. (Witten
  and Bell, 1991, method C.)
  """

  def __init__(self, train: Iterable[bytes]):
    """Counts the training documents.

    Args:
      train: documents. No context crosses from one to the next.

    Raises:
      ValueError: if the documents hold no byte.
    """
    singles = np.zeros(1 << 8, np.int64)
    pairs = np.zeros(1 << 16, np.int64)
    triples = np.zeros(1 << 24, np.int64)
    for text, ends in _batches(train):
      singles += np.bincount(text, minlength=singles.size)
      pairs += _ngram_counts(text, ends, 2)
      triples += _ngram_counts(text, ends, 3)
    if not singles.any():
      raise ValueError('train holds no bytes; give at least one document.')

    order0 = _interpolate(singles, *_followers(singles, 1), 1 / 256)
    total, kinds = _followers(pairs, 1 << 8)
    order1 = _interpolate(
      pairs.reshape(-1, 256), total[:, None], kinds[:, None], order0
    )
    self._order0 = order0
    self._order1 = order1.reshape(-1)
    self._triples = triples
    self._total, self._kinds = _followers(triples, 1 << 16)

  def probabilities(self, text: bytes) -> np.ndarray:
    """The probability of each byte of a text, given the two before it.

    Args:
      text: one document: its first byte has no context, its second one byte.

    Returns:
      [len(text)], float64.
    """
    symbols = np.frombuffer(text, np.uint8)
    pairs, triples = _ngrams(symbols, 2), _ngrams(symbols, 3)
    contexts = triples >> 8
    order2 = _interpolate(
      self._triples[triples],
      self._total[contexts],
      self._kinds[contexts],
      self._order1[triples & 0xFFFF],
    )
    return np.concatenate(
      [self._order0[symbols[:1]], self._order1[pairs[:1]], order2]
    )


def order2_bits_per_byte(train: Iterable[bytes], heldout: bytes) -> float:
  """Bits per held-out byte of an `Order2Model` of the training documents.

  The model is not updated on the held-out bytes.

  Args:
    train: training documents.
    heldout: held-out bytes, taken as one document.

  Returns:
    Mean of -log2 p over the held-out bytes.

  Raises:
    ValueError: if `heldout` or all of `train` is empty.
  """
  _check_heldout(heldout)
  model = Order2Model(train)
  bits = 0.0
  # Pieces bound the memory; each brings the two bytes before it as context.
  for start in range(0, len(heldout), _BATCH):
    before = min(start, 2)
    piece = model.probabilities(heldout[start - before : start + _BATCH])
    bits -= np.log2(piece[before:]).sum()
  return float(bits / len(heldout))


def xz_bits_per_byte(heldout: bytes) -> float:
  """Bits per held-out byte of the output of `xz -9`.

  The held-out bytes are compressed alone: xz sees no training data and learns
  within the bytes that it compresses, so the number falls with their amount.
  It counts the whole .xz file, which for no data would be 32 bytes.

  Args:
    heldout: held-out bytes: the held-out documents, one after another.

  Returns:
    8 * (bytes of the .xz file) / (held-out bytes).

  Raises:
    ValueError: if `heldout` is empty.
  """
  _check_heldout(heldout)
  return 8 * len(lzma.compress(heldout, preset=9)) / len(heldout)


def of_data(data: Data) -> dict[str, float]:
  """Bits per byte of both on the held-out bytes of a run, by name.

  Choice: the model counts the first 256 MiB of the training documents.

  Args:
    data: of the run.

  Returns:
    {'order-2 counts': ..., 'xz -9': ...}; empty for synthetic tasks.
  """
  text = data.heldout_text
  if text is None:
    return {}
  train = (content for _, content in data.documents('train'))
  return {
    'order-2 counts': order2_bits_per_byte(_first(train, _COUNTED), text),
    'xz -9': xz_bits_per_byte(text),
  }


def _first(documents: Iterable[bytes], size: int) -> Iterator[bytes]:
  """Documents, until they hold so many bytes."""
  for document in documents:
    yield document
    size -= len(document)
    if size <= 0:
      return


def _check_heldout(heldout: bytes):
  if not heldout:
    raise ValueError(
      'heldout is empty, so it has no bits per byte; raise '
      'data.heldout_fraction or give more documents.'
    )


def _batches(
  documents: Iterable[bytes],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Documents joined to _BATCH bytes or more, and where each one ends."""
  batch, size = [], 0
  for document in documents:
    batch.append(document)
    size += len(document)
    if size >= _BATCH:
      yield _join(batch)
      batch, size = [], 0
  yield _join(batch)


def _join(batch: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
  text = np.frombuffer(b''.join(batch), np.uint8)
  return text, np.cumsum([len(document) for document in batch], dtype=np.int64)


def _ngrams(symbols: np.ndarray, n: int) -> np.ndarray:
  """The n-grams of a text as big-endian numbers, [max(0, len - n + 1)]."""
  count = max(0, len(symbols) - n + 1)
  codes = np.zeros(count, np.int64)
  for i in range(n):
    codes = codes << 8 | symbols[i : i + count]
  return codes


def _ngram_counts(text: np.ndarray, ends: np.ndarray, n: int) -> np.ndarray:
  """Counts of the n-grams that lie within one document, [256 ** n]."""
  codes = _ngrams(text, n)
  inside = np.ones(len(codes), bool)
  for back in range(1, n):
    crossing = ends - back
    inside[crossing[(crossing >= 0) & (crossing < len(codes))]] = False
  return np.bincount(codes[inside], minlength=256**n)


def _followers(
  counts: np.ndarray, contexts: int
) -> tuple[np.ndarray, np.ndarray]:
  """N and T of each context, [contexts] each."""
  table = counts.reshape(contexts, 256)
  return table.sum(axis=-1), np.count_nonzero(table, axis=-1)


def _interpolate(hits, total, kinds, lower) -> np.ndarray:
  """(n + T p(c | h')) / (N + T), and p(c | h') where N + T is 0."""
  weight = total + kinds
  return np.where(
    weight > 0, (hits + kinds * lower) / np.maximum(weight, 1), lower
  )
