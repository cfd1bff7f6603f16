"""Fuzzy recall: keys and values of several tokens (MAD, arXiv:2403.17844).

A sequence is keys and values of 1 to 3 distinct tokens each, its end asks for
the value of a key, the probe, and its start is padding. The value of a key is
the same throughout a sequence. The probe is put into the body at a random
place, if it has not come by chance.

Training predicts every next token, of the padding too. What is held out has
keys of 3 tokens, and is scored on the values of keys that have come before, by
class-macro accuracy.

Options: `vocab_size` tokens, of which the last is the padding, and of the
others the lower half are of keys and the upper half of values.

Deviation: in some sequences of MAD (2 to 3% of those held out, of 128 tokens)
the probe's place lies behind the body, so that nothing tells its value; what is
held out is then drawn again. Training keeps such sequences, as MAD's.
"""

from collections.abc import Callable
import functools

import ml_collections
import numpy as np

from hope.tasks.recall import shifted
from hope.tasks.task import Example, Least, Task

# Most tokens of a key, and of a value.
LONGEST = 3

Motif = tuple[int, ...]
# (rng, 'key' or 'value', tokens of it) -> distinct tokens in a random order.
Draw = Callable[[np.random.Generator, str, int], Motif]


def _parts(vocab_size: int) -> dict[str, np.ndarray]:
  """The tokens of keys and of values."""
  names = vocab_size - 1
  return {
    'key': np.arange(names // 2),
    'value': np.arange(names // 2, names),
  }


def sequence(
  rng: np.random.Generator, draw: Draw, seq_len: int, heldout: bool
) -> tuple[list[int], list[bool], bool]:
  """Draws a sequence, in the order of MAD's generator.

  Args:
    rng: what sizes and the place of the probe are drawn from.
    draw: draws a key or a value.
    seq_len: tokens, one more of which the sequence has at most.
    heldout: whether all keys have 3 tokens.

  Returns:
    (tokens, whether each is a value's whose key has come before, whether that
    of the probe has).
  """

  def size(kind: str) -> int:
    if heldout and kind == 'key':
      return LONGEST
    return 1 + int(rng.integers(LONGEST))

  sizes = size('key'), size('value')
  probe = draw(rng, 'key', sizes[0])
  values, seen = {probe: draw(rng, 'value', sizes[1])}, set()
  place = rng.integers(seq_len - 2 * sum(sizes))
  tokens: list[int] = []
  asked: list[bool] = []

  def write(key: Motif) -> None:
    tokens.extend((*key, *values[key]))
    asked.extend([False] * len(key) + [key in seen] * len(values[key]))
    seen.add(key)

  while len(tokens) < seq_len - sum(sizes) - 2 * LONGEST:
    key_size, value_size = size('key'), size('value')
    if len(tokens) >= place and probe not in seen:
      write(probe)
      continue
    key = draw(rng, 'key', key_size)
    if key not in values:
      values[key] = draw(rng, 'value', value_size)
    write(key)
  known = probe in seen
  seen.add(probe)  # the reference scores it in any case
  write(probe)
  return tokens, asked, known


def padded(
  tokens: list[int], asked: list[bool] | None, seq_len: int, padding: int
) -> Example:
  """Writes an example; what the sequence leaves free at its start is padding.

  Args:
    tokens: of the sequence.
    asked: as `hope.tasks.recall.shifted` takes it.
    seq_len: tokens of the example.
    padding: the token.
  """
  free = seq_len + 1 - len(tokens)
  counts = None if asked is None else [False] * free + asked
  return shifted([padding] * free + tokens, counts, seq_len)


def _generate(
  heldout: bool,
  rng: np.random.Generator,
  seq_len: int,
  options: ml_collections.ConfigDict,
) -> Example:
  parts = _parts(options.vocab_size)

  def draw(rng: np.random.Generator, kind: str, size: int) -> Motif:
    return tuple(rng.choice(parts[kind], size, replace=False).tolist())

  while True:
    tokens, asked, known = sequence(rng, draw, seq_len, heldout)
    if known or not heldout:
      counts = asked if heldout else None
      return padded(tokens, counts, seq_len, options.vocab_size - 1)


def _solve(inputs: np.ndarray, options: ml_collections.ConfigDict):
  """Reads key and value in turn, and repeats the value that a key had before.

  A key ends where a token of values follows; after padding a key starts.
  """
  keys = (options.vocab_size - 1) // 2
  answers, known = np.zeros_like(inputs), {}
  key, value = (), ()
  for place, token in enumerate(inputs.tolist()):
    if token == options.vocab_size - 1:
      continue
    if token >= keys:
      value = (*value, token)
    elif value:  # another key starts
      known[key] = value
      key, value = (token,), ()
    else:
      key = (*key, token)
    rest = known.get(key, ())[len(value) :]
    answers[place] = rest[0] if rest else 0
  return answers


def _chance(options: ml_collections.ConfigDict) -> float:
  return 1 / len(_parts(options.vocab_size)['value'])


def _least(options: ml_collections.ConfigDict) -> Least:
  del options
  return Least(vocab_size=2 * LONGEST + 1, seq_len=4 * LONGEST + 1)


TASK = Task(
  generate=functools.partial(_generate, False),
  heldout=functools.partial(_generate, True),
  least=_least,
  solve=_solve,
  chance=_chance,
  metric='class_accuracy',
  size=None,
)
