"""Training steps compiled for other machines; see `hope.aot`."""

from collections.abc import Sequence
import itertools
import json
import math
import pathlib
import sys
import time
from typing import Any, NamedTuple

from absl import flags
import rich.box
import rich.console
import rich.table

from hope import command_line, errors
from hope.profiling.roofline import GIB, Chip, executed_flops
from hope.profiling.topologies import one_line, open_topology

_DAY = 86_400  # seconds
_VOCAB_SIZE = 257  # tokens of the byte tokenizer


class Report(NamedTuple):
  """What a compiled step needs, per chip and step unless said otherwise."""

  mesh: dict[str, int]
  chips: int
  batch_size: int
  seq_len: int
  remat: bool
  chunk_size: int
  parameters: int
  compile_seconds: float
  memory_bytes: int
  memory_limit_bytes: int
  argument_bytes: int
  temporary_bytes: int
  model_flops: float
  executed_flops: float
  main_memory_bytes: int
  collective_bytes: dict[str, int]
  collective_count: dict[str, int]
  compute_seconds: float
  memory_seconds: float
  collective_seconds: float
  step_seconds: float
  model_flops_utilisation: float
  utilisation_without_overlap: float
  estimated_seconds: float
  tokens_per_second: float
  days: float


class DoesNotCompileError(errors.ExplainedError):
  """The compiler refused a program; the message is one line."""


def compile_step(config: Any, devices: Sequence[Any], chip: Chip) -> Report:
  """Compiles the training step of a resolved configuration.

  Args:
    config: resolved.
    devices: of a topology.
    chip: that the devices are.

  Raises:
    ValueError: if the mesh does not fit the devices.
    DoesNotCompileError: with the compiler's reason, such as too little memory.
  """
  import jax
  import numpy as np

  from hope import blocks
  from hope.parallel import mesh as mesh_lib
  from hope.profiling.flops import flops_per_token
  from hope.profiling.hlo import Program, program_bytes
  from hope.training import step as step_lib

  mesh = mesh_lib.make_mesh(config, devices)
  graph, state = step_lib.abstract_state(config, mesh)
  shape = (config.data.batch_size, config.data.seq_len)
  sharding = mesh_lib.batch_sharding(mesh)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    for name, dtype in (
      ('inputs', np.int32),
      ('targets', np.int32),
      ('weights', np.float32),
      *([('starts', np.bool_)] if config.data.segments else ()),
    )
  }
  traced = step_lib.train_step(graph, config, state).trace(state, batch)
  begin = time.perf_counter()
  try:
    compiled = traced.lower().compile()
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    raise DoesNotCompileError(
      f'it does not compile: {one_line(error)}'
    ) from None
  seconds = time.perf_counter() - begin
  memory: Any = compiled.memory_analysis()
  program = Program(compiled.as_text() or '')
  kinds: dict[str, int] = {}
  counts: dict[str, int] = {}
  for c in program.collectives():
    kinds[c.kind] = kinds.get(c.kind, 0) + c.nbytes * c.times
    counts[c.kind] = counts.get(c.kind, 0) + c.times
  chips = len(devices)
  tokens = math.prod(shape)
  model = flops_per_token(config, config.data.seq_len) * tokens / chips
  executed = executed_flops(traced.jaxpr.jaxpr) / chips
  moved = program.main_memory_bytes()
  # A sum over devices takes twice what a gather of the same size takes.
  sent = sum(kinds.values()) + kinds.get('all-reduce', 0)
  times = (executed / chip.flops, moved / chip.bandwidth, sent / chip.link)
  best = max(times)
  return Report(
    mesh=dict(mesh.shape),
    chips=chips,
    batch_size=shape[0],
    seq_len=shape[1],
    remat=config.compute.remat,
    chunk_size=max(blocks.chunks(config), default=0),
    parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    compile_seconds=seconds,
    memory_bytes=program_bytes(compiled),
    memory_limit_bytes=round(chip.memory),
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    model_flops=model,
    executed_flops=executed,
    main_memory_bytes=moved,
    collective_bytes=kinds,
    collective_count=counts,
    compute_seconds=times[0],
    memory_seconds=times[1],
    collective_seconds=times[2],
    step_seconds=best,
    model_flops_utilisation=model / chip.flops / best,
    utilisation_without_overlap=model / chip.flops / sum(times),
    estimated_seconds=program.estimated_cycles() / chip.clock,
    tokens_per_second=tokens / best,
    days=config.train.steps * best / _DAY,
  )


def _gib(size: float) -> str:
  """Bytes as text, in GiB."""
  return f'{size / GIB:,.2f} GiB'


def report(result: Report, topology: str, chip: Chip) -> None:
  """Prints a result as a table, and what it assumes."""
  table = rich.table.Table(
    f'one step on {topology}', box=rich.box.SIMPLE_HEAD, show_header=True
  )
  table.add_column('', justify='right')
  share = result.memory_bytes / result.memory_limit_bytes
  rows = {
    'parameters': f'{result.parameters:,}',
    'mesh': ' x '.join(f'{k} {v}' for k, v in result.mesh.items()),
    'batch': f'{result.batch_size} x {result.seq_len:,} tokens',
    'compiled in': f'{result.compile_seconds:.0f} s',
    'memory per chip': f'{_gib(result.memory_bytes)} of '
    f'{_gib(result.memory_limit_bytes)} ({share:.0%})',
    '  of that state': _gib(result.argument_bytes),
    '  of that temporary': _gib(result.temporary_bytes),
    'model FLOPs per chip': f'{result.model_flops / 1e12:,.2f} T',
    'executed FLOPs per chip': f'{result.executed_flops / 1e12:,.2f} T',
    'main memory traffic': f'{result.main_memory_bytes / 1e9:,.1f} GB',
  }
  for kind, size in sorted(result.collective_bytes.items()):
    rows[kind] = f'{size / 1e9:,.2f} GB in {result.collective_count[kind]:,}'
  rows |= {
    'time of products': f'{result.compute_seconds * 1e3:,.1f} ms',
    'time of main memory': f'{result.memory_seconds * 1e3:,.1f} ms',
    'time of collectives': f'{result.collective_seconds * 1e3:,.1f} ms',
    'roofline time per step': f'{result.step_seconds * 1e3:,.1f} ms',
    'model FLOPs utilisation': f'{result.model_flops_utilisation:.1%} (without '
    f'overlap {result.utilisation_without_overlap:.1%})',
    "time by the compiler's estimates": f'{result.estimated_seconds:,.2f} s '
    f'({result.model_flops / chip.flops / result.estimated_seconds:.1%})'
    if result.estimated_seconds
    else '?',
    'tokens per second': f'{result.tokens_per_second:,.0f}',
    'days for train.steps': f'{result.days:,.1f}',
  }
  for name, value in rows.items():
    table.add_row(name, value)
  rich.console.Console(highlight=False).print(table, markup=False)
  print(
    'Assumed: products, main memory and collectives overlap, each at its '
    f'published peak ({chip.flops / 1e12:.0f} TFLOP/s, '
    f'{chip.bandwidth / 1e12:.2f} TB/s, {chip.link / 1e9:.0f} GB/s along one '
    'axis of the torus); traffic as the compiled program says, without the '
    'padding of tiles. A bound, not a measurement: the compiler estimates '
    'the cycles of each operation too, and their sum, one after the other and '
    'without the insides of Pallas kernels, is the other end.'
  )


def meshes(config: Any, chips: int) -> list[dict[str, int]]:
  """Fields of the meshes to try.

  Args:
    config: resolved.
    chips: of the topology.
  """
  found = []
  for fsdp, seq in itertools.product((16, 32, 8, 64, 4), (1, 2, 4, 8, 16)):
    data, rest = divmod(chips, seq * fsdp)
    divides = not rest and data and not config.data.batch_size % (data * fsdp)
    if divides and not config.model.num_heads % seq:
      found.append({'mesh.data': data, 'mesh.fsdp': fsdp, 'mesh.seq': seq})
  return found


def settings(config: Any) -> list[dict[str, Any]]:
  """Fields of the batches, remat and chunks to try, the configuration's first.

  Args:
    config: resolved.
  """
  # Imported here, as it takes seconds.
  from hope import blocks

  batch, remat = config.data.batch_size, config.compute.remat
  chunk = config.model.titans.chunk_size
  chunks = (chunk, 64 if chunk != 64 else 128)
  if chunk not in blocks.chunks(config):  # the pattern says it, or has none
    chunks = (chunk,)
  return [
    {
      'data.batch_size': batch * times,
      'compute.remat': recomputed,
      'model.titans.chunk_size': tokens,
      'model.titans.projection_chunk_size': tokens,
    }
    for times, recomputed, tokens in itertools.product(
      (1, 2), (remat, not remat), chunks
    )
  ]


def search(
  config: Any, devices: Sequence[Any], chip: Chip, tries: int, spare: float
) -> tuple[Report, dict[str, Any]]:
  """The fields of most tokens per second that fit, by the roofline.

  Half of the tries are meshes with the configuration's own settings, the others
  settings on the best of these meshes.

  Args:
    config: as loaded, not resolved.
    devices: of a topology.
    chip: that the devices are.
    tries: programs that are compiled.
    spare: share of the memory that must stay free.

  Raises:
    DoesNotCompileError: if none fits.
    ValueError: if no mesh divides the sizes.
  """
  from hope.config import resolve

  vocab_size = config.model.vocab_size or _VOCAB_SIZE
  found: list[tuple[Report, dict[str, Any]]] = []  # what fits

  def attempt(fields: dict[str, Any]) -> None:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(fields)
    try:
      result = compile_step(resolve(changed, vocab_size), devices, chip)
    except (ValueError, DoesNotCompileError) as error:
      print(f'{fields}: {one_line(error)}', flush=True)
      return
    fits = result.memory_bytes <= (1 - spare) * chip.memory
    print(
      f'{fields}: {result.memory_bytes / GIB:.2f} GiB, '
      f'{result.step_seconds * 1e3:.1f} ms, {result.tokens_per_second:,.0f} '
      f'tokens/s{"" if fits else ", does not fit"}',
      flush=True,
    )
    if fits:
      found.append((result, fields))

  def best():
    return max(found, key=lambda x: x[0].tokens_per_second)

  resolved = resolve(config, vocab_size)
  own, *others = settings(resolved)
  places = meshes(resolved, len(devices))
  if not places:
    raise ValueError(
      f'No mesh of {len(devices)} chips divides data.batch_size='
      f'{resolved.data.batch_size}; give a larger batch.'
    )
  for place in places[: (tries + 1) // 2]:
    attempt(place | own)
  place = best()[1] if found else places[0] | own
  for other in others[: tries // 2]:
    attempt(place | other)
  if not found:
    raise DoesNotCompileError(
      f'None of {tries} candidates leaves {spare:.0%} of the memory free.'
    )
  return best()


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  command_line.define_config(values)
  flags.DEFINE_string(
    'topology',
    None,
    'As in v5e:16x16, v5p:4x4x4 or h100:8.',
    required=True,
    flag_values=values,
  )
  flags.DEFINE_string(
    'gpu_target',
    '',
    'Of h100: its target_config, a file.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'fast',
    False,
    'Only whether it compiles, in seconds.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'search',
    False,
    'Look for the fastest mesh that fits.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'tries', 8, 'Programs of a search.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_float(
    'spare',
    0.2,
    'Share of the memory to stay free.',
    lower_bound=0,
    upper_bound=1,
    flag_values=values,
  )
  flags.DEFINE_string(
    'json', None, 'File to write the result to as well.', flag_values=values
  )


def main(values: flags.FlagValues) -> None:
  """Compiles what the flags say and prints it."""
  command_line.check_output(values.json)
  import jax

  from hope.config import resolve

  if values.fast:
    jax.config.update('jax_optimization_level', 'O0')
  config, found = values.config, {}
  resolved = resolve(config)
  resolved = resolve(config, resolved.model.vocab_size or _VOCAB_SIZE)
  chip, devices = open_topology(values.topology, values.gpu_target)
  if values.search:
    result, found = search(config, devices, chip, values.tries, values.spare)
  else:
    result = compile_step(resolved, devices, chip)
  if values.json:
    pathlib.Path(values.json).write_text(json.dumps(result._asdict()) + '\n')
  if values.fast:
    print(
      f'It compiles for {values.topology}: {result.parameters:,} parameters on '
      f'{result.chips} chips, in {result.compile_seconds:.0f} s. Without '
      '--fast: whether it fits, and how fast it may be.'
    )
    return
  if found:
    flags_text = ' '.join(f'--config.{k}={v}' for k, v in found.items())
    print(f'\nThe fastest that fits: {flags_text}')
  report(result, values.topology, chip)
  fits = result.memory_bytes <= (1 - values.spare) * chip.memory
  print(
    f'It {"fits" if fits else "DOES NOT FIT"} with {values.spare:.0%} of the '
    'memory to spare.'
  )
  print(json.dumps(result._asdict()))
  if not fits:
    sys.exit(1)
