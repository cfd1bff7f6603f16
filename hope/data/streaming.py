"""Tokens of a text that comes in pieces, and never is in memory as a whole."""

from collections.abc import Iterable, Iterator

import numpy as np

from hope.data.tokenization import Tokenizer

# Letters that are encoded at once.
_LETTERS = 2**14


def tokens_in_pieces(
  tokenizer: Tokenizer, texts: Iterable[str], size: int
) -> Iterator[np.ndarray]:
  """Yields the tokens of a text, int32 [size] each; the last has fewer, or 0.

  They are the tokens of the text as a whole: it is cut where `Tokenizer.cut`
  allows it. A tokenizer that allows no cut gets the whole text at once.

  Args:
    tokenizer: that encodes.
    texts: whose strings, joined, are the text.
    size: tokens of a piece.

  Raises:
    ValueError: as `Tokenizer.encode`.
  """
  kept = np.zeros(0, np.int32)
  for part in parts(tokenizer, texts):
    kept = np.concatenate([kept, tokenizer.encode(part)])
    whole = len(kept) - len(kept) % size
    for start in range(0, whole, size):
      yield kept[start : start + size]
    kept = kept[whole:]
  yield kept


def parts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
  """Yields the text in parts that may be encoded apart; see the module."""
  waiting: list[str] = []
  letters, enough = 0, _LETTERS
  for text in texts:
    waiting.append(text)
    letters += len(text)
    if letters < enough:
      continue
    joined = ''.join(waiting)
    place = tokenizer.cut(joined)
    if place:
      yield joined[:place]
    waiting, letters = [joined[place:]], len(joined) - place
    # Where nothing could be cut, the next try sees twice as much.
    enough = max(_LETTERS, 2 * letters)
  yield ''.join(waiting)
