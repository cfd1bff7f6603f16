"""Tasks of text as rows to train on: a prompt, the right answer, and a mark.

A row holds the tokens of the prompt (of choices, the context), of a space and
the right answer (of choices, the right continuation), and of a newline, which
says that the answer ends. The separator of documents fills the rest.

`Choice:` the loss is on the answer and its mark alone, as in evaluations; with
`data.task.predict_prompt` it is on every token of training rows, as MAD has it.
The answer is what the task's solver says, so that several values come in the
order of the prompt. Prompt and answer are encoded apart, as they are where a
model goes on from the prompt. Held-out rows are of another stream, and equal
rows of training by chance alone.
"""

import functools
import re

import ml_collections
import numpy as np

from hope.data.background import Background
from hope.data.tokenization import ByteTokenizer, Tokenizer
from hope.tasks import TEXT_TASKS, Example, TextExample, TextOptions

MARK = '\n'
# Draws of which all must fit a row before a run starts, and of which one must
# later: what an example needs differs a little from one to the next.
_TRIES = 20
# Between sentences, before the white space that most encodings split at too.
_BETWEEN = re.compile(r'(?<=[.!?])(?=\s)')
# Sentences whose numbers of tokens are kept.
_KEPT = 2**16


class TextDraw:
  """Draws the rows of a task of text."""

  def __init__(
    self,
    name: str,
    config: ml_collections.ConfigDict,
    tokenizer: Tokenizer,
    background: Background,
  ):
    """Draws some rows to see that it can.

    Args:
      name: of the task, in TEXT_TASKS.
      config: of the run.
      tokenizer: of the run.
      background: of `data.task.text`.

    Raises:
      ValueError: A row cannot hold an example, or the task needs a background
        and there is none.
    """
    options = config.data.task
    self._task, self._tokenizer = TEXT_TASKS[name], tokenizer
    self._sentences = background.sentences
    self._of_sentence = functools.lru_cache(_KEPT)(self._encoded)
    self._predict_prompt = options.predict_prompt
    self._seq_len = config.data.seq_len
    self._longest = options.max_size or self._seq_len
    self._shortest = options.min_size or self._longest
    if not self._shortest <= self._longest <= self._seq_len:
      raise ValueError(
        f'data.task.min_size={options.min_size}, data.task.max_size='
        f'{options.max_size} and data.seq_len={self._seq_len} must ascend; '
        'lower the one that is too large, or leave it at None.'
      )
    try:
      for i in range(_TRIES):
        self._fit(np.random.default_rng((2, 0, i)), self._shortest)
    except ValueError as error:
      raise ValueError(
        f'data.source=synthetic:{name}, data.seq_len={self._seq_len}, '
        f'data.task.min_size={options.min_size} and data.task.text='
        f'{options.text!r}: {error} Rows hold {self._shortest} tokens at '
        'least; sentences are those of data.task.text, a file or a folder.'
      ) from error

  def __call__(self, rng: np.random.Generator, heldout: bool) -> Example:
    """Draws a row, of a size from `data.task.min_size` to `max_size`."""
    size = int(rng.integers(self._shortest, self._longest, endpoint=True))
    for _ in range(_TRIES - 1):
      try:
        prompt, answer = self._fit(rng, size)
        break
      except ValueError:
        continue  # goes on behind what was drawn
    else:
      prompt, answer = self._fit(rng, size)
    tokens = np.concatenate([prompt, answer])
    inputs = np.full(self._seq_len, self._tokenizer.document_separator)
    targets = np.zeros(self._seq_len, np.int32)
    weights = np.zeros(self._seq_len, np.float32)
    inputs[: len(tokens) - 1] = tokens[:-1]
    first = 0 if self._predict_prompt and not heldout else len(prompt) - 1
    counted = slice(first, len(tokens) - 1)
    targets[counted], weights[counted] = tokens[1:][counted], 1
    return Example(inputs.astype(np.int32), targets, weights)

  def _fit(
    self, rng: np.random.Generator, size: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """(prompt, answer and mark) of `size` tokens at most; int32 [n], [m].

    What a generator calls the size is not what a row holds: some leave room for
    an answer, others do not. So it is lowered until the row fits.

    Raises:
      ValueError: as the generator does.
    """
    start, given = rng.bit_generator.state, size + self._task.tokens
    while True:
      rng.bit_generator.state = start
      options = TextOptions(given, self._sentences, self._count)
      example = self._task.generate(rng, options)
      if isinstance(example, TextExample):
        prompt = ''.join(example.pieces())
        answer = f' {self._task.solve(prompt)}'
      else:
        prompt, answer = example.requests[example.answer]
      encoded = (
        self._tokenizer.encode(prompt, strict=False),
        self._tokenizer.encode(answer + MARK),
      )
      excess = sum(map(len, encoded)) - size
      if excess <= 0:
        return encoded
      given -= excess

  def _count(self, text: str) -> int:
    """Tokens of a text, sentence by sentence: texts are counted many times.

    The tokens of the whole may be a few more or less; `_fit` sees to that.
    """
    if isinstance(self._tokenizer, ByteTokenizer):
      return len(text.encode())
    return sum(map(self._of_sentence, _BETWEEN.split(text)))

  def _encoded(self, text: str) -> int:
    return len(self._tokenizer.encode(text, strict=False))
