"""The command `python -m hope.describe`; see `hope.commands.describe`."""

from hope.commands.describe import start

if __name__ != '__main__':
  # An import would put this module in the place of the function.
  raise ImportError(
    'hope.describe is a command: run `python -m hope.describe`, or call '
    '`hope.describe(config)`.'
  )
start()
