"""Formal languages: Table 5, and the parity of a whole string.

Table 5 follows Irie et al. (arXiv:2310.16076), who use the data of Bhattamishra
et al. (arXiv:2009.11264): six languages, a class at every position, and a
string counts only if all its positions are right (`exact_match`).

  parity     even number of 1s              has the prefix an even number?
  aa_star    (aa)*                          is the prefix in the language?
  abab_star  (abab)*                        is the prefix in the language?
  anbn       a^n b^n                        what may follow: X (a or b), b, T
  anbncn     a^n b^n c^n                    what may follow: X, b, c, T
  shuffle2   brackets () and []             is a ( open, is a [ open: two bits

`parity_of_string` is that of Deletang et al. (arXiv:2207.02098): one answer, at
the mark '?' behind the bits, which is the number of 1s modulo 2.

Options: `min_length` and `max_length`, of a string; of n for anbn and anbncn,
and of the bits for parity_of_string. The paper states no lengths. Choice: 2 to
50 as Bin0 and 51 to 100 as Bin1, as in the example of Bhattamishra et al.:
`evals.longer=(100,)`. A string starts a row; the rest is padding, token 0, and
counts nothing. Symbols are tokens from 1 on, classes from 0 on.

Deviation: the data are 10,000 and 2,000 strings, each of parity and shuffle2
once; here they are endless streams, in which short strings recur, but no
held-out string of these two is ever trained on.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import itertools

import ml_collections
import numpy as np

from hope.tasks import automata
from hope.tasks.task import Example, Least, Task

# In place of a class where no answer counts.
_NONE = ''


def _never(options: ml_collections.ConfigDict) -> float:
  del options
  return 0.0


@dataclasses.dataclass(frozen=True)
class Language:
  """A language, and what is asked of its strings.

  Attributes:
    symbols: of its strings.
    classes: of the answers.
    draw: (rng, low, high) -> a string whose length, or n, lies within.
    answers: string -> an answer for each symbol; '' where none counts.
    machine: string -> the same, of `hope.tasks.automata`.
    step: every length, or n, is a multiple of it.
    symbols_per_length: symbols of a string, per length or n.
    mark: behind every string that is drawn.
    disjoint: see `hope.tasks.task.Task`.
    least_length: least `max_length`. Of languages whose streams are disjoint
      it leaves over 100 strings to be divided.
    chance: see `hope.tasks.task.Task`. By default 0: every string asks for more
      than one class.
  """

  symbols: str
  classes: tuple[str, ...]
  draw: Callable[[np.random.Generator, int, int], str]
  answers: Callable[[str], list[str]]
  machine: Callable[[str], Iterable[str]]
  _: dataclasses.KW_ONLY
  step: int = 1
  symbols_per_length: int = 1
  mark: str = ''
  disjoint: bool = False
  least_length: int = 1
  chance: Callable[[ml_collections.ConfigDict], float] = _never


def encode(language: Language, string: str, seq_len: int) -> Example:
  """Writes a string and its answers.

  Args:
    language: of the string.
    string: at most `seq_len` symbols.
    seq_len: Tokens.
  """
  inputs = np.zeros(seq_len, np.int32)
  inputs[: len(string)] = [1 + language.symbols.index(x) for x in string]
  targets = np.zeros(seq_len, np.int32)
  weights = np.zeros(seq_len, np.float32)
  for i, answer in enumerate(language.answers(string)):
    if answer != _NONE:
      targets[i], weights[i] = language.classes.index(answer), 1
  return Example(inputs, targets, weights)


# ----------------------------------------------------------- strings, at random


def _even_parity(rng: np.random.Generator, low: int, high: int) -> str:
  """Bits until a stop, or `high` of them; then a 1 if their parity is odd.

  With L = (low + high) // 2 a symbol is the stop with probability 1 / (1 + L),
  else 0 or 1. What is too short or too long is drawn anew.
  """
  stop = 1 / (1 + (low + high) // 2)
  while True:
    length = min(int(rng.geometric(stop)) - 1, high)
    if length < low:
      continue
    string = _bits(rng, length)
    string += '1' * (string.count('1') % 2)
    if len(string) <= high:
      return string


def _bits(rng: np.random.Generator, length: int) -> str:
  return ''.join(map(str, rng.integers(0, 2, length)))


def _random_bits(rng: np.random.Generator, low: int, high: int) -> str:
  """Uniform bits of a uniform length, and the mark."""
  return _bits(rng, int(rng.integers(low, high + 1))) + '?'


def _repeat(word: str, rng: np.random.Generator, low: int, high: int) -> str:
  """Whole words of a uniform length that is rounded down.

  What is too short then is drawn anew.
  """
  while True:
    length = int(rng.integers(low, high + 1))
    if (times := length // len(word)) * len(word) >= low:
      return word * times


def _counted(
  symbols: str, rng: np.random.Generator, low: int, high: int
) -> str:
  """n times each symbol; n is uniform."""
  n = int(rng.integers(low, high + 1))
  return ''.join(symbol * n for symbol in symbols)


def _well_nested(rng: np.random.Generator, low: int, high: int) -> str:
  """S -> (S) or [S] with 1/4 each, SS with 1/4, nothing with 1/4.

  What is too short or too long is drawn anew. As in the data, brackets never
  cross, as in ([)], which the language allows.
  """
  while True:
    string = _derive(rng, high)
    if len(string) >= low:
      return string


def _derive(rng: np.random.Generator, high: int) -> str:
  """A string of S; nothing if it has more than `high` symbols."""
  string, size, pending = [], 0, ['S']
  while pending:
    symbol = pending.pop()
    if symbol != 'S':
      string.append(symbol)
    elif (draw := rng.random()) < 0.5:
      opening, closing = '()' if draw < 0.25 else '[]'
      string.append(opening)
      pending += [closing, 'S']
      size += 2
      if size > high:
        return ''
    elif draw < 0.75:
      pending += 'SS'
  return ''.join(string)


# ----------------------------------------------------------------- the answers


def _is_even(string: str) -> list[str]:
  """'1' where the prefix has an even number of 1s, else '0'."""
  ones = itertools.accumulate(int(x) for x in string)
  return [str(1 - count % 2) for count in ones]


def _is_whole(word: str, string: str) -> list[str]:
  """'1' where the prefix is whole words, else '0'."""
  places = range(1, len(string) + 1)
  return [str(int(i % len(word) == 0)) for i in places]


def _what_follows(symbols: str, string: str) -> list[str]:
  """What may follow each prefix: X (a or b), a symbol, or T (the end)."""
  n = len(string) // len(symbols)
  rest = string[n + 1 :]
  return ['X'] * n + [*rest, 'T']


def _open_brackets(string: str) -> list[str]:
  """Two bits: '10' where a ( is open, '01' where a [ is, '11' where both."""

  def counts(opening: str, closing: str) -> Iterator[int]:
    return itertools.accumulate((x == opening) - (x == closing) for x in string)

  return [
    f'{int(round_ > 0)}{int(square > 0)}'
    for round_, square in zip(counts('(', ')'), counts('[', ']'), strict=True)
  ]


def _ones_modulo_2(string: str) -> list[str]:
  """The answer at the mark."""
  bits = string[:-1]
  return [_NONE] * len(bits) + [str(bits.count('1') % 2)]


# ------------------------------------------------------------------ by chance


def _only_zeros(options: ml_collections.ConfigDict) -> float:
  """The share of strings of parity that are 0s: '1' at every position.

  Of all strings, before they are divided into what is trained on and what is
  held out.
  """
  low, high = options.min_length, options.max_length
  stop = 1 / (1 + (low + high) // 2)
  bits = np.arange(low, high + 1)
  share = (1 - stop) ** bits * np.where(bits < high, stop, 1)
  # Of the longest bits, those with an odd number of 1s have no place for one.
  kept = np.where(bits < high, 1, 0.5)
  return float(np.sum(share * 0.5**bits) / np.sum(share * kept))


def _half(options: ml_collections.ConfigDict) -> float:
  """Every bit but one is given: 0 and 1 are as likely."""
  del options
  return 0.5


# ------------------------------------------------------------------- the tasks


def _repeated(word: str) -> Language:
  """The language of a word's repetitions."""
  return Language(
    symbols=''.join(sorted(set(word))),
    classes=('0', '1'),
    draw=functools.partial(_repeat, word),
    answers=functools.partial(_is_whole, word),
    machine=functools.partial(automata.whole_words, word),
    step=len(word),
    least_length=len(word),
  )


def _counter(symbols: str) -> Language:
  """The language of n times each symbol."""
  return Language(
    symbols=symbols,
    classes=('X', *symbols[1:], 'T'),
    draw=functools.partial(_counted, symbols),
    answers=functools.partial(_what_follows, symbols),
    machine=functools.partial(automata.counters, symbols),
    symbols_per_length=len(symbols),
  )


LANGUAGES: dict[str, Language] = {
  'parity': Language(
    symbols='01',
    classes=('0', '1'),
    draw=_even_parity,
    answers=_is_even,
    machine=automata.even_ones,
    disjoint=True,
    least_length=8,
    chance=_only_zeros,
  ),
  'aa_star': _repeated('aa'),
  'abab_star': _repeated('abab'),
  'anbn': _counter('ab'),
  'anbncn': _counter('abc'),
  'shuffle2': Language(
    symbols='()[]',
    classes=('00', '01', '10', '11'),
    draw=_well_nested,
    answers=_open_brackets,
    machine=automata.two_counters,
    step=2,
    disjoint=True,
    least_length=8,
  ),
  'parity_of_string': Language(
    symbols='01?',
    classes=('0', '1'),
    draw=_random_bits,
    answers=_ones_modulo_2,
    machine=automata.odd_ones,
    mark='?',
    chance=_half,
  ),
}


def _generate(
  language: Language,
  rng: np.random.Generator,
  seq_len: int,
  options: ml_collections.ConfigDict,
) -> Example:
  string = language.draw(rng, options.min_length, options.max_length)
  return encode(language, string, seq_len)


def _solve(
  language: Language, inputs: np.ndarray, options: ml_collections.ConfigDict
):
  del options
  length = np.count_nonzero(inputs)
  string = ''.join(language.symbols[x - 1] for x in inputs[:length].tolist())
  answers = np.zeros_like(inputs)
  for place, answer in enumerate(language.machine(string)):
    if answer != _NONE:
      answers[place] = language.classes.index(answer)
  return answers


def _least(language: Language, options: ml_collections.ConfigDict) -> Least:
  longest = language.symbols_per_length * options.max_length
  return Least(
    vocab_size=max(len(language.symbols) + 1, len(language.classes)),
    seq_len=longest + len(language.mark),
  )


def _check(
  language: Language, seq_len: int, options: ml_collections.ConfigDict
):
  """Raises ValueError where no string has such a length."""
  low, high = options.min_length, options.max_length
  first = -(-low // language.step) * language.step
  least = max(first, language.least_length)
  if high < least:
    raise ValueError(
      f'data.task.min_length={low} and data.task.max_length={high}: too few '
      f'strings of the language are so long; give a max_length of {least} or '
      'more.'
    )


def make_task(language: Language) -> Task:
  """The task of a language; all answers of a string must be right."""
  return Task(
    generate=functools.partial(_generate, language),
    least=functools.partial(_least, language),
    solve=functools.partial(_solve, language),
    chance=language.chance,
    metric='exact_match',
    check=functools.partial(_check, language),
    size='max_length',
    disjoint=language.disjoint,
  )


TASKS = {name: make_task(language) for name, language in LANGUAGES.items()}
