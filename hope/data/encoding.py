"""Documents to tokens, and what a tokenizer loses of them.

Choice: it is an error if the tokens of a held-out document do not reproduce it
byte for byte, since bits per byte would be those of another text. A changed
training document does not falsify any result, only what is learned, and may
come up after days of training; it is reported when it is first read.
"""

from absl import logging
import ml_collections
import numpy as np

from hope.data import sources
from hope.data.packing import Packing
from hope.data.tokenization import Tokenizer

# How many of the training documents that a tokenizer changes are named.
_REPORTED = 5


class TrainingTokens:
  """Gives the tokens of a training document, its separator behind it."""

  def __init__(self, corpus: sources.Corpus, tokenizer: Tokenizer):
    self._corpus = corpus
    self._tokenizer = tokenizer
    self._changed: set[int] = set()

  def __call__(self, index: int) -> np.ndarray:
    """Returns them, int32 [n + 1], by the document's index in the corpus."""
    text = self._corpus.source.read(index)
    tokens = encode_document(self._tokenizer, text)
    if len(self._changed) < _REPORTED and index not in self._changed:
      if difference := self._tokenizer.difference(text, tokens[:-1]):
        self._changed.add(index)
        logging.warning(
          'The tokenizer changes the training document %r: %s.',
          self._corpus.source.name(index),
          difference,
        )
        if len(self._changed) == _REPORTED:
          logging.warning('Further training documents are not looked at.')
    return tokens


def encode_document(tokenizer: Tokenizer, text: bytes) -> np.ndarray:
  """Returns a document's tokens and the separator, int32 [n + 1]."""
  separator = np.array([tokenizer.document_separator], np.int32)
  return np.concatenate([tokenizer.encode(text, strict=False), separator])


def heldout_tokens(
  config: ml_collections.ConfigDict,
  corpus: sources.Corpus,
  tokenizer: Tokenizer,
  packing: Packing,
  num_rows: int,
) -> tuple[np.ndarray, np.ndarray, bytes]:
  """Joins held-out documents until there are as many, and rows, or all.

  Returns:
    Their tokens as they are laid out, [n, ...], the bytes that the target of
    each place stands for, [n], and their bytes.

  Raises:
    ValueError: The tokens of a document do not give it back.
  """
  laid, sizes, texts = [], [], []
  total = 0
  for name, text in corpus.documents('heldout'):
    tokens = encode_document(tokenizer, text)
    if difference := tokenizer.difference(text, tokens[:-1]):
      raise ValueError(
        f'data.tokenizer={config.data.tokenizer} changes the held-out document '
        f'{name!r}: {difference}. Bits per byte would be those of another '
        'text; use data.tokenizer=byte or bpe-train:SIZE, or leave the '
        'document out.'
      )
    laid.append(packing.lay_out(tokens))
    sizes.append(np.zeros(len(laid[-1]), int))
    sizes[-1][: len(tokens) - 1] = tokenizer.sizes(text, tokens[:-1])
    texts.append(text)
    total += len(laid[-1])
    if len(laid) >= num_rows and total >= num_rows * packing.length:
      break
  return np.concatenate(laid), np.concatenate(sizes), b''.join(texts)
