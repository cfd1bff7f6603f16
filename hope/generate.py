"""Text from a trained model: `python -m hope.generate --workdir=... --prompt=...`.

The whole prompt goes through the model in one pass, whose state is carried
into decoding: O(1) work per token for Hope, whatever was read before.
"""

import functools
import json
import pathlib
import sys
from typing import Any

from absl import app
from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of a run.')
_PROMPT = flags.DEFINE_string('prompt', 'def ', 'Text to go on from.')
_TOKENS = flags.DEFINE_integer('tokens', 200, 'Tokens to generate.')
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.8, 'Of the softmax; 0 takes the most likely token.'
)
_TOP_K = flags.DEFINE_integer('top_k', 40, 'Candidates per token; 0: all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the sampling.')


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


def load(workdir: str):
  """Loads (config, tokenizer, graph, params) of a run.

  Raises:
    ValueError: if workdir holds no run or no checkpoint.
  """
  from hope.data import tokenization  # not needed by `generate`
  from hope.training import step as step_lib
  from hope.training.checkpoint import Checkpointer
  from hope.training.workdir import config_fingerprint

  folder = pathlib.Path(workdir).absolute()
  path = folder / 'config.json'
  if not path.is_file():
    raise ValueError(
      f'{folder} holds no run: there is no config.json. Train one with '
      f'python -m hope.main --config=experiments/smoke.py --workdir={workdir}'
    )
  config = ml_collections.FrozenConfigDict(json.loads(path.read_text()))
  tokenizer = tokenization.open_tokenizer(config, str(folder))
  graph, state = step_lib.init_state(config)
  with Checkpointer(
    folder / 'checkpoints',
    keep=config.train.keep,
    config_fingerprint=config_fingerprint(config.to_dict()),
  ) as checkpoints:
    restored = checkpoints.restore_latest(state)
  if restored is None:
    raise ValueError(f'{folder} has no checkpoint yet; let it train on.')
  return config, tokenizer, graph, restored.state.params


def main(argv):
  """Prints the prompt and what follows it."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  try:
    _, tokenizer, graph, params = load(_WORKDIR.value)
    prompt = tokenizer.encode(_PROMPT.value)
    new = generate(
      graph,
      params,
      prompt[None],
      _TOKENS.value,
      temperature=_TEMPERATURE.value,
      top_k=_TOP_K.value,
      seed=_SEED.value,
    )
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  print(tokenizer.decode(np.concatenate([prompt, new[0]])))


if __name__ == '__main__':
  flags.mark_flag_as_required('workdir')
  app.run(main)
