"""Measures how fast a configuration trains and decodes on this machine.

  python -m hope.throughput --config=experiments/throughput.py
  python -m hope.throughput --config=experiments/throughput.py --decode

Tokens are random, so no corpus is needed. The last line of the output is the
result as JSON.
"""

from hope import command_line


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run_module('hope.profiling.throughput')


if __name__ == '__main__':
  start()
