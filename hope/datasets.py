"""The command `python -m hope.datasets`; see `hope.commands.datasets`."""

from hope.commands.datasets import start

if __name__ == '__main__':
  start()
