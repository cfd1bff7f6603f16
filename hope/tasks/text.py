"""What the rest of the system asks of a task of text.

Such a task is answered by generation: a model reads the prompt and writes on.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

import numpy as np


def count_words(text: str) -> int:
  """Words of the text, which white space parts."""
  return len(text.split())


@dataclasses.dataclass(frozen=True)
class TextOptions:
  """From what an example is made, and how long it is.

  Attributes:
    size: how much a prompt holds at most: words, or tokens of `count`; the
      task says which.
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


@dataclasses.dataclass(frozen=True)
class TextTask:
  """A task of text.

  Attributes:
    generate: (rng, options) -> TextExample, drawn from `rng` and the options
      alone. Raises ValueError for options from which none can be made.
    score: (output, example) -> float in [0, 1], of the text a model wrote after
      the prompt.
    solve: (text) -> str, an output that scores 1, worked out from the prompt
      by the task's definition.
    chance: expected score of the one answer that, always given, scores best.
  """

  generate: Callable[[np.random.Generator, TextOptions], TextExample]
  score: Callable[[str, TextExample], float]
  solve: Callable[[str], str]
  chance: float
