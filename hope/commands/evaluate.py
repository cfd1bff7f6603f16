"""How well a trained model predicts: its held-out data, a text, or tasks.

  hope-evaluate --workdir=runs/smoke                    and what baselines reach
  hope-evaluate --workdir=runs/smoke --text=notes.txt --by_context
  hope-evaluate --workdir=runs/smoke --json=result.json \
    --task=qa1:size=4096,text=notes.txt,examples=100 --task=mqar:num_pairs=16

`python -m hope.evaluate` is the same. The model is that of the newest intact
checkpoint. Each token is predicted from all before it, in the rows of training
for the held-out data, and from the whole text before it for a text. Tasks and
their options are in docs/evaluation.md; the same command goes on where it was
killed.
"""

from collections.abc import Iterator, Mapping
import json
import pathlib
from typing import Any

from absl import flags, logging

from hope import command_line
from hope.fields import Field, shown

# Letters of a text that are read at once.
_LETTERS = 2**16


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'workdir', None, 'Directory of a run.', required=True, flag_values=values
  )
  flags.DEFINE_string(
    'text',
    None,
    'File to predict, taken as UTF-8. Without it and without --task: the '
    'held-out data of the run, and baselines.',
    flag_values=values,
  )
  flags.DEFINE_boolean(
    'by_context',
    False,
    'With --text: also by how many tokens were read before.',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'task',
    [],
    'Task to be scored on, with its options, as '
    's2:size=4096,text=notes.txt,examples=100; may be given several times.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'batch',
    8,
    'With --task: examples of texts that are read at once.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'scores',
    None,
    'With --task: folder that keeps the score of each example. Without it: '
    'evals/ in the workdir.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'json',
    None,
    'File to write the result to as well. Pictures are drawn beside it: loss '
    'by context, accuracy by length and by depth, where the result has them.',
    flag_values=values,
  )


def _letters(path: str) -> Iterator[str]:
  """The text of a file, in strings.

  Raises:
    ValueError: if there is none.
  """
  try:
    with open(path, encoding='utf-8', newline='') as file:
      while text := file.read(_LETTERS):
        yield text
    return
  except OSError as error:
    reason = error.strerror
  except ValueError:  # not a path, or bytes that are not UTF-8
    reason = 'not UTF-8 text'
  raise ValueError(f'--text={shown(path)} cannot be read: {reason}.')


def _check(values: flags.FlagValues) -> None:
  """Raises ValueError for flags that are wrong, or do not go together."""
  from hope.evaluation import specs

  command_line.check_output(values.json)
  Field(8, '', minimum=1, maximum=2**16).check('--batch', values.batch)
  if values.text is not None and values.task:
    raise ValueError(
      f'--text={shown(values.text)} and --task={shown(values.task[0])} are two '
      'evaluations; give one of them. Background of a task is its own option, '
      'as in --task=qa1:text=notes.txt.'
    )
  if values.by_context and values.text is None:
    raise ValueError('--by_context is of a text; give --text=FILE as well.')
  if values.scores is not None:
    if not values.task:
      raise ValueError(
        f'--scores={shown(values.scores)} is where --task keeps the scores of '
        'examples; give --task as well.'
      )
    _check_folder(values.scores)
  try:
    specs.parse_all(values.task)
  except ValueError as error:
    raise ValueError(f'--task: {error}') from None
  if values.text is not None:
    for _ in _letters(values.text):  # all of it can be read
      pass


def _check_folder(path: str) -> None:
  """Raises ValueError if files cannot be kept in a folder."""
  Field('', '').check('--scores', path)
  reason = 'give a name'
  try:
    if path:
      pathlib.Path(path).mkdir(parents=True, exist_ok=True)
      return
  except OSError as error:
    reason = error.strerror
  raise ValueError(f'--scores={shown(path)} is no folder: {reason}.')


def main(values: flags.FlagValues) -> None:
  """Prints a result."""
  logging.set_verbosity(logging.WARNING)
  _check(values)

  from hope import trained  # after the flags, as jax is slow

  model = trained.load(values.workdir)
  content = {'workdir': str(model.workdir), 'step': model.step}
  if values.task:
    found, drawn = _tasks(model, values)
  elif values.text is not None:
    found, drawn = _text(model, values)
  else:
    found, drawn = _heldout(model), {}
  if values.json:
    path = pathlib.Path(values.json)
    path.write_text(json.dumps(content | found, indent=2) + '\n')
    _draw(path, drawn)


def _draw(path: pathlib.Path, drawn: Mapping[str, Any]) -> None:
  """Writes pictures beside a file, by what their names end in."""
  from hope.run import drawing

  for ending, picture in drawn.items():
    name = path.with_name(f'{path.stem}{ending}.png')
    print(f'  drawn: {drawing.save(picture, name)}')


def _heldout(model: Any) -> dict[str, Any]:
  """Prints the held-out data's measures; returns them."""
  from hope.evaluation import heldout

  result, baselines = model.evaluate(), model.baselines()
  print(f'Held out, by step {model.step} of {model.workdir}:')
  print(heldout.comparison(result, baselines))
  _print_tokens(result)
  return {'text': None, 'result': result, 'baselines': baselines}


def _print_tokens(result: Mapping[str, float]) -> None:
  print(
    f'  {result["loss"]:.4f} nats per token, {result["accuracy"]:.1%} of the '
    'tokens were the most likely ones'
  )


def _text(
  model: Any, values: flags.FlagValues
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Prints a text's measures; returns them, and pictures as `_draw` has."""
  found = model.evaluate_stream(_letters(values.text))
  result = found.whole.to_dict()
  print(f'{values.text}, by step {model.step} of {model.workdir}:')
  print(f'  {"this model":16s} {result["bits_per_byte"]:.4f} bits per byte')
  _print_tokens(result)
  bins = {k: part.to_dict() for k, part in found.by_context.items()}
  drawn = {}
  if values.by_context:
    print(f'  {"tokens before":>16s}  bits per byte  perplexity  tokens')
    for least, part in bins.items():
      before = f'{least:,}-{2 * least - 1:,}'
      print(
        f'  {before:>16s}  {part["bits_per_byte"]:13.4f}  '
        f'{part["perplexity"]:10.2f}  {part["tokens"]:,}'
      )
    from hope.evaluation import pictures

    losses = {least: part['bits_per_byte'] for least, part in bins.items()}
    drawn[''] = pictures.loss_by_context({values.text: losses}, 'bits per byte')
  content = {
    'text': values.text,
    'result': result,
    'by_context': bins,
    'baselines': {},
  }
  return content, drawn


def _tasks(
  model: Any, values: flags.FlagValues
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Prints the scores of tasks; returns them, and pictures as `_draw` has."""
  from hope.run.mirror import is_remote

  folder = values.scores
  if folder is None:
    if is_remote(values.workdir):
      raise ValueError(
        f'--workdir={shown(values.workdir)} is in a bucket, where scores '
        'cannot be added to a file; give a local folder, --scores=FOLDER.'
      )
    folder = pathlib.Path(values.workdir) / 'evals'
  found = model.evaluate_tasks(values.task, batch=values.batch, folder=folder)
  print(f'Tasks, by step {model.step} of {model.workdir}:')
  for label, metrics in found.items():
    print(f'  {label}')
    for name, estimate in metrics.items():
      interval = ''
      if estimate.low is not None:
        low, high = _number(estimate.low), _number(estimate.high)
        interval = f'  95%: {low} to {high}'
      print(f'    {name:20s} {_number(estimate.value)}{interval}')
  drawn = {}
  if values.json:
    drawn = _pictures(found, values.task, pathlib.Path(folder), model.step)
  content = {
    label: {name: x._asdict() for name, x in metrics.items()}
    for label, metrics in found.items()
  }
  return {'tasks': content}, drawn


def _pictures(
  found: Mapping[str, Any], tasks: list[str], folder: pathlib.Path, step: int
) -> dict[str, Any]:
  """Pictures of the scores of tasks, by what their names end in."""
  from hope.evaluation import result_pictures, runner, specs

  named = specs.parse_all(tasks)
  drawn = {}
  if (picture := result_pictures.by_length(found, named)) is not None:
    drawn[''] = picture
  scores: dict[str, dict[int, Any]] = {}
  for i, spec in enumerate(named.values()):
    path = folder / runner.file_name(spec, step)
    if not path.is_file():
      continue
    examples = result_pictures.read_scores(path)
    if any(len(x.get('depths', ())) == 1 for x in examples):
      size = spec.options.get('size', specs.TEXT_FIELDS['size'].default)
      scores.setdefault(spec.name, {})[size] = examples
    if (picture := result_pictures.confusion(examples)) is not None:
      drawn[f'-{i}-{spec.name}-confusion'] = picture
  for name, of_sizes in scores.items():
    drawn[f'-{name}-depth'] = result_pictures.by_depth(of_sizes)
  return drawn


def _number(value: float) -> str:
  """A value with four digits behind the point, or four in all."""
  return f'{value:.4f}' if abs(value) < 1e5 else f'{value:.4g}'


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags, __doc__)
