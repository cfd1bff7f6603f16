"""How likely a model holds texts: multiple choice, and words to be guessed.

A request asks for the log-probability of a continuation after a context, and
whether greedy decoding would write it. Rows of a batch are padded at their
ends, which changes nothing: no token sees a later one.

`Choice:` tokens are those of the context and the continuation as one text, of
which the context's own number of tokens is not counted; white space at the end
of the context is counted with the continuation (as in lm-evaluation-harness).
`Choice:` an empty context is the separator of documents, which stands before
the first token of a document in training.
"""

from collections.abc import Iterable, Iterator, Sequence
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from hope import fast_state
from hope.data.tokenization import Tokenizer
from hope.evaluation.language_model import LanguageModel
from hope.sampling import PIECE
from hope.tasks import ChoiceExample, Request


class Likelihood(NamedTuple):
  """What a model says of a continuation.

  Attributes:
    log_probability: sum over its tokens, nats.
    greedy: whether each token is the most likely one.
  """

  log_probability: float
  greedy: bool


class _Row(NamedTuple):
  """A request in tokens.

  Attributes:
    tokens: int32 [t], of context and continuation.
    begin: place of the first token of the continuation, at least 1.
  """

  tokens: np.ndarray
  begin: int


def encode(tokenizer: Tokenizer, request: Request) -> tuple[np.ndarray, int]:
  """(tokens int32 [t], the first of them that is of the continuation).

  Raises:
    ValueError: for a continuation of no token, or a tokenizer without the
      separator that an empty context needs.
  """
  context = request.context.rstrip()
  text = request.context + request.continuation
  tokens = tokenizer.encode(text)
  begin = len(tokenizer.encode(context))
  if begin == 0:
    separator = tokenizer.document_separator
    if separator is None:
      raise ValueError(
        'A context is empty, and the tokenizer has no separator of documents '
        'to read in its place; give a context.'
      )
    tokens, begin = np.concatenate([[separator], tokens]).astype(np.int32), 1
  if begin >= len(tokens):
    raise ValueError(
      f'The continuation {request.continuation!r} has no token of its own '
      f'after {context[-20:]!r}; give a longer one.'
    )
  return tokens, begin


def log_likelihoods(
  model: LanguageModel, requests: Sequence[Request], batch: int = 8
) -> list[Likelihood]:
  """Answers requests, in their order; see the module.

  Rows of similar lengths are read together. A context that several rows share
  for a piece or more (`hope.sampling.PIECE` tokens) is read once.

  Args:
    model: that is asked.
    requests: any number.
    batch: rows that are read at once.

  Raises:
    ValueError: as `encode`.
  """
  rows = [_Row(*encode(model.tokenizer, x)) for x in requests]
  found: list[Likelihood | None] = [None] * len(rows)
  for group in _groups(rows, batch):
    chosen = [rows[i] for i in group]
    for i, likelihood in zip(group, _score(model, chosen, batch), strict=True):
      found[i] = likelihood
  return [x for x in found if x is not None]


def _groups(rows: Sequence[_Row], batch: int) -> Iterator[list[int]]:
  """Indices of rows that are read at once, at most `batch` of them.

  Rows that share a piece of context come together, by themselves.
  """
  shared: dict[bytes, list[int]] = {}
  for i, row in enumerate(rows):
    first = row.tokens[:PIECE].tobytes() if row.begin >= PIECE else b''
    shared.setdefault(first, []).append(i)
  alone = shared.pop(b'', [])
  for group in shared.values():
    if len(group) == 1:
      alone += group
    else:
      yield from _cut(group, batch)
  alone.sort(key=lambda i: (len(rows[i].tokens) - 1) // PIECE)
  yield from _cut(alone, batch)


def _cut(group: list[int], batch: int) -> Iterator[list[int]]:
  """Parts of at most `batch`."""
  for start in range(0, len(group), batch):
    yield group[start : start + batch]


def _common(rows: Sequence[_Row]) -> int:
  """Whole pieces that all rows share, all of them context."""
  most = min(row.begin for row in rows) // PIECE * PIECE
  first = rows[0].tokens[:most]
  same = np.all([row.tokens[:most] == first for row in rows], axis=0)
  return (most if same.all() else int(np.argmin(same))) // PIECE


def _score(
  model: LanguageModel, rows: Sequence[_Row], batch: int
) -> list[Likelihood]:
  """Reads rows at once."""
  graph, params, _ = model
  common = _common(rows) * PIECE
  if common and len(rows) > 1:
    state = fast_state.begin(graph, params, 1)
    context = rows[0].tokens[None, :common]
    state = fast_state.read(graph, params, context, state)
    # A power of two, so that few programs are compiled.
    height = 1 << (len(rows) - 1).bit_length()
    state = fast_state.of_rows(state, np.zeros(height, np.int32))
    read = common
  else:
    # A single row is not worth the reading of a whole batch.
    read, height = 0, 1 if len(rows) == 1 else batch
    state = fast_state.begin(graph, params, height)
  length = -(-max(len(row.tokens) for row in rows) // PIECE) * PIECE
  tokens = np.zeros((height, length), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row.tokens)] = row.tokens
  # The logits before a piece score its first token.
  begin = min(row.begin for row in rows) // PIECE * PIECE
  state = fast_state.read(graph, params, tokens[:, read:begin], state)
  scores, _ = fast_state.score(graph, params, tokens[:, begin:], state)
  found = []
  for i, row in enumerate(rows):
    counted = slice(row.begin - begin, len(row.tokens) - begin)
    losses = scores.losses[i, counted].astype(np.float64)
    greedy = bool(scores.correct[i, counted].all())
    found.append(Likelihood(-float(losses.sum()), greedy))
  return found


# -------------------------------------------------------------------- examples


def answers(
  model: LanguageModel, examples: Sequence[ChoiceExample], batch: int = 8
) -> list[dict[str, Any]]:
  """Scores of examples, by name.

  Of several requests: accuracy, 1 where the right one is the most likely;
  accuracy_norm, the same of log-probabilities by character of the continuation,
  and accuracy_bytes, by byte of it. The space that parts it from the context
  is not counted, and the first of equals is taken: as acc, acc_norm and
  acc_bytes of lm-evaluation-harness. 'chosen' is the continuation that accuracy
  is of, and 'answer' the right one. Of one request: accuracy, 1 where greedy
  decoding writes it, and log_likelihood, in nats.

  Args:
    model: that is asked.
    examples: any number.
    batch: rows that are read at once.

  Raises:
    ValueError: as `encode`.
  """
  requests = [x for example in examples for x in example.requests]
  likelihoods = iter(log_likelihoods(model, requests, batch))
  return [
    _answer(example, [next(likelihoods) for _ in example.requests])
    for example in examples
  ]


def _answer(
  example: ChoiceExample, likelihoods: Sequence[Likelihood]
) -> dict[str, Any]:
  """Scores of an example."""
  if len(likelihoods) == 1:
    (only,) = likelihoods
    return {
      'accuracy': float(only.greedy),
      'log_likelihood': only.log_probability,
    }
  sums = np.array([x.log_probability for x in likelihoods])
  texts = [x.continuation.removeprefix(' ') for x in example.requests]
  sizes = {
    'accuracy': np.ones(len(texts)),
    'accuracy_norm': np.array([len(x) for x in texts]),
    'accuracy_bytes': np.array([len(x.encode()) for x in texts]),
  }
  scores = {
    name: float(np.argmax(sums / np.maximum(size, 1)) == example.answer)
    for name, size in sizes.items()
  }
  chosen = example.requests[int(np.argmax(sums))].continuation
  answer = example.requests[example.answer].continuation
  return {**scores, 'chosen': chosen, 'answer': answer}


def perplexity(log_likelihoods: Iterable[float]) -> float:
  """exp of the mean negative log-likelihood of the examples.

  By example and not by token, as in lm-evaluation-harness' LAMBADA; inf where
  it is larger than a float.

  Args:
    log_likelihoods: nats.
  """
  return exponential(-float(np.mean(list(log_likelihoods))))


def exponential(value: float) -> float:
  """e to the power of a value; inf where it is larger than a float."""
  return math.exp(value) if value < math.log(sys.float_info.max) else math.inf
