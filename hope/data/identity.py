"""What makes a run's data the same data: documents, tokenizer and settings."""

from typing import Any

import ml_collections

from hope.data.background import Background
from hope.data.packing import alignment
from hope.data.sources import Corpus
from hope.data.tokenization import Tokenizer


def run_identity(
  config: ml_collections.ConfigDict,
  tokenizer: Tokenizer,
  corpus: Corpus | None,
  background: Background | None = None,
) -> dict[str, Any]:
  """Returns what two starts must share to be the same run, as JSON values.

  The settings of the data, the seed, and hashes of what decides the tokens: the
  tokenizer, the documents (None for a generated task) and, of tasks of text,
  the background. It is the same on every process and every machine.
  """
  identity = config.data.to_dict() | {
    'seed': config.seed,
    'vocab_size': tokenizer.vocab_size,
    'content of the tokenizer': tokenizer.fingerprint(),
    'content of the documents': corpus and corpus.fingerprint,
  }
  if background is not None:
    identity['content of the background'] = background.fingerprint
  if config.data.segments:
    identity['alignment'] = alignment(config)
  return identity
