"""In-context recall and noisy recall (MAD, arXiv:2403.17844).

A sequence is pairs `key value`. The value of a key is drawn at its first use
and is the same from then on; the last pair has a key that has come before. In
`noisy_recall`, noise takes the place of pairs, with probability `noise`.

Training predicts every next token. What is held out is scored where the key has
come before, on its value, by class-macro accuracy.

Options: `vocab_size` tokens, of which the lower half are keys and the upper
half values; of noisy_recall the last 16 are noise, and `noise` is its share. A
sequence of `seq_len` tokens predicts one less, as MAD's: the last place of a
row, or two of an odd `seq_len`, are 0 and count nothing.

Deviation: MAD's generator fails where noise has replaced all pairs; here the
example is drawn again.
"""

import functools

import ml_collections
import numpy as np

from hope.tasks.task import Example, Least, Task

# Tokens that noise is drawn from.
NOISE = 16


def shifted(tokens: list[int], asked: list[bool] | None, size: int) -> Example:
  """An example that predicts each next token.

  Args:
    tokens: of the sequence, at most `size` + 1.
    asked: of each token, whether it counts as an answer. None: all but the
      first.
    size: places of the example; those behind the tokens are 0.
  """
  inputs, targets = np.zeros((2, size), np.int32)
  weights = np.zeros(size, np.float32)
  length = len(tokens) - 1
  inputs[:length] = tokens[:-1]
  counts = np.ones(length, bool) if asked is None else np.array(asked[1:])
  targets[:length] = np.where(counts, tokens[1:], 0)
  weights[:length] = counts
  return Example(inputs, targets, weights)


def _pairs(
  rng: np.random.Generator, slots: int, names: int, noise: float
) -> tuple[list[tuple[int, int]], list[bool]] | None:
  """Draws pairs, in the order of MAD's generator.

  Args:
    rng: what all is drawn from.
    slots: pairs, the last of which asks for a key.
    names: keys and values.
    noise: the probability that another pair is two tokens of noise.

  Returns:
    (pairs, whether the key of each has come before); None if no key has come.
  """
  keys = names // 2
  values: dict[int, int] = {}
  pairs, again = [], []
  spared = rng.integers(slots)  # never noise
  for slot in range(slots - 1):
    if noise > 0 and slot != spared and rng.random() < noise:
      first, second = rng.integers(NOISE, size=2) + names
      pairs.append((int(first), int(second)))
      again.append(False)
      continue
    key = int(rng.integers(keys))
    again.append(key in values)
    if key not in values:
      values[key] = keys + int(rng.integers(names - keys))
    pairs.append((key, values[key]))
  if not values:
    return None
  key = list(values)[rng.integers(len(values))]
  return [*pairs, (key, values[key])], [*again, True]


def _generate(
  noisy: bool,
  heldout: bool,
  rng: np.random.Generator,
  seq_len: int,
  options: ml_collections.ConfigDict,
) -> Example:
  noise = options.noise if noisy else 0
  names = options.vocab_size - NOISE * noisy
  while (drawn := _pairs(rng, seq_len // 2, names, noise)) is None:
    pass
  pairs, again = drawn
  tokens = [token for pair in pairs for token in pair]
  asked = [x for came in again for x in (False, came)] if heldout else None
  return shifted(tokens, asked, seq_len)


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Looks up what followed each token where it stood at an even place before.

  Noise and keys are different tokens.
  """
  del options
  answers, known = np.zeros_like(inputs), {}
  for place in range(0, len(inputs) - 1, 2):
    key, value = inputs[place : place + 2].tolist()
    answers[place] = known.get(key, 0)
    known[key] = value
  return answers


def _chance(noisy: bool, options: ml_collections.ConfigDict) -> float:
  names = options.vocab_size - NOISE * noisy
  return 1 / (names - names // 2)


def _least(noisy: bool, options: ml_collections.ConfigDict) -> Least:
  del options
  return Least(vocab_size=2 + NOISE * noisy, seq_len=4)


def _task(noisy: bool) -> Task:
  return Task(
    generate=functools.partial(_generate, noisy, False),
    heldout=functools.partial(_generate, noisy, True),
    least=functools.partial(_least, noisy),
    solve=_solve,
    chance=functools.partial(_chance, noisy),
    metric='class_accuracy',
    size=None,
  )


TASKS = {'in_context_recall': _task(False), 'noisy_recall': _task(True)}
