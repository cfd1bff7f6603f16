"""Devices that are not here, as their compiler sees them."""

import math
import os
import pathlib
import re
from typing import Any

from hope.profiling.roofline import CHIPS, Chip

# Slices that can be had.
_FLAT_SHAPES = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBE_SHAPES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8'),
  *('8x8x16', '8x16x16', '16x16x16'),
)


def set_environment() -> None:
  """Lets jax compile for what is not here; call it before importing jax."""
  os.environ.update(
    JAX_PLATFORMS='cpu',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
    # Without these, jax asks one of Google's servers and complains.
    TPU_ACCELERATOR_TYPE='v5litepod-4',
    TPU_WORKER_HOSTNAMES='localhost',
    # A program for devices that are not here cannot be loaded again.
    JAX_ENABLE_COMPILATION_CACHE='false',
  )


def open_topology(name: str, gpu_target: str = '') -> tuple[Chip, list[Any]]:
  """The chip and the devices of a topology, as in 'v5e:16x16' or 'h100:8'.

  Args:
    name: of the topology.
    gpu_target: of GPUs, a file with the text of their GpuTargetConfigProto:
      what XLA's topology of such a machine has as `target_config`. Their
      compiler is another package, jax[cuda12], in an environment of its own.

  Raises:
    ValueError: if there is no such topology, or no compiler for it.
  """
  generation, _, shape = name.partition(':')
  if generation == 'h100':
    if not shape.isdigit():
      raise ValueError(
        f'--topology={name!r}: write h100:N for N GPUs, as in h100:8.'
      )
    target = pathlib.Path(gpu_target)
    if not target.is_file():
      raise ValueError(
        f'--topology={name} needs --gpu_target=FILE, the GpuTargetConfigProto '
        f'of such a GPU as text, and {gpu_target!r} is not a file. A machine '
        'with such a GPU writes it: experiments/README.md says how.'
      )
    return CHIPS['h100'], _open(
      name,
      'cuda',
      target_config=target.read_text(),
      topology=f'1x1x{shape}',
    )
  if generation not in CHIPS or not shape:
    raise ValueError(
      f'--topology={name!r}: write GENERATION:AxB or GENERATION:AxBxC, with '
      f'one of {", ".join(CHIPS)}, as in v5e:16x16 or v5p:4x4x4.'
    )
  flat = generation in ('v5e', 'v6e')
  shapes = _FLAT_SHAPES if flat else _CUBE_SHAPES
  if shape not in shapes:
    chips = _chips(shape)
    near = min(shapes, key=lambda x: abs(_chips(x) - chips))
    raise ValueError(
      f'--topology={name!r} does not exist; try {generation}:{near}. Shapes of '
      f'{generation}: {", ".join(shapes)}.'
    )
  options: dict[str, Any] = {}
  if generation == 'v4':
    options['chip_config_name'] = 'megacore'
  return CHIPS[generation], _open(name, 'tpu', topology_name=name, **options)


def _chips(shape: str) -> int:
  """The chips of a shape such as 4x4x4; what is not a number is ignored."""
  return math.prod(map(int, re.findall(r'[1-9]\d*', shape)))


def _open(name: str, platform: str, **options: Any) -> list[Any]:
  """The devices of a topology, from the compiler of its platform."""
  from jax.experimental import topologies

  try:
    return list(
      topologies.get_topology_desc(platform=platform, **options).devices
    )
  except Exception as error:
    advice = 'Is its compiler installed (pip install ".[aot]")?'
    if platform == 'cuda':
      advice = (
        'Is its compiler installed (pip install "jax[cuda12]"), and was the '
        'file of --gpu_target written by the same version of it?'
      )
    raise ValueError(
      f'--topology={name} cannot be compiled for: {one_line(error)} {advice}'
    ) from None


def one_line(error: BaseException) -> str:
  """The first line of an error that says something, at most 300 letters."""
  lines = [x.strip() for x in str(error).splitlines() if x.strip()]
  text = lines[0] if lines else type(error).__name__
  return text if len(text) <= 300 else text[:300] + '...'
