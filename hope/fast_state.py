"""Reading a text: tokens are predicted, and update the fast state.

Tokens are read in pieces of PIECE tokens, the rest of the text token by token.
So a few compiled programs serve texts of every length, in constant memory.
Shapes: b streams, t tokens, v tokens of the vocabulary.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope.sampling import PIECE, Draw, decode, fresh, prefill


class FastState(NamedTuple):
  """What a model keeps of the tokens it has read; reading returns a new one.

  Attributes:
    memories: fast weights and other states of the blocks, a pytree whose leaves
      are stacked over layers.
    logits: float32 [b, v], of the token that comes next.
  """

  memories: Any
  logits: jax.Array


class Scores(NamedTuple):
  """How well tokens were predicted, each from all before it.

  Attributes:
    losses: float32 [b, t], nats.
    correct: bool [b, t], whether the token was the most likely one.
  """

  losses: np.ndarray
  correct: np.ndarray


def begin(graph: nnx.GraphDef, params: Any, batch: int) -> FastState:
  """The state before the first token; its logits mean nothing."""
  logits, memories = fresh(graph, params, batch)
  return FastState(memories, logits)


def copied(state: FastState) -> FastState:
  """The same state in arrays of its own, which a program may overwrite."""
  return jax.tree.map(jnp.copy, state)


def of_rows(state: FastState, rows: np.ndarray) -> FastState:
  """The state of some of its streams, in arrays of its own.

  Args:
    state: of b streams at the same position.
    rows: int [n], indices of streams; one may come more than once.
  """

  def take(x: jax.Array) -> jax.Array:
    # Positions, [layers], are those of all streams.
    return jnp.copy(x) if x.ndim == 1 else jnp.take(x, rows, axis=1)

  return FastState(
    jax.tree.map(take, state.memories), jnp.take(state.logits, rows, axis=0)
  )


def read(
  graph: nnx.GraphDef, params: Any, tokens: np.ndarray, state: FastState
) -> FastState:
  """The state after more tokens.

  Args:
    graph: structure of the model.
    params: its parameters.
    tokens: int32 [b, t].
    state: before them; its arrays are donated.
  """
  nothing = Draw(jax.random.key(0), np.float32(0), np.int32(0))
  for piece, count in _pieces(tokens):
    if count == PIECE:
      logits, memories = prefill(graph, params, piece, state.memories)
    else:
      _, logits, memories = decode(
        graph,
        params,
        state.logits,
        state.memories,
        piece,
        given=count,
        count=count,
        draw=nothing,
      )
    state = FastState(memories, logits)
  return state


def predict(
  graph: nnx.GraphDef, params: Any, tokens: np.ndarray, state: FastState
) -> tuple[jax.Array, FastState]:
  """Reads tokens [b, t]; returns (logits float32 [b, t, v], the state).

  Row i is the prediction of token i + 1. Arguments are those of `read`.
  """

  def keep(logits, before, piece):
    return logits

  found, state = _stream(graph, params, tokens, state, keep)
  return jnp.concatenate(found, axis=1), state


def score(
  graph: nnx.GraphDef, params: Any, tokens: np.ndarray, state: FastState
) -> tuple[Scores, FastState]:
  """Reads tokens [b, t]; returns (how well each was predicted, the state).

  The state's logits predict the first one. Arguments are those of `read`.
  """

  def to_host(logits, before, piece):
    return jax.device_get(_scores(logits, before, piece))

  found, state = _stream(graph, params, tokens, state, to_host)
  losses = np.concatenate([losses for losses, _ in found], axis=1)
  correct = np.concatenate([correct for _, correct in found], axis=1)
  return Scores(losses, correct), state


def _stream(
  graph: nnx.GraphDef,
  params: Any,
  tokens: np.ndarray,
  state: FastState,
  use: Callable[[jax.Array, jax.Array, np.ndarray], Any],
) -> tuple[list[Any], FastState]:
  """Reads tokens; returns (the results of `use` for each piece, the state).

  Args:
    graph: structure of the model.
    params: its parameters.
    tokens: int32 [b, t].
    state: before them; its arrays are donated.
    use: given the logits after each token of a piece [b, n, v], those before
      its first token [b, v] and its tokens [b, n].
  """
  found = []
  for piece, count in _pieces(tokens):
    before = state.logits
    if count == PIECE:
      logits, memories = _whole(graph, params, piece, state.memories)
    else:
      logits, memories = _each(graph, params, piece, count, state)
    logits = logits[:, :count]
    found.append(use(logits, before, piece[:, :count]))
    state = FastState(memories, logits[:, -1])
  return found, state


def _pieces(tokens: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
  """Pieces int32 [b, PIECE], and how many of their tokens count."""
  for begin in range(0, tokens.shape[1], PIECE):
    piece = tokens[:, begin : begin + PIECE]
    count = piece.shape[1]
    yield np.pad(piece, ((0, 0), (0, PIECE - count))), count


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _whole(
  graph: nnx.GraphDef, params: Any, tokens: jax.Array, memories: Any
) -> tuple[jax.Array, Any]:
  """(logits [b, t, v], memories) after the tokens of a whole piece."""
  return nnx.merge(graph, params)(tokens, memories)


@functools.partial(jax.jit, static_argnums=0)
def _each(
  graph: nnx.GraphDef,
  params: Any,
  tokens: jax.Array,
  count: jax.Array | int,
  state: FastState,
) -> tuple[jax.Array, Any]:
  """`_whole` of the first `count` tokens, one by one; the others' logits are 0.

  Takes tokens [b, t]; returns (logits [b, t, v], memories).
  """
  model = nnx.merge(graph, params)
  shape = (*tokens.shape, state.logits.shape[-1])

  def take(place, carry):
    found, memories = carry
    token = jax.lax.dynamic_slice_in_dim(tokens, place, 1, axis=1)
    logits, memories = model(token, memories)
    found = jax.lax.dynamic_update_slice_in_dim(found, logits, place, axis=1)
    return found, memories

  found = jnp.zeros(shape, state.logits.dtype)
  return jax.lax.fori_loop(0, count, take, (found, state.memories))


@jax.jit
def _scores(
  logits: jax.Array, before: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(losses, correct) of tokens [b, n]; see `_stream` for the arguments."""
  predictions = jnp.concatenate([before[:, None], logits[:, :-1]], axis=1)
  losses = optax.softmax_cross_entropy_with_integer_labels(predictions, tokens)
  return losses, jnp.argmax(predictions, axis=-1) == tokens
