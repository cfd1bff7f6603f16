"""Text from a trained model.

  python -m hope.generate --workdir=runs/smoke --prompt="def "

The whole prompt goes through the model in one pass, whose state is carried
into decoding: O(1) work per token for Hope, whatever was read before.
"""

import json
import sys

from absl import app, flags, logging
import ml_collections

from hope import command_line, sampling
from hope.config import check_fields
from hope.data import tokenization
from hope.parallel.mesh import one_device
from hope.training import step as step_lib
from hope.training.checkpoint import open_checkpoints
from hope.training.mirror import Mirror

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a run.', required=True
)
_PROMPT = flags.DEFINE_string('prompt', 'def ', 'Text to go on from.')
_TOKENS = flags.DEFINE_integer('tokens', 200, 'Tokens to generate.')
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.8, 'Of the softmax; 0 takes the most likely token.'
)
_TOP_K = flags.DEFINE_integer('top_k', 40, 'Candidates per token; 0: all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the sampling.')


def load(workdir: str):
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
  config = ml_collections.ConfigDict(json.loads(path.read_text()))
  check_fields(config)
  config.model.titans.kernel = 'xla'  # the fingerprint is of other fields
  config = ml_collections.FrozenConfigDict(config)
  tokenizer = tokenization.open_tokenizer(config, str(files.local))
  graph, abstract = step_lib.abstract_state(config, one_device())
  with open_checkpoints(folder, config) as checkpoints:
    restored = checkpoints.restore_latest(abstract)
  if restored is None:
    raise ValueError(f'{folder} has no checkpoint yet; let it train on.')
  return config, tokenizer, graph, restored.state.params


def main(argv):
  """Prints the prompt and what follows it."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  logging.set_verbosity(logging.WARNING)
  try:
    _, tokenizer, graph, params = load(_WORKDIR.value)
    text = sampling.continue_text(
      tokenizer,
      graph,
      params,
      _PROMPT.value,
      _TOKENS.value,
      temperature=_TEMPERATURE.value,
      top_k=_TOP_K.value,
      seed=_SEED.value,
    )
  except ValueError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  print(text)


if __name__ == '__main__':
  command_line.run(main)
