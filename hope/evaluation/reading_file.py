"""The fast states of prompts that are being read, kept in a file.

A killed evaluation of very long prompts so goes on within a prompt.
"""

from collections.abc import Callable
import hashlib
import json
import pathlib
import time
from typing import Any

import jax

from hope import fast_state, state_file
from hope.evaluation.generation import Keeper
from hope.evaluation.language_model import LanguageModel
from hope.fast_state import FastState

# Pieces between two looks at the clock: what is dispatched runs ahead of it.
_PIECES = 16
# Seconds between two states that are kept.
SECONDS = 30.0


def keeper(
  path: pathlib.Path,
  model: LanguageModel,
  streams: int,
  identity: Any,
  show: Callable[[int], None] = lambda pieces: None,
) -> Keeper:
  """Keeps the reading of prompts in a file, which each later state replaces.

  Args:
    path: of the file.
    model: that reads.
    streams: of its state.
    identity: JSON value: model, prompts and their order. What another one left
      is not taken.
    show: given how many pieces are read, now and then.
  """
  content = json.dumps(identity, sort_keys=True).encode()
  name = hashlib.sha256(content).hexdigest()
  last = time.monotonic()

  def load() -> tuple[FastState, int] | None:
    if not path.exists():
      return None
    header, arrays = state_file.read(path)
    wanted = jax.eval_shape(
      lambda params: fast_state.begin(model.graph, params, streams),
      model.params,
    )
    state = state_file.fill(wanted, arrays)
    if header.model != name or state is None:
      return None
    return state, int(header.written_by)

  def save(state: FastState, pieces: int) -> None:
    nonlocal last
    if pieces % _PIECES:
      return
    jax.block_until_ready(state)
    show(pieces)
    if time.monotonic() - last >= SECONDS:
      state_file.write(path, state, state_file.Header(name, str(pieces)))
      last = time.monotonic()

  return Keeper(load, save)
