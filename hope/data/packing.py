"""How documents become the rows of a batch.

Without `data.segments`, documents and their separators are one stream, rows are
cut from it, and states cross from a document to the next within a row.

With `data.segments` every fast state is reset where a document starts, which
must be where a block of the memories starts (`hope.memory.stream`). A document
is therefore laid out as

  inputs   separator, its tokens, padding
  targets  its tokens, separator, padding

up to a multiple of `alignment`, and rows are cut from the joined documents. So
each token and each document's end is a target once. Padding consists of
separators of weight 0; the reset after them wipes what they write. If the end
of a row cuts a document, the document goes on in the next row, whose states are
fresh like those of all rows.
"""

import ml_collections
import numpy as np

from hope import blocks
from hope.memory import stream

# Columns of a document that is laid out.
_INPUT, _TARGET, _WEIGHT, _START = range(4)


def alignment(config: ml_collections.ConfigDict) -> int:
  """Tokens at whose multiples documents start in a row with `data.segments`.

  Args:
    config: of a run.

  Raises:
    ValueError: `data.seq_len` is not such a multiple.
  """
  align = stream.alignment(blocks.chunks(config))
  length = config.data.seq_len
  if length % align:
    raise ValueError(
      f'data.segments=True starts documents at multiples of {align} tokens, '
      f'where the blocks of all memories start; data.seq_len={length} is none: '
      f'try data.seq_len={-(-length // align) * align}, other chunk sizes, or '
      'data.segments=False.'
    )
  return align


class Packing:
  """Documents as they are joined, and rows as they are cut from that.

  Attributes:
    seq_len: tokens of a row.
    length: places of a row in what is joined; those beyond `seq_len` come
      first and are not targets.
    align: of `alignment`; 1 without `data.segments`.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    """Raises ValueError if `data.segments` does not fit the model."""
    self.segments, self.seq_len = config.data.segments, config.data.seq_len
    self.align = alignment(config) if self.segments else 1
    self.length = self.seq_len + (not self.segments)

  def lay_out(self, tokens: np.ndarray) -> np.ndarray:
    """What a document adds to the stream that rows are cut from.

    Args:
      tokens: int32 [n + 1], the last of them the separator.

    Returns:
      The same, or with `data.segments` int32 [m, 4], m a multiple of `align`.
    """
    if not self.segments:
      return tokens
    size = -(-len(tokens) // self.align) * self.align
    laid = np.zeros((size, 4), np.int32)
    laid[:, (_INPUT, _TARGET)] = tokens[-1]
    laid[1 : len(tokens), _INPUT] = tokens[:-1]
    laid[: len(tokens), _TARGET] = tokens
    laid[: len(tokens), _WEIGHT] = 1
    laid[0, _START] = 1
    return laid

  def rows(self, packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch of rows that were cut, {'tokens': [..., length, ...]}."""
    tokens = packed['tokens']
    if not self.segments:
      return {
        'inputs': tokens[..., :-1],
        'targets': tokens[..., 1:],
        'weights': np.ones(tokens[..., 1:].shape, np.float32),
      }
    return {
      'inputs': tokens[..., _INPUT],
      'targets': tokens[..., _TARGET],
      'weights': tokens[..., _WEIGHT].astype(np.float32),
      'starts': tokens[..., _START] > 0,
    }
