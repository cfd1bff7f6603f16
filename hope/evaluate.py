"""The command `python -m hope.evaluate`; see `hope.commands.evaluate`."""

from hope.commands.evaluate import start

if __name__ != '__main__':
  # An import would put this module in the place of the function.
  raise ImportError(
    'hope.evaluate is a command: run `python -m hope.evaluate`, or call '
    '`hope.evaluate(run)`.'
  )
start()
