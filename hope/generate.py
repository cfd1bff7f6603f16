"""The command `python -m hope.generate`; see `hope.commands.generate`."""

from hope.commands.generate import start

if __name__ != '__main__':
  # An import would put this module in the place of the function.
  raise ImportError(
    'hope.generate is a command: run `python -m hope.generate`, or call '
    '`hope.generate(run, prompt)`.'
  )
start()
