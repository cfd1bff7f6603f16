"""State tracking with one answer: three regular tasks of the Chomsky hierarchy.

Deletang et al. (arXiv:2207.02098). The answer is asked for at the mark '?'
behind the string; their fourth regular task, parity, is `parity_of_string` of
`hope.tasks.formal_languages`.

  even_pairs          bits: the number of 01s and 10s, modulo 2
  cycle_navigation    steps 0, 1, 2: where on a cycle of 5 one stands who goes
                      back, stays or goes ahead
  modular_arithmetic  digits 0 to 4 with +, - or * between, without brackets:
                      the value, modulo 5

Options: `min_length` and `max_length` of a string; in training 1 and 40, tested
up to 500: `evals.longer=(500,)`. All symbols are drawn uniformly. Expressions
have odd lengths: an even one is made one less, as in the published code.
"""

import functools
import itertools
import math
import re

import ml_collections
import numpy as np

from hope.tasks import automata
from hope.tasks.formal_languages import Language, make_task


def _symbols(
  symbols: str, rng: np.random.Generator, low: int, high: int
) -> str:
  """Uniform symbols of a uniform length, and the mark."""
  chosen = rng.integers(len(symbols), size=rng.integers(low, high + 1))
  return ''.join(symbols[i] for i in chosen.tolist()) + '?'


def _expression(rng: np.random.Generator, low: int, high: int) -> str:
  digits = (int(rng.integers(low, high + 1)) + 1) // 2
  symbols = [''] * (2 * digits - 1)
  symbols[::2] = map(str, rng.integers(5, size=digits).tolist())
  symbols[1::2] = ['+-*'[i] for i in rng.integers(3, size=digits - 1).tolist()]
  return ''.join(symbols) + '?'


def _at_the_mark(answer: int, string: str) -> list[str]:
  return [''] * (len(string) - 1) + [str(answer)]


def _odd_changes(string: str) -> list[str]:
  pairs = itertools.pairwise(string[:-1])
  return _at_the_mark(sum(a != b for a, b in pairs) % 2, string)


def _position(string: str) -> list[str]:
  return _at_the_mark(sum(int(x) - 1 for x in string[:-1]) % 5, string)


def _value(string: str) -> list[str]:
  total = 0
  for sign, product in re.findall(r'([+-]?)([\d*]+)', string[:-1]):
    term = math.prod(map(int, product.split('*')))
    total += -term if sign == '-' else term
  return _at_the_mark(total % 5, string)


# ------------------------------------------------------------------ by chance


def _lengths(options: ml_collections.ConfigDict) -> np.ndarray:
  return np.arange(options.min_length, options.max_length + 1)


def _no_change(options: ml_collections.ConfigDict) -> float:
  """One bit has no pair; of more, the last is the first with 1/2."""
  return float(np.where(_lengths(options) == 1, 1, 0.5).mean())


def _back_at_the_start(options: ml_collections.ConfigDict) -> float:
  """Of a step, E[w^(k step)] is (1 + 2 cos(2 pi k / 5)) / 3, w^5 = 1."""
  of_step = (1 + 2 * np.cos(2 * np.pi * np.arange(5) / 5)) / 3
  return float((of_step ** _lengths(options)[:, None]).mean())


def _value_zero(options: ml_collections.ConfigDict) -> float:
  """With E[w^(k value)] = e for k != 0, a value is 0 with (1 + 4 e) / 5.

  Of a product of m digits, e is 1 - (4/5)^(m - 1); of a sum, the product of its
  terms' e. The last term has m digits if the last m - 1 operators are *, and
  the one before them is not.
  """
  digits = (_lengths(options) + 1) // 2
  found = [1.0]
  for n in range(1, digits.max() + 1):
    m = np.arange(1, n + 1)
    last = (1 / 3) ** (m - 1) * np.where(m < n, 2 / 3, 1)
    found.append(float(last * (1 - 0.8 ** (m - 1)) @ np.array(found[::-1])))
  return float((1 + 4 * np.array(found)[digits]).mean() / 5)


LANGUAGES: dict[str, Language] = {
  'even_pairs': Language(
    symbols='01?',
    classes=('0', '1'),
    draw=functools.partial(_symbols, '01'),
    answers=_odd_changes,
    machine=automata.ends_differ,
    mark='?',
    chance=_no_change,
  ),
  'cycle_navigation': Language(
    symbols='012?',
    classes=tuple('01234'),
    draw=functools.partial(_symbols, '012'),
    answers=_position,
    machine=automata.around_five,
    mark='?',
    chance=_back_at_the_start,
  ),
  'modular_arithmetic': Language(
    symbols='01234+-*?',
    classes=tuple('01234'),
    draw=_expression,
    answers=_value,
    machine=automata.two_registers,
    mark='?',
    chance=_value_zero,
  ),
}

TASKS = {name: make_task(language) for name, language in LANGUAGES.items()}
