"""RULER's six needles in a haystack.

Hsieh et al., 2024 (arXiv:2404.06654): sentences that give keys their values,
the needles, stand in a long text, and a question at its end asks for values.

  name     haystack    needles                    values
  s1       repetition  one                        7 digits
  s2       sentences   one                        7 digits
  s3_uuid  sentences   one                        UUID
  mk1      sentences   four keys, one asked for   7 digits
  mv       sentences   four values of a key       7 digits
  mq       sentences   four keys, all asked for   7 digits

`s3_uuid` is RULER's third; `s3` is a task of permutations.

`Choice:` in a repetition, a needle stands at any boundary of the repeated line
with the same probability; other needles have depths among 40 evenly spaced
points, no two the same. Keys are distinct, and so are values.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import re
import uuid

import numpy as np

from hope.tasks.text import TextExample, TextOptions, TextTask, largest

# Tokens of an answer, for which a prompt leaves room.
ANSWER_TOKENS = 128

_NOISE = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. '
  'There and back again.',
)
_DEPTHS = np.linspace(0, 1, 40)
_NUMBERS = 9 * 10**6


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What stands in the haystack, and what is asked for.

  Attributes:
    keys: how many have values.
    values: of each key.
    queries: keys that the question names.
    value: 'number' or 'uuid'.
    noise: whether the haystack is a repeated line.
  """

  keys: int = 1
  values: int = 1
  queries: int = 1
  value: str = 'number'
  noise: bool = False


# -------------------------------------------------------------- keys and values


@functools.cache
def _words() -> tuple[list[str], list[str]]:
  """(adjectives, nouns) of wonderwords."""
  try:
    import wonderwords
  except ImportError as e:
    raise ImportError(
      'Keys of needles are words of wonderwords, which is not installed. '
      "Install it: pip install 'hope-jax[tasks]'."
    ) from e
  words = wonderwords.RandomWord()
  adjectives, nouns = (
    sorted(set(words.filter(include_categories=[x])))
    for x in ('adjective', 'noun')
  )
  return adjectives, nouns


def _keys(rng: np.random.Generator, number: int) -> list[str]:
  """Distinct keys: an adjective and a noun each."""
  adjectives, nouns = _words()
  drawn = rng.choice(len(adjectives) * len(nouns), number, replace=False)
  return [
    f'{adjectives[i // len(nouns)]}-{nouns[i % len(nouns)]}' for i in drawn
  ]


def _values(rng: np.random.Generator, kind: str, number: int) -> list[str]:
  """Distinct values."""
  if kind == 'uuid':
    return [
      str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(number)
    ]
  return [str(10**6 + x) for x in rng.choice(_NUMBERS, number, replace=False)]


# --------------------------------------------------------------------- prompts


def _frame(kind: _Kind, queries: list[str]) -> tuple[str, str, str]:
  """(what stands before the haystack, question, start of the answer)."""
  asked = queries[0]
  if len(queries) > 1:
    asked = ', '.join(queries[:-1]) + ', and ' + queries[-1]
  one = kind.queries * kind.values == 1
  noun = kind.value if one else kind.value + 's'
  some, are, all_ = ('A', 'is', 'is') if one else ('Some', 'are', 'are all')
  return (
    f'{some} special magic {noun} {are} hidden within the following text. Make '
    f'sure to memorize it. I will quiz you about the {noun} afterwards.\n',
    f'What {all_} the special magic {noun} for {asked} mentioned in the '
    'provided text?',
    f' The special magic {noun} for {asked} mentioned in the provided text '
    f'{are}',
  )


def _pieces(
  kind: _Kind,
  frame: tuple[str, str, str],
  sentences: Sequence[str],
  needles: list[str],
  depths: list[float],
  number: int,
) -> Iterator[str]:
  """The prompt, with `number` sentences, read round."""
  before, question, answer = frame
  # A depth in [0, 1) of noise is any of its number + 1 boundaries.
  boundaries = [int((number + kind.noise) * x) for x in depths]
  told, joint = 0, ''
  yield before
  for i in range(number + 1):
    while told < len(needles) and boundaries[told] == i:
      yield joint + needles[told]
      told, joint = told + 1, '\n' if kind.noise else ' '
    if i < number:
      yield joint + sentences[i % len(sentences)]
      joint = '\n' if kind.noise else ' '
  yield '\n' + question
  yield answer


def _generate(
  kind: _Kind, rng: np.random.Generator, options: TextOptions
) -> TextExample:
  """An example; `options.size` is in tokens of `options.count`.

  It holds the prompt, up to the start of the answer, and ANSWER_TOKENS.
  """
  sentences = _NOISE if kind.noise else options.sentences
  if not any(map(str.strip, sentences)):
    raise ValueError(
      'The haystack is made of sentences, and none was given that is not '
      'blank. Give TextOptions.sentences.'
    )
  keys = _keys(rng, kind.keys)
  values = _values(rng, kind.value, kind.keys * kind.values)
  owners = [key for key in keys for _ in range(kind.values)]
  needles = [
    f'One of the special magic {kind.value}s for {key} is: {value}.'
    for key, value in zip(owners, values, strict=True)
  ]
  needles = [needles[i] for i in rng.permutation(len(needles))]
  queries = keys[: kind.queries]
  depths = [rng.random()]
  if not kind.noise:
    depths = sorted(rng.choice(_DEPTHS, len(needles), replace=False).tolist())
  frame = _frame(kind, queries)
  pieces = functools.partial(_pieces, kind, frame, sentences, needles, depths)

  def fits(number: int) -> bool:
    tokens = options.count(''.join(pieces(number)))
    return tokens + ANSWER_TOKENS <= options.size

  number = largest(fits)
  if number < 0:
    raise ValueError(
      f'{options.size} tokens cannot hold the needles, the question and '
      f'{ANSWER_TOKENS} tokens of an answer. Give a larger size.'
    )
  return TextExample(
    functools.partial(pieces, number),
    frame[1],
    tuple(values[: kind.queries * kind.values]),
    tuple(depths),
  )


# --------------------------------------------------------- scores, and a solver


def score(output: str, example: TextExample) -> float:
  """Share of the reference strings that the output holds; case is ignored."""
  found = [x.lower() in output.lower() for x in example.answers]
  return sum(found) / len(found)


_NEEDLE = re.compile(r'One of the special magic \w+ for (.+?) is: ([\w-]+)\.')
_QUESTION = re.compile(
  r'What (?:is|are all) the special magic \w+ for (.+) mentioned in the '
  r'provided text\?'
)


def solve(text: str) -> str:
  """The values of the keys asked for, in the order of the needles.

  Args:
    text: a prompt, whole. Raises ValueError where it asks no question of the
      task.
  """
  asked = _QUESTION.findall(text)
  if not asked:
    raise ValueError(
      f'The text ends in {text[-40:]!r}. Give a prompt of the task, which asks '
      "'What is the special magic ...?'."
    )
  keys = re.split(', and |, ', asked[-1])
  return ', '.join(
    needle[2] for needle in _NEEDLE.finditer(text) if needle[1] in keys
  )


_KINDS = {
  's1': _Kind(noise=True),
  's2': _Kind(),
  's3_uuid': _Kind(value='uuid'),
  'mk1': _Kind(keys=4),
  'mv': _Kind(values=4),
  'mq': _Kind(keys=4, queries=4),
}
# Of a UUID, 122 bits are random.
_CHANCES = {'number': 1 / _NUMBERS, 'uuid': 2.0**-122}

TASKS = {
  name: TextTask(
    functools.partial(_generate, kind),
    score,
    solve,
    _CHANCES[kind.value],
    tokens=ANSWER_TOKENS,
  )
  for name, kind in _KINDS.items()
}
