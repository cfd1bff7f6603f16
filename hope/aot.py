r"""Compiles a training step for TPUs that are not here, and says if it fits.

  pip install .[aot]
  python -m hope.aot --config=experiments/lm.py:size=1.3b,fsdp=16,seq=2 \
    --topology=v5e:16x16

The compiler is the TPU's own (libtpu, from PyPI), on a CPU machine. What it
prints are a compiler's and a roofline's numbers: no TPU has run the program.

  --fast    the compiler's lowest level: only whether it compiles, in seconds
  --search  tries meshes, batches, remat and chunk sizes; prints the best
"""

from hope import command_line
from hope.profiling.topologies import set_environment


def start() -> None:
  """Runs the program with the flags of the command line."""
  set_environment()  # before anything imports jax
  command_line.run_module('hope.profiling.aot')


if __name__ == '__main__':
  start()
