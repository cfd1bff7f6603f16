"""Text from a trained model.

  python -m hope.generate --workdir=runs/smoke --prompt="def "

The state after the prompt is carried into decoding: O(1) work per token for
Hope, whatever was read before. Texts and prompts of every length need the same
programs, so that a second start compiles nothing.
"""

import json

from absl import flags, logging
import ml_collections

from hope import command_line, sampling
from hope.config import check_fields
from hope.data import tokenization
from hope.parallel.mesh import one_device
from hope.training import step as step_lib
from hope.training.checkpoint import open_checkpoints
from hope.training.mirror import Mirror


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'workdir', None, 'Directory of a run.', required=True, flag_values=values
  )
  flags.DEFINE_string(
    'prompt', 'def ', 'Text to go on from.', flag_values=values
  )
  flags.DEFINE_integer('tokens', 200, 'Tokens to draw.', flag_values=values)
  flags.DEFINE_float(
    'temperature',
    0.8,
    'Of the softmax; 0 takes the most likely token.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'top_k', 40, 'Candidates per token; 0: all.', flag_values=values
  )
  flags.DEFINE_integer('seed', 0, 'Of the sampling.', flag_values=values)


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
  try:
    config = ml_collections.ConfigDict(json.loads(path.read_text()))
    check_fields(config)
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(f'{path}: {error}') from None
  config.model.titans.kernel = 'xla'  # the fingerprint is of other fields
  config = ml_collections.FrozenConfigDict(config)
  tokenizer = tokenization.open_tokenizer(config, str(files.local))
  graph, abstract = step_lib.abstract_state(config, one_device())
  with open_checkpoints(folder, config) as checkpoints:
    restored = checkpoints.restore_latest(abstract)
  if restored is None:
    raise ValueError(f'{folder} has no checkpoint yet; let it train on.')
  return config, tokenizer, graph, restored.state.params


def main(values: flags.FlagValues) -> None:
  """Prints the prompt and what follows it."""
  logging.set_verbosity(logging.WARNING)
  options = {
    name: getattr(values, name) for name in ('temperature', 'top_k', 'seed')
  }
  sampling.check_options(values.prompt, tokens=values.tokens, **options)
  _, tokenizer, graph, params = load(values.workdir)
  text = sampling.continue_text(
    tokenizer, graph, params, values.prompt, values.tokens, **options
  )
  print(text)


if __name__ == '__main__':
  command_line.run(main, define_flags)
