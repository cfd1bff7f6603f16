"""Devices of one machine, and how programs are compiled for them.

On a CPU every core is a device of its own. One device over several cores would
split each of a memory's small matrix products among them, which costs more than
it gains.
"""

import os

import jax
from jax.sharding import Mesh

_DAY = 86_400  # seconds


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
    # The library's sums over rows take several times as long as XLA's own.
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_DOT',
    # Higher levels of LLVM compile for longer, and their loops are no faster.
    'xla_backend_optimization_level': 1,
    # An order of instructions that needs less memory at a time is faster.
    'xla_cpu_enable_concurrency_optimized_scheduler': False,
  }
  if mesh.size > 1:
    options['xla_cpu_multi_thread_eigen'] = False
    # A process that is suspended for a while is not to be aborted: its devices
    # are threads, none of which can die alone.
    options['xla_cpu_collective_call_terminate_timeout_seconds'] = _DAY
  return options
