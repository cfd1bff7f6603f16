"""Trains a model: `hope-train --config=NAME_OR_FILE --workdir=DIR`.

  hope-train --config=smoke                           an experiment by its name
  hope-train --config=mqar:seed=1 --config.train.steps=50  with other settings
  hope-train --config=my/file.py --workdir=runs/mine  a file of your own
  hope-train --config=smoke --describe                what learns, and how often
  hope-train --config=smoke --help-config             what can be set

`python -m hope.main` is the same. Given the workdir of a run, the command
continues that run; the default workdir is `runs/` and the experiment.

Exit codes: 0 done, or terminated and saved; 1 failed; 2 something that the
user can fix. Of one of several processes (`--distributed`), also 42 terminated
and saved; 75 another process, a device or the network failed; 83 stuck. After
these three, and after a signal, the same command goes on.

Ctrl-C and SIGTERM save after the current step. Before the first step is done
there is nothing to save: the signal ends the program at once, and so does a
second signal at any time. The exit codes are then 130 and 143 (of several
processes, 42 for the first SIGTERM).
"""

from typing import Any

from absl import flags, logging

from hope import command_line, experiment_files


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  command_line.define_config(values)
  flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run; a run found there is continued. Without it: '
    'runs/NAME, by the experiment and its arguments.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'help-config',
    False,
    'Print every field of the configuration and stop.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'describe',
    False,
    'Print the table of levels and stop.',
    flag_values=values,
  )
  flags.DEFINE_string(
    'distributed',
    'off',
    "Other processes of the run: 'off' (none), 'auto' (as the cluster says), "
    "or 'HOST:PORT,COUNT,ID'.",
    flag_values=values,
  )
  flags.DEFINE_float(
    'distributed_seconds',
    300,
    'How long to wait for the other processes at the start; then the exit code '
    'is 75.',
    flag_values=values,
  )


def _default_workdir(values: flags.FlagValues) -> str:
  """The workdir of a run for which none was given; says which it is.

  Choice: not where other processes take part, as they may have another current
  folder.

  Raises:
    ValueError: of several processes.
  """
  if values.distributed != 'off':
    raise ValueError(
      '--workdir=DIR is missing: where shall the processes keep the run?'
    )
  flag: Any = values['config']
  workdir = experiment_files.default_workdir(flag.config_filename)
  print(f'The run is kept in {workdir}.')
  return workdir


def main(values: flags.FlagValues) -> None:
  """Trains as the flags say."""
  logging.set_verbosity(logging.WARNING)

  if values['help-config'].value:
    from hope import config as config_lib  # after the flags, as jax is slow

    print(config_lib.menu(values.config))
    return

  from hope.commands.describe import describe
  from hope.parallel import devices, multihost
  from hope.training import loop

  devices.use_all_cores()
  try:
    workdir = values.workdir
    if not (workdir or values.describe):
      workdir = _default_workdir(values)
    multihost.start(values.distributed, values.distributed_seconds)
    if values.describe:
      print(describe(values.config, workdir))
      return
    done = loop.run(values.config, workdir)
  except Exception as error:
    multihost.fail(error)
  stopped = not done and values.distributed != 'off'
  multihost.finish(multihost.PREEMPTED if stopped else multihost.DONE)


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags, __doc__)
