"""Random sequences of few symbols.

Few symbols repeat the same keys over and over, which strains the stability of a
memory. Options: `vocab_size` tokens, `num_pairs` of which occur in a sequence.
"""

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task


def generate(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws a sequence of `num_pairs` distinct symbols, each place uniformly.

  Every next token is a target.

  Args:
    rng: What all is drawn from.
    seq_len: Tokens.
    options: `data.task` of the configuration.
  """
  alphabet = rng.choice(options.vocab_size, options.num_pairs, replace=False)
  tokens = rng.choice(alphabet, seq_len + 1).astype(np.int32)
  return Example(tokens[:-1], tokens[1:], np.ones(seq_len, np.float32))


def _least(options: ml_collections.ConfigDict) -> Least:
  return Least(vocab_size=options.num_pairs, seq_len=1)


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / options.vocab_size


TASK = Task(generate=generate, least=_least, solve=None, chance=_chance)
