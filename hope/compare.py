r"""Compares mixers at one size: speed, memory, decoding, compilation.

  python -m hope.compare --config=throughput --json=compare.json
  python -m hope.compare --config=throughput --pattern='titans+cms' \
    --pattern='attention+swiglu'
  python -m hope.compare --config=lm:size=760m --sizes
  python -m hope.compare --config=throughput:num_layers=2,batch_size=1 \
    --length=2048 --length=16384 --json=growth.json

All models have the parameters of the first, by the width of their
feed-forwards. Their training steps are timed in turn, so that a busy machine
slows all alike. A picture is drawn beside the JSON file. --sizes counts
parameters, FLOPs and bytes, and times nothing. --length, given several times,
times training steps with rows of these lengths instead: how the cost of a token
grows.
"""

from hope import command_line


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run_module('hope.profiling.compare')


if __name__ == '__main__':
  start()
