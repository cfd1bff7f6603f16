"""Trains a model: `python -m hope.main --config=FILE --workdir=DIR`.

Exit codes: 0 done, or terminated and saved; 1 failed; 2 something that the
user can mend. Of one of several processes (`--distributed`), also 42 terminated
and saved; 75 another process, a device or the network failed; 83 stuck. After
these three, and after a signal, the same command goes on.

Ctrl-C and SIGTERM save after the step that is under way. Before the first step
is done there is nothing to save, and a second one does not wait: they end the
program at once, with 130 and 143 (of several processes, the first SIGTERM with
42).
"""

from absl import flags, logging

from hope import command_line


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  command_line.define_config(values)
  flags.DEFINE_string(
    'workdir',
    None,
    'Directory of the run; a run found there is continued.',
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


def main(values: flags.FlagValues) -> None:
  """Trains as the flags say."""
  logging.set_verbosity(logging.WARNING)

  from hope import config as config_lib  # after the flags, as jax is slow

  if values['help-config'].value:
    print(config_lib.menu(values.config))
    return

  from hope import data as data_lib
  from hope import levels
  from hope.parallel import devices, multihost
  from hope.training import loop

  devices.use_all_cores()
  try:
    multihost.start(values.distributed, values.distributed_seconds)
    if values.describe:
      config = config_lib.resolve(values.config)
      data = data_lib.open_data(config, values.workdir)
      print(levels.table(config_lib.resolve(config, data.vocab_size)))
      return
    if not values.workdir:
      raise ValueError('--workdir=DIR is missing: where shall the run be kept?')
    done = loop.run(values.config, values.workdir)
  except Exception as error:
    multihost.fail(error)
  stopped = not done and values.distributed != 'off'
  multihost.finish(multihost.PREEMPTED if stopped else multihost.DONE)


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags)


if __name__ == '__main__':
  start()
