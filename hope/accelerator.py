r"""Equality, speed and memory on this machine's GPU or TPU, in six minutes.

  python -m hope.accelerator                    # all that fits in six minutes
  python -m hope.accelerator --minutes=15 --output=runs/h100

What it runs, in order of importance: matmul peak and memory bandwidth, equality
with float64 (`hope.profiling.equality`), training steps of Hope, of its Gated
DeltaNet setting and of attention (bfloat16, 2,048 tokens, random data), and
decoding.
Each part has a deadline. Parts that did not fit are listed with the reason. One
device is used. On a CPU, a small version runs in under a minute.

The table and OUTPUT/accelerator.json have the device, versions and settings.
The file is written after each part. The exit code is 1 if something is not
equal or failed; skipped parts do not count. Compiled programs are kept, so that
a second run gets further; the table says which programs were kept from before.

Of the requirements, only absl, flax, jax, ml_collections, numpy, optax and rich
are imported. With a GPU and nothing installed, in a new environment:

  pip install . "jax[cuda12]"
  python -m hope.accelerator
"""

from hope import command_line


def start() -> None:
  """Runs the program with the flags of the command line."""
  command_line.run_module('hope.profiling.accelerator')


if __name__ == '__main__':
  start()
