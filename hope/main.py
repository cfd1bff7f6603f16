"""The command `python -m hope.main`; see `hope.commands.train`."""

from hope.commands.train import start

if __name__ == '__main__':
  start()
