"""The mesh of a run: its axes, its devices, and the batches on it.

Axes, outermost first:

  data    rows of a batch; parameters are replicated along it
  fsdp    rows of a batch too; parameters and optimizer state are sharded along
          it, and a layer's are all-gathered when the layer is computed
  seq     tokens of a row between the mixers, heads within them
  tensor  heads of a mixer, hidden units of a level

Over several slices, which a slow network joins, `data` is the axis that
crosses them.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np

from hope.fields import field
from hope.parts import Divided

AXES = ('data', 'fsdp', 'seq', 'tensor')
# Rows of a batch lie along these, tokens of a row along `seq`.
BATCH = ('data', 'fsdp')

Config = ml_collections.ConfigDict | ml_collections.FrozenConfigDict


@dataclasses.dataclass(frozen=True)
class MeshOptions:
  """Devices along every axis."""

  data: int | None = field(
    None,
    'Devices along it: rows of a batch. None: all that are left.',
    minimum=1,
    maximum=2**20,
  )
  fsdp: int = field(
    1,
    'Devices along it: rows of a batch too; parameters and optimizer state '
    'are split along it.',
    minimum=1,
    maximum=2**20,
  )
  seq: int = field(
    1,
    'Devices along it: tokens of a row between the mixers, heads within.',
    minimum=1,
    maximum=2**20,
  )
  tensor: int = field(
    1,
    'Devices along it: heads of a mixer, hidden units of a level.',
    minimum=1,
    maximum=2**20,
  )
  slices: int = field(
    1,
    'Slices, joined by a slow network, that the data axis crosses.',
    minimum=1,
    maximum=2**20,
  )


def _nearest(wanted: int, allowed: Sequence[int]) -> int:
  return min(allowed, key=lambda n: (abs(n - wanted), n))


def _divisors(n: int) -> list[int]:
  return [k for k in range(1, n + 1) if n % k == 0]


def shape(
  config: Config, count: int, *, partly: bool = False
) -> dict[str, int]:
  """The size of every axis.

  Args:
    config: with the fields `mesh`, `data.batch_size` and `train.accumulate`.
    count: devices.
    partly: whether devices may stay unused if `mesh.data` is None and the batch
      does not divide over all of them.

  Raises:
    ValueError: if the axes do not multiply to the devices, or the batch does
      not divide, with the nearest choice that does.
  """
  sizes = {axis: config.mesh[axis] for axis in AXES}
  slices, rows = config.mesh.slices, config.data.batch_size
  parts = max(config.train.accumulate, 1)  # a lower one is refused later
  rows //= parts
  for axis in (*AXES[1:], 'slices'):
    if config.mesh[axis] < 1:
      raise ValueError(f'mesh.{axis}={config.mesh[axis]} must be at least 1.')
  others = math.prod(sizes[axis] for axis in AXES[1:])
  if count % others:
    axis = max(AXES[1:], key=lambda axis: sizes[axis])
    rest = others // sizes[axis]
    if count % rest == 0:
      advice = f'mesh.{axis}={_nearest(sizes[axis], _divisors(count // rest))}'
    else:
      advice = ', '.join(f'mesh.{axis}=1' for axis in AXES[1:])
    raise ValueError(
      f'mesh.fsdp={sizes["fsdp"]} x mesh.seq={sizes["seq"]} x mesh.tensor='
      f'{sizes["tensor"]} = {others} does not divide the {count} devices; try '
      f'{advice}.'
    )
  if sizes['data'] is None:
    sizes['data'] = count // others
    if partly and others == 1:
      fit = [n for n in range(1, count + 1) if rows % n == 0]
      sizes['data'] = max(fit)
  elif sizes['data'] * others != count:
    raise ValueError(
      f'mesh.data={sizes["data"]} x mesh.fsdp={sizes["fsdp"]} x mesh.seq='
      f'{sizes["seq"]} x mesh.tensor={sizes["tensor"]} = '
      f'{sizes["data"] * others} devices, but there are {count}; try mesh.data='
      f'{count // others}.'
    )
  if sizes['data'] % slices:
    raise ValueError(
      f'mesh.slices={slices} does not divide mesh.data={sizes["data"]}; try '
      f'mesh.slices={_nearest(slices, _divisors(sizes["data"]))}.'
    )
  split = sizes['data'] * sizes['fsdp']
  if rows % split:
    below = max(rows // split, 1) * split * parts
    raise ValueError(
      f'data.batch_size={config.data.batch_size} in train.accumulate={parts} '
      f'parts has {rows} sequences at a time, which do not divide over '
      f'mesh.data={sizes["data"]} x mesh.fsdp={sizes["fsdp"]}; try '
      f'data.batch_size={below}.'
    )
  return sizes


def check_sizes(config: Config, sizes: Iterable[Divided]) -> None:
  """Raises ValueError if the axes do not divide the sizes of a model.

  Args:
    config: resolved.
    sizes: that the axes must divide.
  """
  mesh = config.mesh
  for name, size, axes in sizes:
    parts = math.prod(mesh[axis] for axis in axes)
    if size % parts:
      axis = max(axes, key=lambda axis: mesh[axis])
      others = parts // mesh[axis]
      fit = [n for n in range(1, size + 1) if size % (n * others) == 0] or [1]
      near = min(fit, key=lambda n: abs(n - mesh[axis]))
      given = ' x '.join(f'mesh.{axis}={mesh[axis]}' for axis in axes)
      raise ValueError(
        f'{given} does not divide {name}={size}; try mesh.{axis}={near}.'
      )


def _slice_of(device: jax.Device) -> int:
  """The slice of a device: on CPUs a process stands for one, on GPUs a node."""
  if device.platform == 'cpu':
    return device.process_index
  return getattr(device, 'slice_index', 0)


def make_mesh(
  config: Config, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh of a configuration.

  Args:
    config: see `shape`.
    devices: None: those of all processes; in a run of one process, as many of
      them as divide the batch where `mesh` is left at its defaults.

  Raises:
    ValueError: see `shape`.
  """
  partly = devices is None and jax.process_count() == 1
  devices = list(jax.devices() if devices is None else devices)
  sizes = shape(config, len(devices), partly=partly)
  devices = devices[: math.prod(sizes.values())]
  slices, on_cpu = config.mesh.slices, devices[0].platform == 'cpu'
  on_tpu = devices[0].platform == 'tpu'
  found = len({_slice_of(device) for device in devices})
  # Only a TPU's number of slices must be stated: the networks of CPUs and GPUs
  # join all devices alike.
  if slices != found and (on_tpu or slices > 1):
    raise ValueError(
      f'mesh.slices={slices}, but the devices are in {found}; try mesh.slices='
      f'{found}.'
    )
  if slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (sizes['data'] // slices, *(sizes[axis] for axis in AXES[1:])),
      (slices, 1, 1, 1),
      devices,
      process_is_granule=on_cpu,
      allow_split_physical_axes=True,
    )
  else:
    grid = mesh_utils.create_device_mesh(
      tuple(sizes.values()), devices, allow_split_physical_axes=True
    )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def one_device() -> Mesh:
  """The first local device alone."""
  grid = np.array(jax.local_devices()[:1]).reshape((1,) * len(AXES))
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _parts(mesh: Mesh) -> tuple[np.ndarray, int]:
  """(shards of a batch on this process's devices, number of all shards).

  A host of a TPU is a block of the torus: its shards need not be neighbours.
  """
  count = math.prod(mesh.shape[axis] for axis in BATCH)
  owner = np.vectorize(lambda device: device.process_index)(mesh.devices)
  mine = (owner.reshape(count, -1) == jax.process_index()).any(axis=1)
  return np.flatnonzero(mine), count


def rows(mesh: Mesh, batch_size: int) -> list[int]:
  """The rows of a batch that this process reads: those its devices hold.

  Processes along `seq` and `tensor` hold the same rows, and each reads them.

  Args:
    mesh: of the run.
    batch_size: rows of all processes.
  """
  parts, count = _parts(mesh)
  size = batch_size // count
  return (parts[:, None] * size + np.arange(size)).reshape(-1).tolist()


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """How a batch [rows, tokens, ...] lies on the mesh."""
  return NamedSharding(mesh, PartitionSpec(BATCH, 'seq'))


def put_batch(batch: Any, mesh: Mesh) -> Any:
  """The batch of all processes, from the rows that this one has read.

  Args:
    batch: tree of arrays [rows, tokens, ...], of the rows that `rows` says.
    mesh: of the run.

  Returns:
    Arrays of all rows, split over the mesh.
  """
  sharding = batch_sharding(mesh)
  parts, count = _parts(mesh)

  def put(x):
    x = np.asarray(x)
    size = x.shape[0] // len(parts)

    def part(index):
      start = int(np.searchsorted(parts, (index[0].start or 0) // size)) * size
      return x[(slice(start, start + size), *index[1:])]

    whole = (size * count, *x.shape[1:])
    return jax.make_array_from_callback(whole, sharding, part)

  return jax.tree.map(put, batch)
