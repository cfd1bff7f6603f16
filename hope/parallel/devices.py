"""Devices of one machine, and how programs are compiled for them.

On a CPU every core is a device of its own. A single device of several cores
would split each small matmul of a memory among them, which costs more than it
gains.
"""

import os

import jax
from jax.sharding import Mesh
import ml_collections

_DAY = 86_400  # seconds
_GIB = 2**30


def num_cores() -> int:
  """CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def use_all_cores() -> None:
  """Makes every CPU core a device; call it before jax touches any device.

  A number of devices that the environment sets is kept.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  chosen = 'xla_force_host_platform_device_count' in flags
  if not chosen and 'JAX_NUM_CPU_DEVICES' not in os.environ:
    jax.config.update('jax_num_cpu_devices', num_cores())


def compiler_options(mesh: Mesh) -> dict[str, bool | int | str]:
  """Options for a program that runs on the mesh."""
  if mesh.devices.flat[0].platform != 'cpu':
    return {}
  options: dict[str, bool | int | str] = {
    # YNN's reductions over rows are several times slower than XLA's own.
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_DOT',
    # Higher levels of LLVM compile for longer and give no faster loops.
    'xla_backend_optimization_level': 1,
    # The scheduler that minimises memory gives a faster program.
    'xla_cpu_enable_concurrency_optimized_scheduler': False,
  }
  if mesh.size > 1:
    options['xla_cpu_multi_thread_eigen'] = False
    # Never abort a process because a device is late, as after a suspension:
    # devices are threads of the process, and none can die alone.
    options['xla_cpu_collective_call_terminate_timeout_seconds'] = _DAY
  return options


def memory_bytes() -> int:
  """Device memory of all processes; 0 where it is unknown.

  CPU devices of a process share the memory of the machine. All processes are
  assumed to have the same.
  """
  devices = jax.local_devices()
  limits = [(x.memory_stats() or {}).get('bytes_limit', 0) for x in devices]
  here = sum(limits)
  if devices[0].platform == 'cpu' and 'SC_PHYS_PAGES' in os.sysconf_names:
    here = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return here * jax.process_count()


def least_bytes(
  config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict,
  parameters: int,
) -> int:
  """A lower bound on the memory that training needs, in bytes.

  It counts the parameters and their gradients, the batch (inputs, targets and
  weights), and the residual stream and the logits of one micro-batch.

  Args:
    config: resolved.
    parameters: lower bound on those of the model.
  """
  model, data = config.model, config.data
  tokens = data.batch_size * data.seq_len
  kept = tokens // config.train.accumulate
  kept *= model.width + (model.vocab_size or 1)
  operand = 2 if model.dtype == 'bfloat16' else 4
  return 8 * parameters + 12 * tokens + operand * kept


def check_memory(
  config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict,
  parameters: int,
) -> None:
  """Raises ValueError if a run cannot fit in the devices' memory.

  Unchecked, a batch of a billion rows would make the machine unresponsive for
  minutes before anything is compiled.

  Args:
    config: resolved.
    parameters: lower bound on those of the model, from `hope.blocks`.
  """
  check_fits(
    least_bytes(config, parameters),
    f'data.batch_size={config.data.batch_size} x data.seq_len='
    f'{config.data.seq_len} tokens of a model with model.num_layers='
    f'{config.model.num_layers} and model.width={config.model.width}',
  )


def check_fits(needed: int, what: str) -> None:
  """Raises ValueError if something needs more bytes than the devices have.

  Args:
    needed: bytes.
    what: subject of the message, in the plural.
  """
  there = memory_bytes()
  if there and needed > there:
    raise ValueError(
      f'{what} need more than {needed / _GIB:,.0f} GiB, and the devices have '
      f'{there / _GIB:,.0f} GiB; give smaller ones.'
    )
