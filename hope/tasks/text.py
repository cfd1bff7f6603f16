"""What the rest of the system asks of a task of text.

An example is answered in one of two ways. Of a `TextExample` the model reads
the prompt and writes on; of a `ChoiceExample` it says how likely each of
several texts is. The examples of a `TextTask` are drawn, those of a `DataTask`
are read from files.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np


def count_words(text: str) -> int:
  """Words of the text, which white space parts."""
  return len(text.split())


def largest(fits: Callable[[int], bool]) -> int:
  """The largest number that fits, by binary search; -1 if 0 does not."""
  low, high = -1, 0
  while fits(high):
    low, high = high, 2 * high + 1
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


@dataclasses.dataclass(frozen=True)
class TextOptions:
  """From what an example is made, and how long it is.

  Attributes:
    size: how much a prompt holds at most, in tokens of `count`; the task says
      what that counts beside it.
    sentences: background, in order; read again from its first sentence where
      a prompt needs more. Tasks that make their own background leave it out.
    count: text -> tokens of the model's tokenizer.
  """

  size: int
  sentences: Sequence[str] = ()
  count: Callable[[str], int] = count_words


@dataclasses.dataclass(frozen=True)
class TextExample:
  """A prompt, and what a model is to answer.

  Attributes:
    pieces: yields the strings that make the prompt once joined, from its first
      character to the question and what follows that. Each call draws the same
      strings again, so that a prompt of any length takes constant memory.
    question: as it stands in the prompt.
    answers: the reference strings.
    depths: of each fact or needle in order, the share of the background before
      it, in [0, 1].
  """

  pieces: Callable[[], Iterator[str]]
  question: str
  answers: tuple[str, ...]
  depths: tuple[float, ...]


class Request(NamedTuple):
  """Asks how likely a text is after another.

  Attributes:
    context: what a model reads.
    continuation: what follows, from its first character (a space, where one
      parts it from the context).
  """

  context: str
  continuation: str


@dataclasses.dataclass(frozen=True)
class ChoiceExample:
  """Several texts, of which a model is to find one the most likely.

  Attributes:
    requests: one for each choice. A single one asks for its likelihood, and
      whether greedy decoding would write it.
    answer: index of the right one.
  """

  requests: tuple[Request, ...]
  answer: int


@dataclasses.dataclass(frozen=True)
class TextTask:
  """A task whose examples are drawn.

  Attributes:
    generate: (rng, options) -> example, drawn from `rng` and the options alone.
      Raises ValueError for options from which none can be made.
    score: (output, example) -> float in [0, 1], of the text a model wrote after
      the prompt of a TextExample. None: examples are ChoiceExamples.
    solve: (text) -> str, worked out from the prompt or the context by the
      task's definition: an output that scores 1, or the right continuation.
    chance: expected score of the one answer that, always given, scores best.
    stop: strings of which the first ends an output; of TextExamples alone, as
      is `tokens`.
    tokens: most tokens of an output.
  """

  generate: Callable[
    [np.random.Generator, TextOptions], TextExample | ChoiceExample
  ]
  score: Callable[[str, TextExample], float] | None
  solve: Callable[[str], str]
  chance: float
  stop: tuple[str, ...] = ()
  tokens: int = 128


@dataclasses.dataclass(frozen=True)
class DataTask:
  """A task whose examples are read from files.

  Attributes:
    read: (folder) -> examples, in the order of the files. Raises ValueError,
      with the file and what is wrong, for files that are not there or not of
      the published format.
    score: as in TextTask, like all that follow but `source`.
    source: where the files come from, which they are, and their licence.
    stop: where an output ends.
    tokens: most tokens of an output.
  """

  read: Callable[[pathlib.Path], Sequence[TextExample | ChoiceExample]]
  score: Callable[[str, TextExample], float] | None
  source: str
  stop: tuple[str, ...] = ()
  tokens: int = 128
