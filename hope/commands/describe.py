"""What learns in a model and in its optimizer, and how often.

  hope-describe --config=smoke
  hope-describe --config=lm:size=1.3b --config.data.source='text:books/*.txt'

`python -m hope.describe` is the same. Nothing is trained. The data are opened,
because their tokenizer decides the size of the vocabulary.
"""

from typing import Any

from absl import flags, logging

from hope import command_line


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  command_line.define_config(values)


def describe(config: Any, workdir: str | None = None) -> str:
  """The table of levels of an experiment.

  Args:
    config: of an experiment.
    workdir: that keeps its tokenizer; None: none does.

  Raises:
    ValueError: for a configuration or data that no run could have.
  """
  from hope import config as config_lib  # after the flags, as jax is slow
  from hope import data as data_lib
  from hope import levels

  config = config_lib.resolve(config)
  data = data_lib.open_data(config, workdir)
  return levels.table(config_lib.resolve(config, data.vocab_size))


def main(values: flags.FlagValues) -> None:
  """Prints the table."""
  logging.set_verbosity(logging.WARNING)
  print(describe(values.config))


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags, __doc__)
