"""Drawing tokens from a model.

A prompt is read in pieces of PIECE tokens. What remains of it is read token by
token, by the program that also draws tokens. So two compiled programs serve
prompts and texts of every length, and short prompts need only one.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hope.fields import SEED, Field, declared, field

if TYPE_CHECKING:  # slow to import, and configurations do not need it
  from hope.data.tokenization import Tokenizer

# Tokens of a prompt that are read at once; `decode` takes no more in a call.
PIECE = 256
# A lower temperature counts as 0: logits divided by it overflow.
_COLDEST = float(jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class SampleOptions:
  """The text that is drawn at the end of a run."""

  prompt: str = field(
    'def ',
    'Start of the text that is drawn at the end of a run.',
    maximum=2**17,
  )
  tokens: int = field(
    200,
    'Length of the text, without its prompt.',
    unit='tokens',
    minimum=1,
    maximum=2**20,
  )
  temperature: float = field(
    0.8, 'Temperature of the softmax; 0 takes the most likely token.', minimum=0
  )
  top_k: int = field(
    40, 'Most likely tokens that one is drawn from; 0: all.', minimum=0
  )


def check_options(
  prompt: str = '', *, tokens: int, temperature: float, top_k: int, seed: int
) -> None:
  """Raises ValueError for options of `continue_text` that are out of range."""
  fields = declared(SampleOptions)
  fields['prompt'].check('prompt', prompt)
  fields['tokens'].check('tokens', tokens)
  fields['temperature'].check('temperature', temperature)
  fields['top_k'].check('top_k', top_k)
  Field(0, '', **SEED).check('seed', seed)


def check_tokens(what: str, tokens: np.ndarray, params: Any) -> None:
  """Raises ValueError if tokens [b, t] are outside a model's vocabulary."""
  vocab_size = params['embed']['embedding'].shape[0]
  outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
  if outside.size:
    raise ValueError(
      f'{what} has the token {outside[0]}, which is outside the vocabulary of '
      f'{vocab_size}; give tokens from 0 to {vocab_size - 1}.'
    )


def sample(
  logits: jax.Array,
  key: jax.Array,
  temperature: jax.Array | np.float32 | float,
  top_k: jax.Array | np.int32 | int,
) -> jax.Array:
  """Draws a token from logits [b, v]; returns int32 [b].

  Temperature and top_k are traced: other values need no compilation.

  Args:
    logits: [b, v].
    key: [], of jax.random.
    temperature: finite, not negative; 0, or less than float32 can divide by,
      takes the most likely token.
    top_k: number of candidates, ties with the last of them included; 0: all.
  """
  v = logits.shape[-1]
  last = jnp.where(top_k > 0, jnp.minimum(top_k, v), v) - 1
  least = jnp.take(jnp.sort(logits, descending=True), last, axis=-1)
  # The largest logit is 0 at any temperature; others may overflow to -inf.
  scaled = logits - logits.max(axis=-1, keepdims=True)
  scaled /= jnp.maximum(temperature, _COLDEST)
  scaled = jnp.where(logits < least[..., None], -jnp.inf, scaled)
  drawn = jax.random.categorical(key, scaled)
  greedy = jnp.argmax(logits, axis=-1)
  return jnp.where(temperature < _COLDEST, greedy, drawn).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def prefill(
  graph: nnx.GraphDef, params: Any, prompt: jax.Array, state: Any = None
) -> tuple[jax.Array, Any]:
  """Reads a prompt, int32 [b, t], in one piece.

  Args:
    graph: structure of the model.
    params: its parameters.
    prompt: int32 [b, t].
    state: before it, whose arrays are donated; None: the sequence starts here.

  Returns:
    (logits [b, v] of the next token, state).
  """
  logits, state = nnx.merge(graph, params)(prompt, state, last_only=True)
  return logits[:, -1], state


class Draw(NamedTuple):
  """How tokens are drawn; see `sample`.

  Attributes:
    key: [], of jax.random; draw i of a text uses `fold_in(key, i)`.
    temperature: of the softmax; 0 takes the most likely token.
    top_k: number of candidates; 0: all.
  """

  key: jax.Array
  temperature: jax.Array | np.float32 | float
  top_k: jax.Array | np.int32 | int


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def decode(
  graph: nnx.GraphDef,
  params: Any,
  logits: jax.Array,
  state: Any,
  tokens: jax.Array,
  *,
  given: jax.Array | int,
  count: jax.Array | int,
  draw: Draw,
) -> tuple[jax.Array, jax.Array, Any]:
  """Feeds tokens one by one to the model: given ones, then drawn ones.

  Args:
    graph: structure of the model.
    params: its parameters.
    logits: [b, v], of the first token.
    state: before it.
    tokens: int32 [b, t], of which the first `given` count.
    given: number of tokens that are given; -n where earlier calls drew n.
    count: number of tokens that are fed in all, at most t.
    draw: how the others are drawn; the same at every call of a text.

  Returns:
    (tokens int32 [b, t] with the drawn ones filled in, logits [b, v] of the
    token after them, state).
  """
  model = nnx.merge(graph, params)

  def take(place, carry):
    logits, state, tokens = carry
    key = jax.random.fold_in(draw.key, place - given)
    drawn = sample(logits, key, draw.temperature, draw.top_k)
    token = jnp.where(place < given, tokens[:, place], drawn)
    logits, state = model(token[:, None], state)
    return logits[:, -1], state, tokens.at[:, place].set(token)

  logits, state, tokens = jax.lax.fori_loop(
    0, count, take, (logits, state, tokens)
  )
  return tokens, logits, state


@functools.partial(jax.jit, static_argnums=(0, 2))
def fresh(graph: nnx.GraphDef, params: Any, batch: int) -> tuple[Any, Any]:
  """Returns (zeros [batch, v] in place of logits, the initial state)."""
  model = nnx.merge(graph, params)
  state = model.init_state(batch)
  token = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
  logits, _ = jax.eval_shape(model, token, state)
  return jnp.zeros(logits.shape[::2], logits.dtype), state


def generate(
  graph: nnx.GraphDef,
  params: Any,
  prompt: np.ndarray,
  tokens: int,
  *,
  temperature: float = 0.8,
  top_k: int = 40,
  seed: int = 0,
  before: tuple[jax.Array, Any] | None = None,
) -> np.ndarray:
  """Continues prompts.

  Args:
    graph: structure of the model.
    params: its parameters.
    prompt: int32 [b, t], t >= 1, or t >= 0 with `before`.
    tokens: how many to draw.
    temperature: of the softmax; 0 takes the most likely token.
    top_k: number of candidates; 0: all.
    seed: the same seed gives the same text.
    before: (logits [b, v], state) that the prompt goes on from, whose arrays
      are donated; None: the prompt starts the sequence.

  Returns:
    int32 [b, tokens].

  Raises:
    ValueError: for an empty prompt, a token outside the vocabulary, or options
      out of range.
  """
  check_options(tokens=tokens, temperature=temperature, top_k=top_k, seed=seed)
  if prompt.shape[1] == 0 and before is None:
    raise ValueError('The prompt is empty; give at least one token.')
  check_tokens('The prompt', prompt, params)
  batch, length = prompt.shape
  logits, state = before or fresh(graph, params, batch)
  whole = length - length % PIECE
  for start in range(0, whole, PIECE):
    piece = prompt[:, start : start + PIECE]
    logits, state = prefill(graph, params, piece, state)
  taken = np.zeros((batch, length - whole + tokens), np.int32)
  given = length - whole
  taken[:, :given] = prompt[:, whole:]
  draw = Draw(jax.random.key(seed), np.float32(temperature), np.int32(top_k))
  for start in range(0, taken.shape[1], PIECE):
    piece = taken[:, start : start + PIECE]
    done, logits, state = decode(
      graph,
      params,
      logits,
      state,
      np.pad(piece, ((0, 0), (0, PIECE - piece.shape[1]))),
      given=given - start,
      count=piece.shape[1],
      draw=draw,
    )
    piece[:] = np.asarray(done)[:, : piece.shape[1]]
  return taken[:, given:]


def continue_text(
  tokenizer: 'Tokenizer',
  graph: nnx.GraphDef,
  params: Any,
  prompt: str,
  tokens: int,
  **options: Any,
) -> str:
  """The prompt and what follows it; options are those of `generate`."""
  start = tokenizer.encode(prompt)
  new = generate(graph, params, start[None], tokens, **options)
  return tokenizer.decode(np.concatenate([start, new[0]]))
