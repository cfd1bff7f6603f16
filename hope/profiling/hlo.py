"""What a compiled program moves: bytes of its memory, and its collectives.

The compiler's own count of costs counts the body of a loop once. Here a loop
counts as often as it runs, which its condition says, and a slice of a large
array counts as the bytes that are read or written.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from typing import Any, NamedTuple

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'token': 0, 'opaque': 0}
# These move nothing themselves.
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all partition-id '
  'replica-id opt-barrier add-dependency while conditional call async-done '
  'async-update domain'.split()
)
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAME = re.compile(r'%([\w.-]+)')


def program_bytes(compiled: Any) -> int:
  """Bytes of a device that a run needs: arguments, results, temporaries.

  Args:
    compiled: of `jax.jit(...).lower(...).compile()`.
  """
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


class Array(NamedTuple):
  """An array of a program.

  Attributes:
    dtype: as in 'bf16'.
    dims: its shape.
    layout: order of dimensions, tiles, and the memory that it is in.
  """

  dtype: str
  dims: tuple[int, ...]
  layout: str

  @property
  def nbytes(self) -> int:
    """Bytes, without the padding of tiles."""
    bits = _BITS.get(self.dtype) or int(
      (re.findall(r'\d+', self.dtype) or [0])[0]
    )
    return math.prod(self.dims) * bits // 8

  @property
  def in_main_memory(self) -> bool:
    """Whether it is not in the memory beside the cores (TPU's VMEM)."""
    return not re.search(r'S\([1-9]\d*\)', self.layout)


class Instruction(NamedTuple):
  """One line: its name, its arrays, opcode, operands, and the rest of it.

  `literal` is what a constant is, and the number of a parameter.
  """

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  literal: str
  rest: str

  def called(self, attribute: str) -> str | None:
    """The computation that an attribute names."""
    found = re.search(rf'{attribute}=%([\w.-]+)', self.rest)
    return found[1] if found else None

  @property
  def op_name(self) -> str:
    """Where it comes from, as 'jit(step)/while/body/dot_general'."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ''


class Collective(NamedTuple):
  """A collective of a program, run `times` times.

  Attributes:
    kind: of `COLLECTIVES`.
    nbytes: of its largest side, on one device, each time.
    times: that a run of the program runs it.
    op_name: where it comes from.
  """

  kind: str
  nbytes: int
  times: int
  op_name: str


def _balanced(text: str, start: int) -> int:
  """The place behind the bracket that closes the one at start."""
  depth = 0
  for place in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[place], 0)
    if not depth:
      return place + 1
  return len(text)


def _parse_line(line: str) -> Instruction | None:
  found = re.match(r'\s+(?:ROOT )?%([\w.-]+) = ', line)
  if not found:
    return None
  start = found.end()
  end = _balanced(line, start) if line[start] == '(' else line.index(' ', start)
  shape = line[start:end]
  opcode = re.match(r'\s*([\w-]+)\(', line[end:])
  if not opcode:
    return None
  begin = end + opcode.end() - 1
  stop = _balanced(line, begin)
  arrays = tuple(
    Array(dtype, tuple(map(int, filter(None, dims.split(',')))), layout or '')
    for dtype, dims, layout in _ARRAY.findall(shape)
  )
  return Instruction(
    name=found[1],
    arrays=arrays,
    opcode=opcode[1],
    operands=tuple(_NAME.findall(line[begin:stop])),
    literal=line[begin + 1 : stop - 1],
    rest=line[stop:],
  )


class Program:
  """A compiled program, from its text (`compiled.as_text()`)."""

  def __init__(self, text: str):
    """Reads the text; the entry computation must be in it."""
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.roots: dict[str, str] = {}
    name, entry, current = '', None, None
    for line in text.splitlines():
      head = re.match(r'(ENTRY )?%([\w.-]+) \(', line)
      if head and line.rstrip().endswith('{'):
        current = self.computations.setdefault(head[2], {})
        name = head[2]
        entry = name if head[1] else entry
      elif line.startswith('}'):
        current = None
      elif current is not None and (instruction := _parse_line(line)):
        current[instruction.name] = instruction
        if line.lstrip().startswith('ROOT '):
          self.roots[name] = instruction.name
    if entry is None:
      raise ValueError('The text has no entry computation.')
    self._entry = entry

  def trip_count(self, loop: Instruction) -> int:
    """How often a loop runs: to the constant that its condition compares with.

    Raises:
      ValueError: if its condition has no such constant.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
      return int(known[1])
    names, numbers, compared = [loop.called('condition')], [], False
    for name in names:
      for instruction in self.computations[name or ''].values():
        if inner := instruction.called('calls'):
          names.append(inner)
        compared |= 'direction=LT' in instruction.rest
        if (
          instruction.opcode == 'constant' and instruction.arrays[0].dims == ()
        ):
          numbers.append(instruction.literal)
    if not compared or len(numbers) != 1 or not numbers[0].isdigit():
      raise ValueError(f'How often the loop {loop.name} runs is not known.')
    return int(numbers[0])

  @functools.cached_property
  def instructions(self) -> list[tuple[str, Instruction, int]]:
    """All that runs: (computation, instruction, times), loops unrolled.

    Of the branches of a conditional all are listed, as if each ran.
    """
    found, waiting = [], [(self._entry, 1)]
    while waiting:
      name, times = waiting.pop()
      for instruction in self.computations[name].values():
        found.append((name, instruction, times))
        if instruction.opcode == 'while':
          body = instruction.called('body')
          waiting.append((body, times * self.trip_count(instruction)))
        elif instruction.opcode == 'conditional':
          branches = re.search(
            r'branch_computations=\{([^}]*)\}', instruction.rest
          )
          names = (
            _NAME.findall(branches[1])
            if branches
            else [
              instruction.called('true_computation'),
              instruction.called('false_computation'),
            ]
          )
          waiting += [(branch, times) for branch in names]
        elif instruction.opcode in ('call', 'async-start'):
          called = instruction.called('to_apply') or instruction.called('calls')
          waiting.append((called, times))
    return found

  def collectives(self) -> list[Collective]:
    """The collectives of a run, largest traffic first.

    The TPU's compiler splits a collective into parts that run beside other
    operations, also in loops between its start and its end; it is listed once.
    """
    found: dict[str, Collective] = {}
    for name, instruction, times in self.instructions:
      where, inner = name, [instruction]
      if instruction.opcode == 'fusion':
        where = instruction.called('calls') or ''
        inner = list(self.computations.get(where, {}).values())
      kept = {x.opcode for x in inner}
      for x in inner:
        kind = x.opcode.removesuffix('-start')
        if kind not in COLLECTIVES:
          continue
        sides = [
          sum(a.nbytes for a in x.arrays),
          sum(a.nbytes for y in self._operands(where, x) for a in y),
        ]
        if x.opcode.endswith('-start') and kind != 'all-reduce':
          sides[0] -= sides[1]  # its result holds its operands too
        if kind == 'all-reduce' and x is not instruction:
          # A sum of which every device keeps a part.
          kind = 'reduce-scatter' if 'dynamic-slice' in kept else kind
        channel = re.search(r'channel_id=(\d+)', x.rest)
        key = f'channel {channel[1]}' if channel else f'{where}/{x.name}'
        if key not in found or times < found[key].times:
          found[key] = Collective(kind, max(sides), times, x.op_name)
    return sorted(found.values(), key=lambda c: -c.nbytes * c.times)

  def main_memory_bytes(self) -> int:
    """Bytes read from and written to the main memory of a device in a run."""
    moved = sum(
      times * self._moved(name, instruction)
      for name, instruction, times in self.instructions
    )
    return moved + sum(2 * c.nbytes * c.times for c in self.collectives())

  def estimated_cycles(self) -> int:
    """Cycles of a run, one operation after the other, as the TPU's compiler
    estimates each; 0 if it does not say.
    """
    return sum(
      times * int(cycles[1])
      for _, instruction, times in self.instructions
      if (cycles := _CYCLES.search(instruction.rest))
    )

  def _operands(
    self, name: str, instruction: Instruction
  ) -> list[tuple[Array, ...]]:
    computation = self.computations[name]
    return [
      computation[x].arrays for x in instruction.operands if x in computation
    ]

  def _moved(self, name: str, instruction: Instruction) -> int:
    """Bytes that one run of an instruction moves."""
    kind = instruction.opcode.removesuffix('-start')
    if kind in _FREE or kind in COLLECTIVES or kind.endswith('-done'):
      return 0
    operands = self._operands(name, instruction)
    read, written = map(_size, operands), _size(instruction.arrays)
    if instruction.opcode.endswith('-start'):
      return sum(read)
    if instruction.opcode == 'dynamic-slice':
      return 2 * written
    if instruction.opcode == 'dynamic-update-slice':
      return 2 * _size(operands[1])
    inner = self.computations.get(instruction.called('calls') or '')
    if instruction.opcode != 'fusion' or inner is None:
      return sum(read) + written
    return self._fusion(instruction, operands, inner)

  def _fusion(
    self,
    fusion: Instruction,
    operands: list[tuple[Array, ...]],
    inner: dict[str, Instruction],
  ) -> int:
    users = collections.defaultdict(list)
    for instruction in inner.values():
      for place, operand in enumerate(instruction.operands):
        users[operand].append((instruction, place))
    parameters = sorted(
      (x for x in inner.values() if x.opcode == 'parameter'),
      key=lambda x: int(x.literal),
    )
    total = 0
    for parameter, arrays in zip(parameters, operands, strict=False):
      whole, part = _size(arrays), 0
      for user, place in users[parameter.name]:
        if user.opcode in ('dynamic-slice', 'slice', 'gather') and not place:
          part += user.arrays[0].nbytes
        elif user.opcode == 'dynamic-update-slice' and not place:
          pass  # written in place
        elif user.opcode in (*COLLECTIVES, 'tuple'):
          pass  # a part of a collective, or handed on as it is
        else:
          part += whole
      total += min(whole, part)
    root = inner[self.roots[fusion.called('calls') or '']]
    roots = (
      [inner[x] for x in root.operands] if root.opcode == 'tuple' else [root]
    )
    for array, made in zip(fusion.arrays, roots, strict=False):
      size = _size((array,))
      if made.opcode in (*COLLECTIVES, 'parameter'):
        size = 0
      if made.opcode == 'dynamic-update-slice':
        size = min(size, _size(inner[made.operands[1]].arrays))
      total += size
    return total


def _size(arrays: tuple[Array, ...]) -> int:
  """Bytes of those in main memory."""
  return sum(array.nbytes for array in arrays if array.in_main_memory)
