"""Files as documents: those that a glob names, each real file once."""

from collections.abc import Iterable, Iterator
import glob
import os
import stat

from absl import logging
import numpy as np

# Bytes that are read at each place of a file that is too long to hash whole.
_BLOCK = 1 << 16


class FileSource:
  """The non-empty files of a list, in the order of their relative paths.

  A file that has several names (links, overlapping globs, other case) is one
  document: its name is the path without links, or the first of its paths.
  """

  def __init__(self, root: str, paths: Iterable[str]):
    """Lists the files.

    Args:
      root: Folder that the names are relative to.
      paths: Files under `root`.

    Raises:
      ValueError: A file cannot be read, or is a pipe or a device.
    """
    names = {os.path.relpath(p, root).replace(os.sep, '/'): p for p in paths}
    same_file: dict[object, list[tuple[str, str, int]]] = {}
    for name, path in sorted(names.items()):
      try:
        status = os.stat(path)
      except OSError as error:
        raise _unreadable(path, error.strerror) from error
      if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, 'not a regular file')
      if not os.access(path, os.R_OK):
        raise _unreadable(path, 'permission denied')
      # Some network file systems have no inode numbers.
      key = os.path.normcase(os.path.realpath(path))
      if status.st_ino:
        key = status.st_dev, status.st_ino
      if status.st_size:
        same_file.setdefault(key, []).append((name, path, status.st_size))
    self._files = sorted(_without_links(f, root) for f in same_file.values())
    others = sum(map(len, same_file.values())) - len(self._files)
    if others:
      logging.info('%d names of files that have another name too.', others)

  def __len__(self) -> int:
    return len(self._files)

  def name(self, index: int) -> str:
    """Returns the path relative to the root, with /."""
    return self._files[index][0]

  def read(self, index: int) -> bytes:
    """Returns the bytes of the file."""
    return self.sample(index, None)

  def sample(self, index: int, limit: int | None) -> bytes:
    """Returns the bytes, or so many of them in blocks at even distances."""
    _, path, size = self._files[index]
    try:
      with open(path, 'rb') as file:
        if limit is None or size <= limit:
          return file.read()
        blocks = []
        for start in np.linspace(0, size - _BLOCK, limit // _BLOCK, dtype=int):
          file.seek(start)
          blocks.append(file.read(_BLOCK))
        return b''.join(blocks)
    except OSError as error:
      raise _unreadable(path, error.strerror) from error

  def num_bytes(self) -> int:
    """Returns the bytes of all documents."""
    return sum(size for _, _, size in self._files)

  def listing(self) -> str:
    """Returns names and sizes."""
    return '\n'.join(f'{size} {name}' for name, _, size in self._files)


def matching_files(pattern: str) -> list[str]:
  """Returns the files that a glob names, in which `**` crosses folders.

  Like `glob.glob`, but below `**` each real folder is entered once: a folder
  that links to its parents would send `glob.glob` round and round.
  """
  return [path for path in _expand(pattern) if not os.path.isdir(path)]


def _expand(pattern: str) -> Iterator[str]:
  parts = pattern.split(os.sep)
  if '**' not in parts:
    yield from glob.iglob(pattern)
    return
  place = parts.index('**')
  rest = os.sep.join(parts[place + 1 :]) or '*'
  for start in glob.iglob(os.sep.join([*parts[:place], ''])) if place else ['']:
    for folder in _folders(start):
      yield from _expand(os.path.join(glob.escape(folder), rest))


def _folders(start: str) -> Iterator[str]:
  """Yields a folder and those below it, links after all others."""
  seen, links = set(), [start]
  while links:
    folders = [links.pop(0)]
    while folders:
      folder = folders.pop()
      try:
        status = os.stat(folder or os.curdir)
        below = sorted(os.listdir(folder or os.curdir))
      except OSError as error:
        raise _unreadable(folder, error.strerror) from error
      if (status.st_dev, status.st_ino) in seen:
        continue
      seen.add((status.st_dev, status.st_ino))
      yield folder
      for name in below:
        path = os.path.join(folder, name)
        if not name.startswith('.') and os.path.isdir(path):
          (links if os.path.islink(path) else folders).append(path)


def _without_links(
  files: list[tuple[str, str, int]], root: str
) -> tuple[str, str, int]:
  """Returns that of a file's entries whose path has no links, or the first."""
  if len(files) > 1:
    real = os.path.realpath(files[0][1])
    own = os.path.relpath(real, os.path.realpath(root)).replace(os.sep, '/')
    files = [f for f in files if f[0] == own] or files
  return files[0]


def _unreadable(path: str, reason: str | None) -> ValueError:
  return ValueError(
    f'data.source: cannot read {path!r}: {reason}; fix the file or leave it '
    'out of the glob.'
  )
