r"""Compares mixers at one size: speed, memory, decoding, compilation.

  python -m hope.compare --config=throughput --json=compare.json
  python -m hope.compare --config=throughput --pattern='titans+cms' \
    --pattern='attention+swiglu'
  python -m hope.compare --config=lm:size=760m --sizes

All models have the parameters of the first, by the width of their
feed-forwards. Their training steps are timed in turn, so that a busy machine
slows all alike. A picture is drawn beside the JSON file. --sizes counts
parameters, FLOPs and bytes, and times nothing.
"""

from hope import command_line


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run_module('hope.profiling.compare')


if __name__ == '__main__':
  start()
