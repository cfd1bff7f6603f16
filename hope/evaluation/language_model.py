"""What the evaluators of texts ask of a model."""

from typing import Any, NamedTuple

from flax import nnx

from hope.data.tokenization import NumberTokenizer, Tokenizer


class LanguageModel(NamedTuple):
  """A model with its tokenizer.

  Attributes:
    graph: structure of the model.
    params: its parameters.
    tokenizer: that it was trained with.
  """

  graph: nnx.GraphDef
  params: Any
  tokenizer: Tokenizer


def check_reads_text(tokenizer: Tokenizer) -> None:
  """Raises ValueError for a model of numbers, the tokens of generated tasks."""
  if isinstance(tokenizer, NumberTokenizer):
    raise ValueError(
      'The model was trained on a generated task and reads numbers, not text. '
      'Evaluate it on a generated task, or take a model of texts.'
    )
