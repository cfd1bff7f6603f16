"""How well a trained model predicts: its held-out data, or a text.

  hope-evaluate --workdir=runs/smoke                    and what baselines reach
  hope-evaluate --workdir=runs/smoke --text=notes.txt --json=result.json

`python -m hope.evaluate` is the same. The model is that of the newest intact
checkpoint. Each token is predicted from all before it, in the rows of training
for the held-out data, and from the whole text before it for a text.
"""

import json
import pathlib

from absl import flags, logging

from hope import command_line
from hope.fields import shown


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'workdir', None, 'Directory of a run.', required=True, flag_values=values
  )
  flags.DEFINE_string(
    'text',
    None,
    'File to predict, taken as UTF-8. Without it: the held-out data of the '
    'run, and baselines.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'json', None, 'File to write the result to as well.', flag_values=values
  )


def _read(path: str) -> str:
  """The text of a file.

  Raises:
    ValueError: if there is none.
  """
  try:
    return pathlib.Path(path).read_text(encoding='utf-8')
  except OSError as error:
    reason = error.strerror
  except ValueError:  # not a path, or bytes that are not UTF-8
    reason = 'not UTF-8 text'
  raise ValueError(f'--text={shown(path)} cannot be read: {reason}.')


def main(values: flags.FlagValues) -> None:
  """Prints a result."""
  logging.set_verbosity(logging.WARNING)
  command_line.check_output(values.json)
  text = None if values.text is None else _read(values.text)

  from hope import trained  # after the flags, as jax is slow
  from hope.evaluation import heldout

  model = trained.load(values.workdir)
  result = model.evaluate(text)
  baselines = {} if text is not None else model.baselines()
  what = 'Held out' if text is None else values.text
  print(f'{what}, by step {model.step} of {model.workdir}:')
  print(heldout.comparison(result, baselines))
  print(
    f'  {result["loss"]:.4f} nats per token, {result["accuracy"]:.1%} of the '
    'tokens were the most likely ones'
  )
  if values.json:
    content = {
      'workdir': str(model.workdir),
      'step': model.step,
      'text': values.text,
      'result': result,
      'baselines': baselines,
    }
    pathlib.Path(values.json).write_text(json.dumps(content, indent=2) + '\n')


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags, __doc__)
