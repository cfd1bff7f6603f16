"""Recall through names that are given within the sequence: `aliases`.

First `num_pairs` facts `key value`; then as many statements `= new old`, by
which a new name stands for what an old one, a key or an earlier new name,
stands for; then the queries `? name`, one for each key and each new name in
random order, whose answer is the value. A name is thus followed over several
steps.

Options: `vocab_size` tokens, of which the upper half are values, and
`num_pairs`.
"""

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task

MEANS, ASKS = 1, 2  # tokens of '=' and '?'
_FIRST = 3  # of the names


def sequence(
  keys: np.ndarray,
  values: np.ndarray,
  aliases: list[tuple[int, int]],
  queries: np.ndarray,
  seq_len: int,
) -> Example:
  """Writes an example.

  Args:
    keys: distinct names, [k].
    values: of the keys, [k].
    aliases: (new, old) in order; an old name is a key or an earlier new one.
    queries: names that are asked for, [2 k].
    seq_len: tokens; what is behind the queries is 0.
  """
  means = dict(zip(keys.tolist(), values.tolist(), strict=True))
  tokens = np.stack([keys, values], axis=1).reshape(-1).tolist()
  for new, old in aliases:
    means[new] = means[old]
    tokens += [MEANS, new, old]
  inputs, targets = np.zeros((2, seq_len), np.int32)
  weights = np.zeros(seq_len, np.float32)
  for name in queries.tolist():
    tokens += [ASKS, name]
    targets[len(tokens) - 1] = means[name]
    weights[len(tokens) - 1] = 1
  inputs[: len(tokens)] = tokens
  return Example(inputs, targets, weights)


def generate(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws names, values, aliases and the order of the queries.

  Args:
    rng: what all is drawn from.
    seq_len: tokens.
    options: `data.task` of the configuration.
  """
  size, pairs = options.vocab_size, options.num_pairs
  names = rng.choice(np.arange(_FIRST, size // 2), 2 * pairs, replace=False)
  values = rng.choice(np.arange(size // 2, size), pairs, replace=False)
  keys, news = np.split(names, 2)
  aliases = [
    (int(new), int(names[rng.integers(pairs + j)]))
    for j, new in enumerate(news)
  ]
  return sequence(keys, values, aliases, rng.permutation(names), seq_len)


def _least(options: ml_collections.ConfigDict) -> Least:
  pairs = options.num_pairs
  return Least(vocab_size=4 * pairs + 2 * _FIRST, seq_len=9 * pairs)


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Carries out one statement after the other."""
  del options
  tokens, answers = inputs.tolist(), np.zeros_like(inputs)
  means, place = {}, 0
  while place < len(tokens) and tokens[place]:
    following = (tokens[place + 1 :] + [0, 0])[:2]
    if tokens[place] == MEANS:
      means[following[0]] = means.get(following[1], 0)
      place += 3
    elif tokens[place] == ASKS:
      if place + 1 < len(tokens):
        answers[place + 1] = means.get(following[0], 0)
      place += 2
    else:
      means[tokens[place]] = following[0]
      place += 2
  return answers


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / (options.vocab_size - options.vocab_size // 2)


TASK = Task(generate=generate, least=_least, solve=_solve, chance=_chance)
