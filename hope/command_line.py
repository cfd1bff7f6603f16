"""Starting a program: its flags, what it prints, how it ends.

A program is two functions: one defines its flags, the other runs with them.
Flags are defined when a program starts, not when it is imported, because
several programs have a flag of the same name.
"""

from collections.abc import Callable, Sequence
import gc
import importlib
import io
import os
import re
import sys
import traceback
from typing import Any

from absl import app, flags
import ml_collections
from ml_collections import config_flags

from hope import errors, experiment_files, signals
from hope.fields import Field, flat, nearest, shown

# Fields of earlier versions, and what they are now.
RENAMED = {
  'model.mixer': 'model.pattern',
  'model.titans.kernel': 'compute.kernel',
  'model.titans.self_target': 'model.titans.target',
  'model.remat': 'compute.remat',
  'train.watchdog': 'processes.watchdog',
  'data.read_ahead': 'reading.ahead',
  'data.tfds_dir': 'reading.tfds_dir',
  'train.checkpoint_every': 'checkpoint.every',
  'train.keep': 'checkpoint.keep',
  'train.keep_every': 'checkpoint.keep_every',
  'train.keep_best': 'checkpoint.keep_best',
  'train.log_every': 'log.every',
  'train.eval_every': 'evals.every',
  'train.eval_batches': 'evals.batches',
}
# Objects that are made between two searches for unreachable cycles.
_OBJECTS = 200_000
# Columns of a table that is not shown on a terminal.
_WIDTH = 100


class _ExperimentParser(config_flags.config_flags.ConfigFileFlagParser):
  """Reads an experiment, which is named or a file."""

  def parse(self, path: str) -> Any:
    config = super().parse(experiment_files.resolve(path))
    if isinstance(config, ml_collections.ConfigDict):
      _check_overrides(config, sys.argv)  # where ml_collections finds them
    return config


def _check_overrides(
  config: ml_collections.ConfigDict, argv: Sequence[str]
) -> None:
  """Raises ValueError for a flag of a field that the configuration lacks.

  ml_collections would name only the last part of the field's path.
  """
  fields = flat(config)
  for word in argv:
    match = re.match(r'--?config\.([\w.]+)', word)
    if match is None:
      continue
    path = match[1]
    # A field, or a section with fields.
    if any(f'{field}.'.startswith(f'{path}.') for field in fields):
      continue
    hint = nearest(path, fields)
    if path in RENAMED:
      hint = f' It is now {RENAMED[path]}; see CHANGELOG.md.'
    raise ValueError(f'{path} is not a field of the configuration.{hint}')


def define_config(values: flags.FlagValues) -> None:
  """Defines `--config`, which must be given, and the flags of its fields."""
  names = ', '.join(experiment_files.names())
  config_flags.DEFINE_config_file(
    'config',
    None,
    f'Experiment file, or the name of one of these: {names}. Arguments follow '
    'a colon, as in mqar:seed=1; --config.FIELD=VALUE changes a field.',
    flag_values=values,
    lock_config=True,
  )
  flag: Any = values['config']
  flag.parser = _ExperimentParser('config', lock_config=True)
  flags.mark_flag_as_required('config', flag_values=values)


def parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Reads flags.

  Args:
    values: the flags, defined.
    argv: the name of the program and its arguments.

  Raises:
    ValueError: for a mistake in one, or an argument that is not a flag.
  """
  try:
    _, *others = values(argv)
    if 'config' in values:
      _check_experiment(values['config'].value)
  except Exception as error:  # an experiment file may raise whatever
    raise ValueError(_reason(error)) from error
  if others:
    raise ValueError(f'{others[0]!r} is not a flag; flags begin with --.')


def console() -> Any:
  """A rich.console.Console as wide as the terminal, or 100 columns without one.

  Colours are used on a terminal alone.
  """
  import rich.console  # most commands print no table

  found = rich.console.Console(highlight=False)
  if not found.is_terminal:
    found = rich.console.Console(highlight=False, width=_WIDTH)
  return found


def check_output(path: str | None) -> None:
  """Makes sure that a result can be written, before there is one.

  Args:
    path: of a file; None: none is to be written.

  Raises:
    ValueError: if it cannot be written.
  """
  if path is None:
    return
  Field('', '').check('--json', path)
  try:
    with open(path, 'a'):
      pass
  except OSError as error:
    raise ValueError(
      f'--json={shown(path)} cannot be written: {error.strerror}.'
    ) from None


def _check_experiment(config: Any) -> None:
  """Raises an error if an experiment file gave no configuration."""
  if not isinstance(config, ml_collections.ConfigDict):
    getattr(config, 'keys', None)  # raises why the file cannot be read
    raise ValueError('--config: get_config() must return a ConfigDict.')


def _place(error: BaseException) -> str:
  """Where in an experiment file an error was raised; '' if in none."""
  places = [
    f'{frame.filename}:{frame.lineno}'
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.name in ('get_config', '<module>')
  ]
  return places[-1] if places else ''


def _reason(error: BaseException) -> str:
  """Why flags cannot be read, in a line.

  An error of an experiment file comes wrapped, with its traceback as text.
  """
  text = str(error.args[0] if error.args else error)
  cause: BaseException | None = error
  while cause is not None:
    if (place := _place(cause)) and not isinstance(cause, OSError):
      kind = '' if isinstance(cause, ValueError) else type(cause).__name__
      text = f'{place}: {kind}{": " if kind else ""}{cause}'
      break
    hidden = cause.__suppress_context__
    cause = cause.__cause__ or (None if hidden else cause.__context__)
  # ml_collections lists all fields of a configuration.
  text = re.sub(r'Other fields present: "\{.*\}"', '', text, flags=re.DOTALL)
  return ' '.join(text.split())


class _Output(io.FileIO):
  """The standard output; once it is closed, what is written is dropped.

  The reader of a run's output may go away, as in `| head -1`. The run must not
  end because of that.
  """

  def write(self, data) -> int | None:
    try:
      return super().write(data)
    except BrokenPipeError:
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self.fileno())
      os.close(nowhere)
      return super().write(data)


def _open_output() -> None:
  """Makes printing safe: unknown letters become '?', closed pipes no error."""
  old: Any = sys.stdout
  if old is None:  # closed before the start
    return
  output = _Output(old.fileno(), 'w', closefd=False)
  sys.stdout = io.TextIOWrapper(
    output if old.write_through else io.BufferedWriter(output),
    encoding=old.encoding,
    errors='replace',
    line_buffering=old.line_buffering,
    write_through=old.write_through,  # PYTHONUNBUFFERED
  )


def _use_huge_pages() -> None:
  """Restarts this command with huge pages, which glibc gives if asked.

  glibc reads the setting only when a process starts. With huge pages, a
  training step on the CPU takes a tenth to a quarter less time. The process
  keeps its id. A setting in the environment is left as it is.
  """
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _define_shown(define_flags: Callable[[flags.FlagValues], None]) -> None:
  """Defines flags, and makes `--help` list them.

  absl lists only the flags that the started script defines itself, and a
  console script defines none.
  """
  own = flags.FlagValues()
  define_flags(own)
  define_flags(flags.FLAGS)
  for name in own:
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def run(
  main: Callable[[flags.FlagValues], Any],
  define_flags: Callable[[flags.FlagValues], None],
  doc: str | None = None,
) -> None:
  """Runs a program and ends the process.

  A mistake that the user can fix ends in one line on the standard error and
  exit code 2. Compiled programs are kept for the next start.

  Args:
    main: the program, given its flags.
    define_flags: defines the flags in the `FlagValues` that it is given.
    doc: what `--help` says above the flags. None: the docstring of the started
      script (a console script has none).
  """
  _use_huge_pages()
  signals.watch()
  _open_output()
  _define_shown(define_flags)
  if doc is not None:
    sys.modules['__main__'].__doc__ = doc

  def read(argv: Sequence[str]) -> flags.FlagValues:
    try:
      parse(flags.FLAGS, argv)
    except ValueError as error:
      errors.say(error)
      print(f'{argv[0]} --help lists the flags.', file=sys.stderr)
      sys.exit(errors.MISUSED)
    return flags.FLAGS

  def act(values: flags.FlagValues) -> None:
    from hope import compilation_cache  # after the flags, as jax is slow

    # Tracing a program makes many objects and leaves few cycles among them, yet
    # a fifth of its time goes into looking for these.
    gc.set_threshold(_OBJECTS)
    try:
      compilation_cache.use()
      main(values)
    except Exception as error:
      sys.exit(errors.report(error))

  app.run(act, flags_parser=read)


def run_module(name: str) -> None:
  """Runs the program of a module, which has `main` and `define_flags`.

  The module is imported when the process has its final settings: a module that
  imports jax would be imported twice otherwise.

  Args:
    name: of the module, as 'hope.profiling.throughput'.
  """
  run(
    lambda values: importlib.import_module(name).main(values),
    lambda values: importlib.import_module(name).define_flags(values),
  )
