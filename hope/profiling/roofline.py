"""A roofline: peaks of chips, and the operations that a program runs."""

import math
from typing import Any, NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """What a roofline needs of a chip; published figures.

  Attributes:
    flops: bfloat16 operations per second.
    bandwidth: bytes per second of its main memory.
    link: bytes per second, both ways together, along one axis of the torus.
    memory: bytes that the compiler may use.
    clock: cycles per second, of `flops` and the chip's matrix units.
  """

  flops: float
  bandwidth: float
  link: float
  memory: float
  clock: float


CHIPS = {
  'v4': Chip(
    flops=2.75e14,
    bandwidth=1.228e12,
    link=0.9e11,
    memory=30.75 * GIB,
    clock=1.05e9,
  ),
  'v5e': Chip(
    flops=1.97e14,
    bandwidth=8.19e11,
    link=0.9e11,
    memory=15.75 * GIB,
    clock=1.5e9,
  ),
  'v5p': Chip(
    flops=4.59e14,
    bandwidth=2.765e12,
    link=1.8e11,
    memory=95.74 * GIB,
    clock=1.75e9,
  ),
  # Its link is NVLink; its memory is the share that jax takes by default; its
  # compiler does not estimate cycles.
  'h100': Chip(
    flops=9.89e14,
    bandwidth=3.35e12,
    link=9e11,
    memory=0.75 * 79.1 * GIB,
    clock=1.83e9,
  ),
  'v6e': Chip(
    flops=9.18e14,
    bandwidth=1.638e12,
    link=1.8e11,
    memory=31.25 * GIB,
    clock=1.75e9,
  ),
}
# Passes of a matmul of float32 operands at these precisions.
_PASSES = {'HIGH': 3, 'HIGHEST': 6}


def executed_flops(jaxpr: Any) -> float:
  """Operations of the matmuls that a program runs, on all devices.

  As `matmul_flops`, but matmuls of high precision count as the passes that
  they take.

  Args:
    jaxpr: of `jax.make_jaxpr`, or `traced.jaxpr`.
  """
  return matmul_flops(jaxpr, count_passes=True)


def matmul_flops(jaxpr: Any, *, count_passes: bool = False) -> float:
  """Operations of the matmuls in a program, two per multiply-add.

  Loops count as often as they run, so that what a backward pass recomputes is
  counted; of the branches of a condition the most expensive counts; a program
  that every device runs counts for all of them.

  Args:
    jaxpr: of `jax.make_jaxpr`, or `traced.jaxpr`.
    count_passes: whether a matmul of high precision counts as often as the
      number of passes that it takes.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    params = equation.params
    name = equation.primitive.name
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      size = math.prod(shape[axis] for axis in contracted)
      passes = _passes(params['precision']) if count_passes else 1
      total += 2 * equation.outvars[0].aval.size * size * passes
      continue
    inner = [
      matmul_flops(x, count_passes=count_passes) for x in _jaxprs(params)
    ]
    if not inner:
      continue
    if name == 'cond':
      total += max(inner)
    elif name == 'scan':
      total += params['length'] * sum(inner)
    elif name == 'shard_map':  # the program of one device
      total += params['mesh'].size * sum(inner)
    elif name == 'pallas_call':
      total += math.prod(params['grid_mapping'].grid) * sum(inner)
    else:
      total += sum(inner)
  return total


def _passes(precision: Any) -> int:
  """Passes of a matmul at the precision of its operands, one or a pair."""
  both = precision if isinstance(precision, tuple) else (precision,)
  return max(_PASSES.get(getattr(p, 'name', ''), 1) for p in both)


def _jaxprs(params: dict[str, Any]) -> list[Any]:
  """The programs within an equation, from its parameters."""
  from jax.extend import core

  found = []
  for value in params.values():
    for x in value if isinstance(value, tuple | list) else (value,):
      if isinstance(x, core.ClosedJaxpr):
        found.append(x.jaxpr)
      elif isinstance(x, core.Jaxpr):
        found.append(x)
  return found
