"""A trained model, from the workdir of its run."""

import json
from typing import Any

from flax import nnx
import ml_collections

from hope.config import check_fields
from hope.data import tokenization
from hope.parallel.mesh import one_device
from hope.run.checkpoint import open_checkpoints
from hope.run.mirror import Mirror
from hope.training import step as step_lib


def load(
  workdir: str,
) -> tuple[
  ml_collections.FrozenConfigDict, tokenization.Tokenizer, nnx.GraphDef, Any
]:
  """Loads (config, tokenizer, graph, params) of a run.

  Choice: the memories run in their XLA form, as it decodes anyway: a run of a
  TPU speaks on any machine.

  Raises:
    ValueError: if workdir holds no run or no checkpoint.
  """
  files = Mirror(workdir, reading=True)
  folder = files.workdir
  path = folder / 'config.json'
  if not path.is_file():
    raise ValueError(
      f'{folder} holds no run: there is no config.json. Train one with '
      f'python -m hope.main --config=experiments/smoke.py --workdir={workdir}'
    )
  try:
    config = ml_collections.ConfigDict(json.loads(path.read_text()))
    check_fields(config)
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(f'{path}: {error}') from None
  config.compute.kernel = 'xla'  # the fingerprint is of other fields
  config = ml_collections.FrozenConfigDict(config)
  tokenizer = tokenization.open_tokenizer(config, str(files.local))
  graph, abstract = step_lib.abstract_state(config, one_device())
  with open_checkpoints(folder, config) as checkpoints:
    restored = checkpoints.restore_latest(abstract)
  if restored is None:
    raise ValueError(f'{folder} has no checkpoint yet; let it train on.')
  return config, tokenizer, graph, restored.state.params
