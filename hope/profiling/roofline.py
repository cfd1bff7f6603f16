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
  'v4': Chip(2.75e14, 1.228e12, 0.9e11, 30.75 * GIB, 1.05e9),
  'v5e': Chip(1.97e14, 8.19e11, 0.9e11, 15.75 * GIB, 1.5e9),
  'v5p': Chip(4.59e14, 2.765e12, 1.8e11, 95.74 * GIB, 1.75e9),
  # Its link is NVLink; its memory is the share that jax takes by default; its
  # compiler does not estimate cycles.
  'h100': Chip(9.89e14, 3.35e12, 9e11, 0.75 * 79.1 * GIB, 1.83e9),
  'v6e': Chip(9.18e14, 1.638e12, 1.8e11, 31.25 * GIB, 1.75e9),
}
# A product of float32 operands at these precisions takes so many passes.
_PASSES = {'HIGH': 3, 'HIGHEST': 6}


def executed_flops(jaxpr: Any) -> float:
  """Operations of the matrix products that a program runs, on all devices.

  Loops count as often as they run, so that what is computed anew in a backward
  pass is counted; products of high precision count as the passes they take.

  Args:
    jaxpr: of `jax.make_jaxpr`, or `traced.jaxpr`.
  """
  from jax.extend import core

  total = 0.0
  for equation in jaxpr.eqns:
    params = equation.params
    name = equation.primitive.name
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      size = math.prod(shape[axis] for axis in contracted)
      precision = params['precision'] or (None,)
      passes = max(
        _PASSES.get(getattr(p, 'name', ''), 1)
        for p in (precision if isinstance(precision, tuple) else (precision,))
      )
      total += 2 * equation.outvars[0].aval.size * size * passes
      continue
    inner = []
    for value in params.values():
      for x in value if isinstance(value, tuple | list) else (value,):
        if isinstance(x, core.ClosedJaxpr):
          x = x.jaxpr
        if isinstance(x, core.Jaxpr):
          inner.append(executed_flops(x))
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
