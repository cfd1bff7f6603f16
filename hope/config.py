"""The configuration of a run.

An experiment file (`experiments/*.py`) defines `get_config(arg='')`, which
starts from `base_config()`, changes what it needs and returns the result. The
fields of a section are stated in a dataclass beside what uses them; SECTIONS
names these. `python -m hope.main --config=FILE --help-config` prints them all.
They can be overridden on the command line:

  python -m hope.main --config=experiments/smoke.py --config.train.steps=50
"""

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict
import rich.padding
import rich.table
import rich.text

from hope import blocks, command_line
from hope.data.options import DataOptions, ReadingOptions
from hope.data.packing import alignment
from hope.evaluation import specs
from hope.evaluation.options import EvalsOptions
from hope.feedforward import FEEDFORWARD
from hope.fields import (
  SEED,
  Field,
  declared,
  field,
  flat,
  listed,
  nearest,
  shown,
)
from hope.mixers import MIXERS
from hope.model import PRESETS, ComputeOptions, ModelOptions
from hope.optimizer import (
  RULES,
  OptimizerOptions,
  TrainOptions,
  defaults,
  parse_options,
)
from hope.parallel.mesh import MeshOptions, check_sizes
from hope.parallel.multihost import ProcessesOptions
from hope.run.options import CheckpointOptions, LogOptions
from hope.run.workdir import ANOTHER_VERSION, HOW, is_identity
from hope.sampling import SampleOptions
from hope.tasks.options import TaskOptions


@dataclasses.dataclass(frozen=True)
class RunOptions:
  """Options of no section."""

  seed: int = field(
    0, 'Seed of parameters, of data order and of sampling.', **SEED
  )


# The dataclass of every section; '' is the configuration itself. Those that say
# how a run is computed, not what, are named in `hope.run.workdir.HOW`.
SECTIONS: dict[str, type] = {
  '': RunOptions,
  'model': ModelOptions,
  **{f'model.{name}': part.options for name, part in MIXERS.items()},
  **{f'model.{name}': part.options for name, part in FEEDFORWARD.items()},
  'data': DataOptions,
  'data.task': TaskOptions,
  'optimizer': OptimizerOptions,
  'train': TrainOptions,
  'compute': ComputeOptions,
  'mesh': MeshOptions,
  'processes': ProcessesOptions,
  'reading': ReadingOptions,
  'checkpoint': CheckpointOptions,
  'log': LogOptions,
  'evals': EvalsOptions,
  'sample': SampleOptions,
}
# Every field by its path, as 'train.steps'.
FIELDS: dict[str, Field] = {
  f'{section}.{name}'.removeprefix('.'): stated
  for section, options in SECTIONS.items()
  for name, stated in declared(options).items()
}


def base_config() -> ml_collections.ConfigDict:
  """Returns the default configuration of a run, locked.

  A field that may be None is a typed placeholder.
  """
  config = ml_collections.ConfigDict()
  for path, stated in FIELDS.items():
    *sections, name = path.split('.')
    section = config
    for part in sections:
      if part not in section:
        section[part] = ml_collections.ConfigDict()
      section = section[part]
    if stated.optional:
      section[name] = config_dict.placeholder(stated.kind)
    if stated.default is not None:
      section[name] = stated.default
  config.lock()
  return config


def parse_arg(arg: str, **known: Any) -> ml_collections.ConfigDict:
  """Reads the part of `--config=file.py:a=1,b=x` that follows the colon.

  Args:
    arg: comma-separated `name=value` pairs.
    **known: the names allowed, with their defaults; a value is read as the
      type of its default. A `Field` has a default and bounds.

  Raises:
    ValueError: for a name that has no default or a value of another type, or
      out of bounds.
  """
  allowed = {
    name: x if isinstance(x, Field) else Field(x, '')
    for name, x in known.items()
  }
  values = {name: stated.default for name, stated in allowed.items()}
  for pair in filter(None, arg.split(',')):
    name, _, text = pair.partition('=')
    if name not in allowed:
      raise ValueError(
        f'{shown(name)} is not an argument of this config; allowed: '
        f'{", ".join(sorted(allowed))}.{nearest(name, allowed)}'
      )
    kind = allowed[name].kind
    try:
      values[name] = (
        {'true': True, 'false': False}[text.lower()]
        if kind is bool
        else kind(text)
      )
    except (KeyError, ValueError):
      raise ValueError(
        f'{shown(pair)}: {name} must be of type {kind.__name__}.'
      ) from None
    values[name] = allowed[name].check(name, values[name])
  return ml_collections.ConfigDict(values)


def menu(config: ml_collections.ConfigDict) -> str:
  """Every field of a configuration, as text that fits the terminal.

  For each section it says whether another value makes another run; for each
  field its value, meaning and bounds, and its default if the value differs.

  Args:
    config: from an experiment file; its values need not be right.
  """
  values = flat(config)
  console = command_line.console()
  with console.capture() as capture:
    for section, options in SECTIONS.items():
      effect = 'another value makes another run'
      if section.partition('.')[0] in HOW:
        effect = 'may change between two starts of a run'
      heading = f'{section}.NAME'.removeprefix('.')
      console.print(rich.text.Text(f'--config.{heading}: {effect}', 'bold'))
      grid = rich.table.Table.grid(padding=(0, 2, 0, 0))
      for width in (21, 14, None):
        grid.add_column(width=width, overflow='fold')
      for name, stated in declared(options).items():
        path = f'{section}.{name}'.removeprefix('.')
        grid.add_row(name, *_described(path, stated, values))
      console.print(rich.padding.Padding(grid, (0, 0, 1, 2)))
  return '\n'.join(line.rstrip() for line in capture.get().splitlines())


def _described(
  path: str, stated: Field, values: dict[str, Any]
) -> tuple[rich.text.Text, rich.text.Text]:
  """The value of a field, and what is said of it."""
  value = values.get(path)
  notes = [stated.allowed]
  if value != stated.default:
    notes.append(f'default: {_written(stated.default)}')
  if path == 'optimizer.options':
    name = values.get('optimizer.name')
    known = defaults(name) if name in RULES else {}
    given = ', '.join(f'{key}={known[key]!r}' for key in known)
    notes.append(f'arguments of {name}: {given}')
  if not is_identity(path) and path.partition('.')[0] not in HOW:
    notes.append('may change between two starts of a run')
  text = rich.text.Text(f'{stated.doc}\n')
  text.append('; '.join(notes), 'dim')
  style = '' if value == stated.default else 'bold'
  return rich.text.Text(_written(value), style), text


def _written(value: Any) -> str:
  """A value as one writes it in a flag: with quotes only where they matter."""
  if isinstance(value, bool):
    return str(value).lower()
  text = shown(value)
  plain = isinstance(value, str) and value == value.strip() != ''
  return text[1:-1] if plain and text == f"'{value}'" else text


def check_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Checks every field alone.

  Args:
    config: from an experiment file or a workdir.

  Returns:
    The values by their paths, in the types of the fields.

  Raises:
    ValueError: for a field that is missing, unknown or has a value that it
      cannot have; one line that names it.
  """
  given = flat(config)
  if missing := sorted(FIELDS.keys() - given.keys()):
    raise ValueError(f'{listed(missing)} missing: {ANOTHER_VERSION}')
  for path in given:
    if path not in FIELDS:
      raise ValueError(
        f'{path} is not a field of the configuration.{nearest(path, FIELDS)}'
      )
  return {path: FIELDS[path].check(path, x) for path, x in given.items()}


def resolve(
  config: ml_collections.ConfigDict, vocab_size: int | None = None
) -> ml_collections.FrozenConfigDict:
  """Checks every field, alone and together, and fills those left at None.

  Everything else receives the result, first of all `make_mesh` and `open_data`.
  Only then is the data's tokenizer known: `resolve(config, data.vocab_size)`
  fills in the last field.

  Args:
    config: from an experiment file, or resolved.
    vocab_size: of the data's tokenizer. None: model.vocab_size stays as it is.

  Raises:
    ValueError: naming the field, what was given, what is allowed.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    raise ValueError('A configuration must be a ConfigDict.')
  values = check_fields(config.copy_and_resolve_references())
  config = base_config()
  config.update_from_flattened_dict(values)
  model = config.model
  sizes = ('num_layers', 'width', 'num_heads')
  for name, value in zip(sizes, PRESETS[model.preset], strict=True):
    if model[name] is None:
      model[name] = value
  _check_together(config)
  if model.vocab_size is None and vocab_size is not None:
    model.vocab_size = vocab_size
  if model.vocab_size is not None and model.vocab_size < (vocab_size or 0):
    raise ValueError(
      f'model.vocab_size={model.vocab_size} is below the {vocab_size} tokens '
      'of the tokenizer; leave it at None.'
    )
  return ml_collections.FrozenConfigDict(config)


def _check_together(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for the first fields that cannot work together.

  Args:
    config: each of whose fields can work alone, with its sizes filled in.
  """
  model = config.model
  if model.width % model.num_heads:
    near = [n for n in range(1, model.width + 1) if model.width % n == 0]
    near = sorted(near, key=lambda n: abs(n - model.num_heads))[:2]
    raise ValueError(
      f'model.num_heads={model.num_heads} does not divide '
      f'model.width={model.width}; try {" or ".join(map(str, near))}.'
    )
  blocks.check(config)
  compresses = config.data.source == 'synthetic:compression'
  if model.decoder != compresses:
    raise ValueError(
      f'model.decoder={model.decoder} and data.source={config.data.source}: '
      'the decoder sees the whole sequence, which is the task of '
      'synthetic:compression alone, and no other model can have that task; '
      'set model.decoder=True for it, False for all else.'
    )
  if config.data.batch_size % config.train.accumulate:
    raise ValueError(
      f'train.accumulate={config.train.accumulate} does not divide '
      f'data.batch_size={config.data.batch_size}.'
    )
  if config.optimizer.warmup_steps > config.train.steps:
    raise ValueError(
      f'optimizer.warmup_steps={config.optimizer.warmup_steps} must lie '
      f'between 0 and train.steps={config.train.steps}.'
    )
  if config.data.segments:
    alignment(config)
  try:
    specs.parse_all(config.evals.tasks)
  except ValueError as error:
    raise ValueError(f'evals.tasks: {error}') from None
  check_sizes(config, blocks.divided(config))
  parse_options(config.optimizer.name, config.optimizer.options)
