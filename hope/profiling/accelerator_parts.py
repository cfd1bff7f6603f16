"""What `hope.accelerator` runs on a device, and in what order."""

from collections.abc import Callable
import importlib.metadata
import os
import pathlib
import platform
from typing import Any, NamedTuple

import jax

from hope.config import base_config, resolve
from hope.parallel import mesh as mesh_lib
from hope.profiling import equality, throughput

# Versions that a result may depend on.
_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'ml-collections', 'libtpu'),
  *('jax-cuda12-plugin', 'jax-cuda13-plugin', 'nvidia-cudnn-cu12'),
  *('nvidia-cudnn-cu13', 'nvidia-cublas-cu12', 'nvidia-cublas'),
)
# Variables that change what is compiled, or how memory is used.
_VARIABLES = (
  *('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE', 'JAX_PLATFORMS'),
  *('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'),
  *('XLA_PYTHON_CLIENT_PREALLOCATE', 'XLA_PYTHON_CLIENT_ALLOCATOR'),
  *('CUDA_VISIBLE_DEVICES', 'TPU_VISIBLE_CHIPS'),
)
_GIB = 2**30
# Bytes of a device, by preset, that a sequence of 2,048 tokens takes about.
_SEQUENCE_BYTES = {'115m': 1.2 * _GIB, '350m': 2.2 * _GIB}
_MAX_BATCH = 32


class Part(NamedTuple):
  """Something to run in its own time.

  Attributes:
    name: of it, for people.
    kind: of RUNNERS.
    arguments: of the runner.
    share: most of the whole time that it may take.
  """

  name: str
  kind: str
  arguments: dict[str, Any]
  share: float


class SkippedError(Exception):
  """Why a part cannot be run on this device."""


Note = Callable[[str], None]


def _driver() -> str | None:
  """What the NVIDIA driver says of itself."""
  path = pathlib.Path('/proc/driver/nvidia/version')
  return path.read_text().splitlines()[0] if path.is_file() else None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def machine(note: Note) -> dict[str, Any]:
  """The device that is used, versions, and settings in force."""
  note('the device')
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  versions = {name: _version(name) for name in _PACKAGES}
  config: Any = jax.config
  variables = {name: os.environ.get(name) for name in _VARIABLES}
  return {
    'platform': device.platform,
    'device': device.device_kind,
    'devices_used': 1,
    'devices': jax.local_device_count(),
    'memory_limit_bytes': stats.get('bytes_limit'),
    'runtime': ' '.join(device.client.platform_version.split()),
    'driver': _driver(),
    'os': platform.platform(),
    'python': platform.python_version(),
    'versions': {k: v for k, v in versions.items() if v},
    'variables': {k: v for k, v in variables.items() if v is not None},
    'jax_default_matmul_precision': config.jax_default_matmul_precision,
  }


def peaks(size: int, triad_bytes: int, note: Note) -> dict[str, Any]:
  """Matmul rates in FLOP/s, of squares of this size, and bytes per second."""
  rates = {}
  for name, dtype, precision in (
    ('bfloat16', 'bfloat16', None),
    ('float32_default', 'float32', None),
    ('float32_highest', 'float32', 'highest'),
  ):
    note(f'matmul, {name}')
    rates[f'matmul_{name}_flops_per_second'] = throughput.matmul_peak(
      size, dtype=dtype, precision=precision
    )
  note('memory bandwidth')
  bandwidth = throughput.memory_bandwidth(triad_bytes)
  return {
    **rates,
    'memory_bytes_per_second': bandwidth,
    'default_float32_matmuls_are': equality.default_arithmetic(),
  }


def compare(case: str, arithmetic: str, large: bool, note: Note):
  """See `equality.compare`."""
  sizes = equality.LARGE if large else equality.SMALL
  return equality.compare(case, arithmetic, sizes, note)


def largest_that_fits(
  measure: Callable[[int], dict[str, Any]], batch_size: int
) -> dict[str, Any]:
  """Measures with the first of batch_size, half of it, ... that fits.

  Raises:
    SkippedError: if one sequence does not fit.
  """
  too_large = []
  while batch_size:
    try:
      return {**measure(batch_size), 'too_large_batch_sizes': too_large}
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
    too_large.append(batch_size)
    batch_size //= 2
  raise SkippedError(
    f'not enough memory for a batch of {", ".join(map(str, too_large))}'
  )


def _resolve(fields: dict[str, Any], vocab_size: int) -> Any:
  config = base_config()
  config.update_from_flattened_dict(fields)
  return resolve(config, vocab_size)


def train(
  fields: dict[str, Any],
  vocab_size: int,
  batch_size: int,
  steps: int,
  note: Note,
) -> dict[str, Any]:
  """Times training steps; see `throughput.time_steps`."""

  def measure(batch_size):
    config = _resolve(fields | {'data.batch_size': batch_size}, vocab_size)
    return throughput.time_steps(
      config,
      steps,
      mesh_lib.one_device(),
      lambda stage: note(f'{stage}, batch {batch_size}'),
    )

  return largest_that_fits(measure, batch_size)


def decode(
  fields: dict[str, Any],
  vocab_size: int,
  batch_size: int,
  steps: int,
  contexts: tuple[int, int],
  note: Note,
) -> dict[str, Any]:
  """Times decoding; see `throughput.measure_decode`."""
  config = _resolve(fields, vocab_size)
  return throughput.measure_decode(config, steps, contexts, batch_size, note)


RUNNERS: dict[str, Callable[..., dict[str, Any]]] = {
  'machine': machine,
  'peaks': peaks,
  'equality': compare,
  'training': train,
  'decoding': decode,
}


def _model(size: str, setting: str, **fields: Any) -> dict[str, Any]:
  """Fields of a model that is timed."""
  return {
    'model.preset': size,
    'model.dtype': 'bfloat16',
    **equality.SETTINGS[setting],
    **fields,
  }


def plan(found: dict[str, Any]) -> list[Part]:
  """The parts for an accelerator, the most important first.

  Args:
    found: what `machine` says.
  """
  limit = found['memory_limit_bytes'] or 16 * _GIB
  tpu = found['platform'] == 'tpu'

  def equal(case, arithmetic, share=0.15):
    arguments = {'case': case, 'arithmetic': arithmetic, 'large': True}
    return Part(f'{case}, {arithmetic}', 'equality', arguments, share)

  def training(size, setting, share, kernel='xla'):
    batch = _MAX_BATCH
    while batch > 1 and batch * _SEQUENCE_BYTES[size] > limit:
      batch //= 2
    fields = {'data.seq_len': 2048, 'compute.kernel': kernel}
    arguments = {
      'fields': _model(size, setting, **fields),
      'vocab_size': 32_000,
      'batch_size': batch,
      'steps': 5,
    }
    name = setting if kernel == 'xla' else f'{setting} ({kernel})'
    return Part(f'{name} {size}', 'training', arguments, share)

  def decoding(setting, batch, share=0.2):
    fields = {'data.seq_len': 64, 'model.attention.max_context': 2048}
    arguments = {
      'fields': _model('115m', setting, **fields),
      'vocab_size': 32_000,
      'batch_size': batch,
      'steps': 5,
      'contexts': (64, 2048),
    }
    name = f'{setting} 115m, batch {batch}'
    return Part(name, 'decoding', arguments, share)

  sizes = {'size': 8192, 'triad_bytes': min(_GIB, round(limit / 8))}
  return [
    Part('peaks', 'peaks', sizes, 0.15),
    equal('rule, chunks', 'highest'),
    equal('solve', 'highest'),
    equal('hope', 'highest', 0.25),
    training('115m', 'hope', 0.4),
    training('115m', 'gated delta net', 0.25),
    training('115m', 'attention', 0.2),
    *([equal('titans layer, pallas', 'highest')] if tpu else []),
    *([training('115m', 'hope', 0.3, 'pallas')] if tpu else []),
    decoding('hope', 1),
    equal('hope', 'bfloat16'),
    equal('hope', 'default'),
    equal('in-context levels', 'highest'),
    training('350m', 'hope', 0.4),
    training('350m', 'gated delta net', 0.25),
    training('350m', 'attention', 0.2),
    decoding('hope', 8),
    equal('titans layer', 'highest'),
    equal('gated delta net', 'highest'),
    equal('attention', 'highest'),
    equal('hope, token by token', 'highest'),
    equal('rule, chunks', 'default'),
    equal('rule, tokens', 'highest'),
    *(
      decoding(setting, batch, 0.1)
      for setting in ('attention', 'gated delta net')
      for batch in (1, 8)
    ),
  ]


def small_plan() -> list[Part]:
  """Parts of the same kinds, for a CPU: they show that the command works."""
  sizes = {
    'model.num_layers': 2,
    'model.width': 16,
    'model.num_heads': 2,
    'model.titans.chunk_size': 8,
    'model.titans.projection_chunk_size': 8,
    'model.cms.periods': (1,),
    'data.seq_len': 16,
  }
  common = {'vocab_size': 61, 'batch_size': 2, 'steps': 2}
  parts = [Part('peaks', 'peaks', {'size': 512, 'triad_bytes': 2**25}, 1.0)]
  for case in ('rule, chunks', 'solve', 'attention'):
    arguments = {'case': case, 'arithmetic': 'highest', 'large': False}
    parts.append(Part(f'{case}, highest', 'equality', arguments, 1.0))
  for setting in ('hope', 'attention'):
    fields = _model('tiny', setting, **sizes)
    arguments = {'fields': fields, **common}
    parts.append(Part(f'{setting} tiny', 'training', arguments, 1.0))
  fields = _model('tiny', 'attention', **sizes)
  arguments = {'fields': fields, **common, 'contexts': (16, 32)}
  name = 'attention tiny, batch 2'
  return [*parts, Part(name, 'decoding', arguments, 1.0)]
