"""Multi-query associative recall (Arora et al., arXiv:2312.04927).

Options: `vocab_size` tokens, `num_pairs` of a key and a value, and `power`,
which places the queries.
"""

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task


def sequence(
  keys: np.ndarray, values: np.ndarray, gaps: np.ndarray, seq_len: int
) -> Example:
  """Writes an example.

  The context is `k1 v1 k2 v2 ...`; key i comes again at offset 2 gaps[i]
  behind the context, where its value is the target. All else is 0.

  Args:
    keys: Distinct keys, [k].
    values: Their values, [k].
    gaps: Distinct places of the queries, below (seq_len - 2k) // 2, [k].
    seq_len: Tokens.
  """
  context = 2 * len(keys)
  inputs = np.zeros(seq_len, np.int32)
  inputs[0:context:2] = keys
  inputs[1:context:2] = values
  queries = context + 2 * np.asarray(gaps)
  inputs[queries] = keys
  targets = np.zeros(seq_len, np.int32)
  targets[queries] = values
  weights = np.zeros(seq_len, np.float32)
  weights[queries] = 1
  return Example(inputs, targets, weights)


def _gap_weights(
  seq_len: int, options: ml_collections.ConfigDict
) -> np.ndarray:
  """(g + 1)^(power - 1) for every gap g, [(seq_len - 2 num_pairs) // 2]."""
  gaps = (seq_len - 2 * options.num_pairs) // 2
  with np.errstate(over='ignore', under='ignore'):
    return np.arange(1, gaps + 1) ** (options.power - 1.0)


def generate(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws `num_pairs` keys below half the vocabulary, values above.

  Gap g is drawn with probability in proportion to (g + 1)^(power - 1), without
  replacement.

  Args:
    rng: What all is drawn from.
    seq_len: Tokens.
    options: `data.task` of the configuration.
  """
  size, pairs = options.vocab_size, options.num_pairs
  keys = rng.choice(np.arange(1, size // 2), pairs, replace=False)
  values = rng.choice(np.arange(size // 2, size), pairs, replace=False)
  p = _gap_weights(seq_len, options)
  places = rng.choice(len(p), pairs, replace=False, p=p / p.sum())
  return sequence(keys, values, places, seq_len)


def _least(options: ml_collections.ConfigDict) -> Least:
  pairs = options.num_pairs
  return Least(vocab_size=2 * pairs + 2, seq_len=4 * pairs)


def _check(seq_len: int, options: ml_collections.ConfigDict):
  """Raises ValueError where fewer gaps can be drawn than there are pairs."""
  weights = _gap_weights(seq_len, options)
  enough = np.count_nonzero(weights) >= options.num_pairs
  if not (np.isfinite(weights.sum()) and enough):
    raise ValueError(
      f'data.task.power={options.power}: too few gaps can be drawn, '
      'or their chances are no numbers; give a number near 0, as 0.01.'
    )


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Looks up the value that followed a key before."""
  first, answers, known = options.vocab_size // 2, np.zeros_like(inputs), {}
  following = [*inputs[1:].tolist(), 0]
  for place, (key, value) in enumerate(
    zip(inputs.tolist(), following, strict=True)
  ):
    answers[place] = known.get(key, 0)
    if value >= first:
      known[key] = value
  return answers


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / (options.vocab_size - options.vocab_size // 2)


TASK = Task(
  generate=generate,
  least=_least,
  solve=_solve,
  chance=_chance,
  check=_check,
)
