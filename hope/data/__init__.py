"""Data of a run: `open_data` gives a training loop all that it needs.

Names are imported when they are first used: the libraries that read data are
slow to import, and a configuration needs none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hope.data.open import Data, open_data
  from hope.data.pipeline import (
    Batch,
    BatchIterator,
    eval_batches,
    heldout_batches,
    is_synthetic,
    join_states,
    train_iterator,
  )
  from hope.data.sources import documents
  from hope.data.tokenization import Tokenizer, open_tokenizer

__all__ = [
  'Batch',
  'BatchIterator',
  'Data',
  'Tokenizer',
  'documents',
  'eval_batches',
  'heldout_batches',
  'is_synthetic',
  'join_states',
  'open_data',
  'open_tokenizer',
  'train_iterator',
]
# The module of each name.
_MODULES = {
  'Data': 'open',
  'Tokenizer': 'tokenization',
  'documents': 'sources',
  'open_data': 'open',
  'open_tokenizer': 'tokenization',
}


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = _MODULES.get(name, 'pipeline')
  return getattr(importlib.import_module(f'hope.data.{module}'), name)


def __dir__() -> list[str]:
  return __all__
