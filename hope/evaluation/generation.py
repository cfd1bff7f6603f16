"""What a model writes after a prompt, greedily.

A prompt is read as it comes, in pieces of PIECE tokens, so that a prompt of any
length takes constant memory with mixers that are recurrent. Prompts of equally
many whole pieces are read side by side; the rest of each is fed token by token,
like the tokens that are drawn.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hope import fast_state
from hope.data.streaming import tokens_in_pieces
from hope.data.tokenization import Tokenizer
from hope.evaluation.language_model import LanguageModel
from hope.fast_state import FastState
from hope.sampling import PIECE
from hope.tasks import TextExample

# Tokens that are fed one by one before it is looked whether outputs have ended.
BLOCK = 32


class Ending(NamedTuple):
  """Where an output ends.

  `Choice:` the separator of documents ends it too.

  Attributes:
    tokens: most tokens.
    stop: strings of which the first ends the output, and is not part of it.
  """

  tokens: int
  stop: tuple[str, ...]


class Keeper(NamedTuple):
  """Keeps the reading of a prompt, so that a killed reading goes on.

  Attributes:
    load: () -> (state, pieces that it has read) of the prompts that are read
      now; None: nothing is kept of them.
    save: (state, pieces) -> None; called after every piece.
  """

  load: Callable[[], tuple[FastState, int] | None]
  save: Callable[[FastState, int], None]


def whole_pieces(tokenizer: Tokenizer, example: TextExample) -> int:
  """Pieces of PIECE tokens that a prompt fills.

  Raises:
    ValueError: if it has no token.
  """
  pieces = tokens_in_pieces(tokenizer, example.pieces(), PIECE)
  count = sum(map(len, pieces))
  if not count:
    raise ValueError('A prompt is empty; give one of at least one letter.')
  return count // PIECE


def side_by_side(
  tokenizer: Tokenizer, examples: Sequence[TextExample], batch: int
) -> Iterator[list[int]]:
  """Indices of examples whose prompts have equally many whole pieces.

  Args:
    tokenizer: of the model.
    examples: any number.
    batch: the most that are read at once.
  """
  lengths: dict[int, list[int]] = {}
  for i, example in enumerate(examples):
    lengths.setdefault(whole_pieces(tokenizer, example), []).append(i)
  for _, group in sorted(lengths.items()):
    for start in range(0, len(group), batch):
      yield group[start : start + batch]


def write(
  model: LanguageModel,
  examples: Sequence[TextExample],
  ending: Ending,
  batch: int = 8,
  keeper: Keeper | None = None,
) -> list[str]:
  """Outputs after the prompts of examples, of equally many whole pieces.

  Args:
    model: that writes.
    examples: at most `batch`, as `side_by_side` gives them.
    ending: of the outputs.
    batch: rows that are computed, whatever the number of examples is: so one
      compiled program serves all. A single example is computed alone.
    keeper: keeps the reading. None: it is not kept.
  """
  height = 1 if len(examples) == 1 else batch
  state, rests = _read(model, examples, height, keeper)
  given = np.array([len(x) for x in rests], np.int32)
  tokens = np.zeros((height, int(given.max()) + ending.tokens), np.int32)
  for i, rest in enumerate(rests):
    tokens[i, : len(rest)] = rest
  for start in range(0, tokens.shape[1], BLOCK):
    block = tokens[:, start : start + BLOCK]
    padded = np.pad(block, ((0, 0), (0, BLOCK - block.shape[1])))
    done, state = _feed(
      model.graph, model.params, padded, state, given - start, block.shape[1]
    )
    block[:] = np.asarray(done)[:, : block.shape[1]]
    end = start + block.shape[1]
    texts = [
      _text(model.tokenizer, tokens[i, given[i] : end], ending)
      for i in range(len(examples))
    ]
    if all(ended for _, ended in texts):
      break
  return [text for text, _ in texts]


def _read(
  model: LanguageModel,
  examples: Sequence[TextExample],
  height: int,
  keeper: Keeper | None,
) -> tuple[FastState, list[np.ndarray]]:
  """(the state after the whole pieces, what is left of each row).

  Rows beyond the examples read the first one as well.
  """
  graph, params, tokenizer = model
  streams = [
    tokens_in_pieces(tokenizer, example.pieces(), PIECE) for example in examples
  ]
  kept = keeper.load() if keeper else None
  state, read = kept or (fast_state.begin(graph, params, height), 0)
  for number, pieces in enumerate(zip(*streams, strict=True), start=1):
    rows = [*pieces, *[pieces[0]] * (height - len(pieces))]
    if len(pieces[0]) < PIECE:
      return state, rows
    if number > read:
      state = fast_state.read(graph, params, np.stack(rows), state)
      if keeper:
        keeper.save(state, number)
  raise AssertionError('a stream of tokens ends in less than a piece')


def _text(
  tokenizer: Tokenizer, tokens: np.ndarray, ending: Ending
) -> tuple[str, bool]:
  """(the output, whether it has ended) of what was written so far, [n]."""
  ended = len(tokens) >= ending.tokens
  tokens = tokens[: ending.tokens]
  separators = np.flatnonzero(tokens == tokenizer.document_separator)
  if separators.size:
    tokens, ended = tokens[: separators[0]], True
  text = tokenizer.decode(tokens)
  places = [place for x in ending.stop if (place := text.find(x)) >= 0]
  return (text[: min(places)], True) if places else (text, ended)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _feed(
  graph: nnx.GraphDef,
  params: Any,
  tokens: jax.Array,
  state: FastState,
  given: jax.Array,
  count: jax.Array | int,
) -> tuple[jax.Array, FastState]:
  """Feeds tokens [b, n] one by one: of each row given ones, then likely ones.

  Args:
    graph: structure of the model.
    params: its parameters.
    tokens: int32 [b, n].
    state: before them.
    given: int32 [b], tokens of each row that are given; 0 or less: none.
    count: tokens that are fed.

  Returns:
    (tokens with the most likely ones filled in, the state after them).
  """
  model = nnx.merge(graph, params)

  def take(place, carry):
    tokens, state = carry
    likely = jnp.argmax(state.logits, axis=-1).astype(jnp.int32)
    token = jnp.where(place < given, tokens[:, place], likely)
    logits, memories = model(token[:, None], state.memories)
    return tokens.at[:, place].set(token), FastState(memories, logits[:, -1])

  return jax.lax.fori_loop(0, count, take, (tokens, state))
