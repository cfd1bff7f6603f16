"""How well a model predicts a text of any length, by how much it has read.

Each token is predicted from all before it. A bin of contexts holds the tokens
before which 2^i to 2^(i+1) - 1 tokens were read, as Figure 10 of
arXiv:2512.24695 shows a model's use of its context. Memory does not grow with
the text, with mixers that are recurrent.
"""

from collections.abc import Iterable, Iterator
import math
from typing import NamedTuple

import numpy as np

from hope import fast_state
from hope.data import streaming
from hope.data.tokenization import Tokenizer
from hope.evaluation.language_model import LanguageModel, check_reads_text
from hope.evaluation.likelihood import exponential
from hope.sampling import PIECE


class Part(NamedTuple):
  """Some tokens of a text.

  Attributes:
    tokens: how many.
    bytes: that they stand for.
    loss: nats per token, mean.
    accuracy: share of the tokens that were the most likely ones.
  """

  tokens: int
  bytes: int
  loss: float
  accuracy: float

  def to_dict(self) -> dict[str, float]:
    """Metrics by name, with bits_per_byte and the perplexity per token."""
    return {
      'loss': self.loss,
      'perplexity': exponential(self.loss),
      'accuracy': self.accuracy,
      'bits_per_byte': self.loss * self.tokens / math.log(2) / self.bytes,
      'tokens': self.tokens,
    }


class Rolling(NamedTuple):
  """A text's measures.

  Attributes:
    whole: of all tokens but the first, before which nothing is.
    by_context: of the tokens of each bin, by the fewest tokens before them: 1,
      2, 4, ...
  """

  whole: Part
  by_context: dict[int, Part]


def _pieces(
  tokenizer: Tokenizer, texts: Iterable[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (tokens, bytes of each), [PIECE] or, at the end, fewer."""
  tokens, sizes = np.zeros(0, np.int32), np.zeros(0, np.int64)
  for text in streaming.parts(tokenizer, texts):
    new = tokenizer.encode(text)
    tokens = np.concatenate([tokens, new])
    sizes = np.concatenate([sizes, tokenizer.sizes(text.encode(), new)])
    while len(tokens) >= PIECE:
      yield tokens[:PIECE], sizes[:PIECE]
      tokens, sizes = tokens[PIECE:], sizes[PIECE:]
  if len(tokens):
    yield tokens, sizes


def evaluate(model: LanguageModel, texts: Iterable[str]) -> Rolling:
  """Reads a text and measures its predictions.

  Args:
    model: that predicts.
    texts: whose strings, joined, are the text.

  Raises:
    ValueError: for a text of less than two tokens, or a model of numbers.
  """
  graph, params, tokenizer = model
  check_reads_text(tokenizer)
  # Of each bin: tokens, bytes, nats, tokens that were the most likely ones.
  sums = np.zeros((64, 4))
  state, read = fast_state.begin(graph, params, 1), 0
  for tokens, sizes in _pieces(tokenizer, texts):
    scores, state = fast_state.score(graph, params, tokens[None], state)
    # The first token, before which nothing is, is in no bin.
    first = 1 if read == 0 else 0
    places = read + np.arange(first, len(tokens))
    bins = np.frexp(places)[1] - 1
    losses = scores.losses[0, first:].astype(np.float64)
    correct = scores.correct[0, first:]
    rows = np.stack([np.ones(len(places)), sizes[first:], losses, correct], -1)
    np.add.at(sums, bins, rows)
    read += len(tokens)
  if not sums[:, 0].any():
    raise ValueError(
      'The text has no token to predict; give more of it than its first token.'
    )
  by_context = {
    2**i: _part(row) for i, row in enumerate(sums) if row[0] and row[1]
  }
  return Rolling(_part(sums.sum(axis=0)), by_context)


def _part(sums: np.ndarray) -> Part:
  """Means, from sums [4]."""
  tokens, size, nats, correct = sums
  return Part(
    tokens=int(tokens),
    bytes=int(size),
    loss=float(nats / tokens),
    accuracy=float(correct / tokens),
  )
