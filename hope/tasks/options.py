"""Options of the generated tasks."""

import dataclasses

from hope.fields import field


@dataclasses.dataclass(frozen=True)
class TaskOptions:
  """Options of a synthetic task."""

  vocab_size: int = field(
    256, 'Tokens of a synthetic task.', minimum=1, maximum=2**24
  )
  num_pairs: int = field(
    8,
    'Pairs to recall, tokens to copy, or distinct symbols of a synthetic task.',
    minimum=1,
    maximum=2**20,
  )
  power: float = field(
    0.01,
    'mqar draws a gap g in proportion to (g + 1)^(power - 1).',
    minimum=-10,
    maximum=10,
  )
  min_length: int = field(
    2,
    'Shortest string of tasks of strings (formal languages, even_pairs, '
    'cycle_navigation, modular_arithmetic, s3, s5); of anbn and anbncn the '
    'least n.',
    minimum=1,
    maximum=2**20,
  )
  max_length: int = field(
    50,
    'Longest string of these tasks; of anbn and anbncn the largest n.',
    minimum=1,
    maximum=2**20,
  )
  noise: float = field(
    0.2,
    'Share of the pairs of noisy_recall that are noise.',
    minimum=0,
    below=1,
  )
  text: str | None = field(
    None,
    'Background of a task of text: a file, a folder of files *.txt, or a glob. '
    'None: none.',
  )
  min_size: int | None = field(
    None,
    'Least size of a row of a task of text, which prompt, answer and mark fill '
    'as far as whole sentences do. Sizes are drawn evenly from it to max_size. '
    'None: max_size.',
    unit='tokens',
    minimum=1,
    maximum=2**24,
  )
  max_size: int | None = field(
    None,
    'Largest size of such a row. None: data.seq_len.',
    unit='tokens',
    minimum=1,
    maximum=2**24,
  )
  predict_prompt: bool = field(
    False,
    'Whether training on a task of text also predicts the prompt. False: the '
    'answer and its mark alone, like evaluations.',
  )
  examples: int | None = field(
    None,
    'Training examples, which come in another order in each epoch. None: '
    'ever new ones.',
    minimum=1,
    maximum=2**24,
  )
