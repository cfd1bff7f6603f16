"""Drawing tokens from a model: one pass over the prompt, then one by one."""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from hope.data.tokenization import Tokenizer


def sample(
  logits: jax.Array, key: jax.Array, temperature: float, top_k: int
) -> jax.Array:
  """Draws a token from logits [b, v]; returns int32 [b]."""
  if temperature == 0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  if 0 < top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.random.categorical(key, logits / temperature).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def prefill(graph: nnx.GraphDef, params: Any, prompt: jax.Array):
  """Reads prompts int32 [b, t]; returns (logits of the next token, state)."""
  logits, state = nnx.merge(graph, params)(prompt)
  return logits[:, -1], state


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def decode(
  graph, params, logits, state, key, tokens: int, temperature: float, top_k: int
):
  """Draws `tokens` tokens, one by one.

  Returns:
    (tokens int32 [b, tokens], logits [b, v] of the one after, state).
  """
  model = nnx.merge(graph, params)

  def step(carry, key):
    logits, state = carry
    token = sample(logits, key, temperature, top_k)
    logits, state = model(token[:, None], state)
    return (logits[:, -1], state), token

  (logits, state), drawn = jax.lax.scan(
    step, (logits, state), jax.random.split(key, tokens)
  )
  return drawn.T, logits, state


def generate(
  graph: nnx.GraphDef,
  params: Any,
  prompt: np.ndarray,
  tokens: int,
  *,
  temperature: float = 0.8,
  top_k: int = 40,
  seed: int = 0,
) -> np.ndarray:
  """Continues prompts.

  Args:
    graph: structure of the model.
    params: its parameters.
    prompt: int32 [b, t], t >= 1.
    tokens: how many to draw.
    temperature: of the softmax; 0 takes the most likely token.
    top_k: number of candidates; 0: all.
    seed: the same seed gives the same text.

  Returns:
    int32 [b, tokens].

  Raises:
    ValueError: for an empty prompt or settings out of range.
  """
  if prompt.shape[1] == 0:
    raise ValueError('The prompt is empty; give at least one token.')
  if tokens < 1 or temperature < 0 or top_k < 0:
    raise ValueError(
      f'tokens={tokens}, temperature={temperature}, top_k={top_k}: tokens must '
      'be at least 1, the others must not be negative.'
    )
  logits, state = prefill(graph, params, prompt)
  drawn, _, _ = decode(
    graph,
    params,
    logits,
    state,
    jax.random.key(seed),
    tokens,
    temperature,
    top_k,
  )
  return np.asarray(drawn)


def continue_text(
  tokenizer: Tokenizer,
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
