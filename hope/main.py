"""Trains a model: `python -m hope.main --config=FILE --workdir=DIR`.

Exit codes: 0 done, or terminated and saved; 1 failed; 2 something that the
user can mend. Of one of several processes (`--distributed`), also 42 terminated
and saved; 75 another process, a device or the network failed; 83 stuck. After
these three, and after a signal, the same command goes on.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from hope import command_line

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Experiment file, with arguments after a colon.',
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run; a run found there is continued.'
)
_DESCRIBE = flags.DEFINE_bool(
  'describe', False, 'Print the table of levels and stop.'
)


_DISTRIBUTED = flags.DEFINE_string(
  'distributed',
  'off',
  "Other processes of the run: 'off' (none), 'auto' (as the cluster says), or "
  "'HOST:PORT,COUNT,ID'.",
)


def main(argv):
  """Flags and nothing else."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  logging.set_verbosity(logging.WARNING)

  from hope import config as config_lib  # after the flags, as jax is slow
  from hope import data as data_lib
  from hope import levels
  from hope.parallel import devices, multihost
  from hope.training import loop

  devices.use_all_cores()
  try:
    multihost.start(_DISTRIBUTED.value)
    if _DESCRIBE.value:
      data = data_lib.open_data(_CONFIG.value, _WORKDIR.value)
      config = config_lib.resolve(_CONFIG.value, data.vocab_size)
      print(levels.table(config))
      return
    if not _WORKDIR.value:
      raise ValueError('--workdir=DIR is missing: where shall the run be kept?')
    done = loop.run(_CONFIG.value, _WORKDIR.value)
  except Exception as error:
    multihost.fail(error)
  stopped = not done and _DISTRIBUTED.value != 'off'
  multihost.finish(multihost.PREEMPTED if stopped else multihost.DONE)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  command_line.run(main)
