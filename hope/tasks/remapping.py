"""A mapping that is drawn anew within the sequence: `remapping`.

The sequence is pairs `x f(x)`, of keys x drawn uniformly from `num_pairs`. The
mapping f, one to one, is drawn anew every 60 tokens, and nothing marks that.
The answer f(x) counts where x has come before since then: what was learned of
it earlier is wrong. The first two keys are equal, so that an answer counts.

Options: `vocab_size` tokens, of which the upper half are values, and
`num_pairs` keys.
"""

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task

# Tokens between two drawings: not a multiple of chunks, at whose start what a
# memory has learned takes effect.
SPAN = 60


def sequence(
  keys: np.ndarray, mappings: list[dict[int, int]], seq_len: int
) -> Example:
  """Writes an example.

  Args:
    keys: of each pair, [seq_len // 2].
    mappings: from key to value, for each span of 60 tokens.
    seq_len: tokens; of an odd number the last is 0.
  """
  inputs, targets = np.zeros((2, seq_len), np.int32)
  weights, seen = np.zeros(seq_len, np.float32), set()
  for place, key in zip(range(0, seq_len - 1, 2), keys.tolist(), strict=True):
    if place % SPAN == 0:
      seen = set()
    value = mappings[place // SPAN][key]
    inputs[place : place + 2] = key, value
    if key in seen:
      targets[place], weights[place] = value, 1
    seen.add(key)
  return Example(inputs, targets, weights)


def generate(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws keys and mappings.

  Args:
    rng: what all is drawn from.
    seq_len: tokens.
    options: `data.task` of the configuration.
  """
  size, pairs = options.vocab_size, options.num_pairs
  values, mappings = np.arange(size // 2, size), []
  for _ in range(-(-seq_len // SPAN)):
    chosen = rng.choice(values, pairs, replace=False).tolist()
    mappings.append(dict(enumerate(chosen, 1)))
  keys = rng.integers(1, pairs + 1, seq_len // 2)
  keys[1] = keys[0]
  return sequence(keys, mappings, seq_len)


def _least(options: ml_collections.ConfigDict) -> Least:
  return Least(vocab_size=2 * options.num_pairs + 2, seq_len=4)


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Looks up the value that followed a key within the span."""
  del options
  answers, known = np.zeros_like(inputs), {}
  for place in range(0, len(inputs) - 1, 2):
    if place % SPAN == 0:
      known = {}
    key, value = inputs[place : place + 2].tolist()
    answers[place] = known.get(key, 0)
    known[key] = value
  return answers


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / (options.vocab_size - options.vocab_size // 2)


TASK = Task(generate=generate, least=_least, solve=_solve, chance=_chance)
