"""A fast state as a file.

Choice: NumPy's .npz, whose arrays are read without running any code of the
file: one array for each leaf, by its path, and a header, which names the model
that the state belongs to.
"""

import io
import json
import os
from typing import Any, NamedTuple
import zipfile

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from hope.run import manifest

# Name of the header among the arrays, and the version of the format.
_HEADER, _FORMAT = 'hope', 1


class Header(NamedTuple):
  """What a file says of its state.

  Attributes:
    model: fingerprint of the model.
    written_by: the model, for people.
  """

  model: str
  written_by: str


def write(path: str | os.PathLike[str], state: Any, header: Header) -> None:
  """Writes a state; a file at the path is replaced once the new one is whole.

  Raises:
    OSError: if it cannot be written.
  """
  text = json.dumps({'format': _FORMAT, **header._asdict()})
  arrays: dict[str, Any] = {
    name: np.asarray(x) for name, x in manifest.leaves_by_path(state).items()
  }
  arrays[_HEADER] = np.frombuffer(text.encode(), np.uint8)
  content = io.BytesIO()
  np.savez(content, **arrays)
  target = epath.Path(path)
  partial = target.with_name(target.name + '.tmp')
  partial.write_bytes(content.getvalue())
  partial.replace(target)


def read(
  path: str | os.PathLike[str],
) -> tuple[Header, dict[str, np.ndarray]]:
  """Returns (header, arrays by their paths).

  Raises:
    ValueError: for a file that is damaged, or no state of this version.
    OSError: if there is no such file.
  """
  content = io.BytesIO(epath.Path(path).read_bytes())
  try:
    with np.load(content, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays.pop(_HEADER).tobytes())
    version = header.pop('format')
    found = Header(**header)
  except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
    raise ValueError(
      f'{path} is not a state of a model, or is damaged; write it anew with '
      'save_state.'
    ) from None
  if version != _FORMAT:
    raise ValueError(
      f'{path} has format {version}, and this version reads {_FORMAT}.'
    )
  return found, arrays


def fill(wanted: Any, arrays: dict[str, np.ndarray]) -> Any | None:
  """A tree like `wanted`, filled from arrays; None if they do not fit.

  Args:
    wanted: tree of the shapes [...] and dtypes of a state.
    arrays: [...] by their paths in the tree.
  """
  leaves = manifest.leaves_by_path(wanted)
  if arrays.keys() != leaves.keys() or any(
    (arrays[name].shape, arrays[name].dtype) != (leaf.shape, leaf.dtype)
    for name, leaf in leaves.items()
  ):
    return None
  return jax.tree.unflatten(
    jax.tree.structure(wanted), [jnp.asarray(arrays[name]) for name in leaves]
  )
