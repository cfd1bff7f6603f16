"""Generated tasks: an example is a function of its index alone.

Each task is `task(rng, seq_len, options) -> (inputs, targets, weights)`, all
[t]; `options` is `data.task` of the configuration.
"""

from collections.abc import Callable, Mapping

import ml_collections
import numpy as np

from hope.data import sources

Example = tuple[np.ndarray, np.ndarray, np.ndarray]

# Examples of a stream, which is endless for every purpose.
_STREAM_LENGTH = 2**48
# Ids are drawn from tables of all of them.
_LARGEST_VOCABULARY = 2**24


def mqar_sequence(
  keys: np.ndarray, values: np.ndarray, gaps: np.ndarray, seq_len: int
) -> Example:
  """Writes multi-query associative recall (Arora et al., arXiv:2312.04927).

  The context is `k1 v1 k2 v2 ...`; key i comes again at offset 2 gaps[i]
  behind the context, where its value is the target. All else is 0.

  Args:
    keys: Distinct keys, [k].
    values: Their values, [k].
    gaps: Distinct places of the queries, below (seq_len - 2k) // 2, [k].
    seq_len: Tokens.

  Returns:
    Inputs, targets and weights, [seq_len].
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
  return inputs, targets, weights


def gap_weights(seq_len: int, options: ml_collections.ConfigDict) -> np.ndarray:
  """Returns (g + 1)^(power - 1) for every gap g of `mqar`."""
  gaps = (seq_len - 2 * options.num_pairs) // 2
  with np.errstate(over='ignore', under='ignore'):
    return np.arange(1, gaps + 1) ** (options.power - 1.0)


def mqar(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws `num_pairs` keys below half the vocabulary, values above.

  Gap g is drawn with probability in proportion to (g + 1)^(power - 1), without
  replacement.
  """
  size, pairs = options.vocab_size, options.num_pairs
  keys = rng.choice(np.arange(1, size // 2), pairs, replace=False)
  values = rng.choice(np.arange(size // 2, size), pairs, replace=False)
  p = gap_weights(seq_len, options)
  places = rng.choice(len(p), pairs, replace=False, p=p / p.sum())
  return mqar_sequence(keys, values, places, seq_len)


def copy(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws selective copying (MAD, arXiv:2403.17844).

  `num_pairs` tokens lie among blanks; after the copy mark they are the targets,
  in order, at the last `num_pairs` positions. The two last ids are the blank
  and the mark.
  """
  blank, mark = options.vocab_size - 2, options.vocab_size - 1
  num = options.num_pairs
  tokens = rng.integers(0, blank, num)
  blanks = rng.integers(0, num, seq_len - 2 * num - 1)
  inputs = np.full(seq_len, blank, np.int32)
  inputs[: seq_len - num - 1] = np.insert(tokens, blanks, blank)
  inputs[seq_len - num - 1] = mark
  targets = np.zeros(seq_len, np.int32)
  targets[-num:] = tokens
  weights = np.zeros(seq_len, np.float32)
  weights[-num:] = 1
  return inputs, targets, weights


def symbols(
  rng: np.random.Generator, seq_len: int, options: ml_collections.ConfigDict
) -> Example:
  """Draws a sequence of `num_pairs` distinct symbols, each place uniformly.

  Few symbols repeat the same keys over and over, which strains the stability
  of a memory. Every next token is a target.
  """
  alphabet = rng.choice(options.vocab_size, options.num_pairs, replace=False)
  tokens = rng.choice(alphabet, seq_len + 1).astype(np.int32)
  return tokens[:-1], tokens[1:], np.ones(seq_len, np.float32)


TASKS: Mapping[
  str,
  Callable[[np.random.Generator, int, ml_collections.ConfigDict], Example],
] = {'mqar': mqar, 'copy': copy, 'symbols': symbols}


class SyntheticSource:
  """Random access to the examples of a task, as dicts of [t] arrays."""

  def __init__(self, config: ml_collections.ConfigDict, split: str):
    """Chooses the stream of examples.

    Args:
      config: The run's configuration.
      split: 'train', a stream for each `config.seed`, or 'heldout', one stream
        whatever the seed, so that runs are compared on the same examples.

    Raises:
      ValueError: The task is unknown or its options do not fit.
    """
    name = config.data.source.partition(':')[2]
    _validate(name, config)
    self._task = TASKS[name]
    self._options = config.data.task.copy_and_resolve_references()
    self._seq_len = config.data.seq_len
    self._stream = (0, config.seed) if split == 'train' else (1, 0)

  def __len__(self) -> int:
    return _STREAM_LENGTH

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((*self._stream, index))
    inputs, targets, weights = self._task(rng, self._seq_len, self._options)
    return {'inputs': inputs, 'targets': targets, 'weights': weights}


def _validate(name: str, config: ml_collections.ConfigDict):
  """Raises ValueError for a task that cannot be generated."""
  if name not in TASKS:
    raise ValueError(
      f'data.source=synthetic:{name}: unknown task; '
      f'{sources.nearest(name, tuple(TASKS))}'
    )
  size, num = config.data.task.vocab_size, config.data.task.num_pairs
  length = config.data.seq_len
  if not num >= 1:
    raise ValueError(f'data.task.num_pairs={num}: give at least 1.')
  if not size <= _LARGEST_VOCABULARY:
    raise ValueError(
      f'data.task.vocab_size={size}: give at most {_LARGEST_VOCABULARY}.'
    )
  # Smallest vocabulary and shortest sequence that hold num_pairs.
  smallest, shortest = {
    'mqar': (2 * num + 2, 4 * num),
    'copy': (3, 2 * num + 1),
    'symbols': (num, 1),
  }[name]
  for field, given, least in (
    ('task.vocab_size', size, smallest),
    ('seq_len', length, shortest),
  ):
    if not given >= least:
      raise ValueError(
        f'data.{field}={given} is too small for {name} with '
        f'data.task.num_pairs={num}; give at least {least}.'
      )
  if name == 'mqar':
    weights = gap_weights(length, config.data.task)
    if not (np.isfinite(weights.sum()) and np.count_nonzero(weights) >= num):
      raise ValueError(
        f'data.task.power={config.data.task.power}: too few gaps can be drawn, '
        'or their chances are no numbers; give a number near 0, as 0.01.'
      )
