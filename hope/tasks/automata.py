"""Machines that answer for a formal language while they read a string.

Each reads one symbol after the other, keeps a few numbers and tells an answer
for each symbol, '' where none counts. They know the definitions alone, not how
`formal_languages` and `chomsky` draw strings and write answers.
"""

from collections.abc import Iterator


def even_ones(string: str) -> Iterator[str]:
  """'1' after an even number of 1s."""
  even = True
  for symbol in string:
    if symbol == '1':
      even = not even
    yield '1' if even else '0'


def whole_words(word: str, string: str) -> Iterator[str]:
  """'1' where a word ends, and all symbols were those of words."""
  place, right = 0, True
  for symbol in string:
    right = right and symbol == word[place]
    place = (place + 1) % len(word)
    yield '1' if right and place == 0 else '0'


def counters(symbols: str, string: str) -> Iterator[str]:
  """What may follow, by a counter for each symbol.

  X among the first symbols; behind them a symbol until there are as many of it,
  then the next one, at last the end, T.
  """
  counts = dict.fromkeys(symbols, 0)
  after = dict(zip(symbols, [*symbols[1:], 'T'], strict=True))
  for symbol in string:
    counts[symbol] += 1
    if symbol == symbols[0]:
      yield 'X'
    elif counts[symbol] < counts[symbols[0]]:
      yield symbol
    else:
      yield after[symbol]


def two_counters(string: str) -> Iterator[str]:
  """Whether a round and a square bracket are open, as '10'."""
  round_, square = 0, 0
  for symbol in string:
    round_ += {'(': 1, ')': -1}.get(symbol, 0)
    square += {'[': 1, ']': -1}.get(symbol, 0)
    yield f'{min(round_, 1)}{min(square, 1)}'


def odd_ones(string: str) -> Iterator[str]:
  """At the mark, '1' after an odd number of 1s."""
  *before, even = even_ones(string.replace('?', '0'))
  yield from [''] * len(before)
  yield '0' if even == '1' else '1'


def ends_differ(string: str) -> Iterator[str]:
  """At the mark, whether the first bit and the last differ.

  Each pair 01 or 10 is a change of the bit.
  """
  first, last = '', ''
  for symbol in string:
    if symbol == '?':
      yield str(int(first != last))
      return
    first, last = first or symbol, symbol
    yield ''


def around_five(string: str) -> Iterator[str]:
  """At the mark, where steps 0 back, 1 none, 2 ahead lead on a cycle of 5."""
  ahead = {'0': '40123', '1': '01234', '2': '12340'}
  position = '0'
  for symbol in string:
    if symbol == '?':
      yield position
      return
    position = ahead[symbol][int(position)]
    yield ''


def two_registers(string: str) -> Iterator[str]:
  """At the mark, the value modulo 5 of digits with +, - and * between.

  One register holds the sum of the terms that have ended, the other the term
  that is read, whose next factor is a digit.
  """
  total, term, operator = 0, 1, '*'
  for symbol in string:
    if symbol == '?':
      yield str((total + term) % 5)
      return
    if symbol.isdigit():
      digit = int(symbol)
      if operator == '*':
        term = term * digit % 5
      else:
        total = (total + term) % 5
        term = digit if operator == '+' else -digit % 5
    else:
      operator = symbol
    yield ''
