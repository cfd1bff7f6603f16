"""Compiled programs are kept in the user's cache folder, for the next start.

The folder is $XDG_CACHE_HOME/hope-jax/compiled, with ~/.cache where
XDG_CACHE_HOME is not set. jax's own settings hold: JAX_COMPILATION_CACHE_DIR
names another folder, JAX_ENABLE_COMPILATION_CACHE=false switches the cache off,
and JAX_COMPILATION_CACHE_MAX_SIZE bounds it, in bytes (-1: no bound). A folder
in a bucket (gs://...) is used as jax does, without the guarantees below. Of
several processes, the first one writes (jax's rule) and all read; several
processes on CPUs keep nothing (`leave_if_processes_differ`).

An entry's name is jax's: a hash of the program, of the versions of jax and its
compiler, of all options, and of the devices with the CPU's features, so that
machines of different kinds may share a folder.

Choice: the class here writes the files, not jax's own class. jax's class never
replaces an entry that was cut short: it reads, refuses and reports the entry at
every start. (Replacing the class needs a private name of jax's,
`get_file_cache`. Without that name jax's class would be used, and a test would
fail.)
"""

import contextlib
import hashlib
import os
import pathlib
import tempfile
from typing import Any

from absl import logging
import jax
from jax._src import compilation_cache

_jax_cache: Any = compilation_cache
_jax_open = _jax_cache.get_file_cache

_BOUND = 2 << 30  # bytes, by default
# Above the bound, the least recently used programs are deleted down to this.
_KEPT = 0.8
_SUFFIX = '.program'
_DIGEST = hashlib.sha256().digest_size  # bytes


class ProgramFolder:
  """Compiled programs in a folder: jax's interface of a cache.

  A file is a checksum and the program. It gets its name when it is complete, so
  that any number of processes may share the folder. A damaged file is deleted,
  and the program is compiled again. Files that other processes write at the
  same time may exceed the bound.
  """

  def __init__(self, path: str | os.PathLike[str], bound: int):
    """Makes the folder.

    Args:
      path: of the folder.
      bound: bytes of all programs; -1: no bound.

    Raises:
      OSError: if there is no such folder, and none can be made.
    """
    self._path, self._bound = pathlib.Path(path), bound
    self._path.mkdir(parents=True, exist_ok=True)
    self._size: int | None = None  # bytes; None: not counted yet
    self._warned = False

  def _file(self, key: str) -> pathlib.Path:
    """A name of known length; a key has the function's name in it."""
    return self._path / (hashlib.sha256(key.encode()).hexdigest() + _SUFFIX)

  def get(self, key: str) -> bytes | None:
    """The program of a key; None if there is none that is intact."""
    file = self._file(key)
    try:
      content = file.read_bytes()
    except OSError:
      return None
    digest, program = content[:_DIGEST], content[_DIGEST:]
    with contextlib.suppress(OSError):
      if hashlib.sha256(program).digest() != digest:
        file.unlink()
        return None
      os.utime(file)  # the time of its last use
    return program

  def put(self, key: str, program: bytes) -> None:
    """Keeps a program; logs a warning, once, if it cannot be written."""
    content = hashlib.sha256(program).digest() + program
    if 0 <= self._bound < len(content):
      return
    try:
      self._make_room(len(content))
      with tempfile.NamedTemporaryFile(
        dir=self._path, suffix=_SUFFIX, delete=False
      ) as part:
        try:
          part.write(content)
          part.flush()
          os.replace(part.name, self._file(key))
        except OSError:
          os.unlink(part.name)
          raise
    except OSError as error:
      if not self._warned:
        self._warned = True
        _warn(self._path, error)

  def _make_room(self, size: int) -> None:
    """Deletes the least recently used programs if the bound is exceeded."""
    if self._bound < 0:
      return
    if self._size is not None and self._size + size <= self._bound:
      self._size += size
      return
    files = []
    for file in self._path.glob(f'*{_SUFFIX}'):
      with contextlib.suppress(FileNotFoundError):  # another process's work
        status = file.stat()
        files.append((status.st_mtime, status.st_size, file))
    self._size = size + sum(bytes_ for _, bytes_, _ in files)
    if self._size <= self._bound:
      return
    for _, bytes_, file in sorted(files):
      file.unlink(missing_ok=True)
      self._size -= bytes_
      if self._size <= _KEPT * self._bound:
        return


def cache_home() -> pathlib.Path:
  """This project's part of the user's cache folder.

  Raises:
    RuntimeError: if the user has no home.
  """
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(home) / 'hope-jax'


def default_folder() -> pathlib.Path:
  """The default folder of compiled programs.

  Raises:
    RuntimeError: if the user has no home.
  """
  return cache_home() / 'compiled'


def use() -> None:
  """Keeps what this process compiles; call it before anything is compiled.

  If the folder cannot be used, one line is logged and nothing is kept.
  """
  config: Any = jax.config
  if not config.jax_enable_compilation_cache:
    return
  # Even a small program is read in less time than it is compiled in.
  _set_default('jax_persistent_cache_min_compile_time_secs', 0)
  _set_default('jax_compilation_cache_max_size', _BOUND)
  path = config.jax_compilation_cache_dir
  try:
    path = path or str(default_folder())
    if '://' not in path:
      pathlib.Path(path).mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError) as error:
    _warn(path, error)
    config.update('jax_enable_compilation_cache', False)
    return
  config.update('jax_compilation_cache_dir', path)
  _jax_cache.get_file_cache = _open


def leave_if_processes_differ() -> None:
  """Keeps nothing where several processes are one run on CPUs.

  There a program has a name of its own in each process, so that the first one,
  which alone writes, would read what the others have to compile. It would wait
  for them in the first collective, and gloo gives up after 30 seconds.
  """
  if jax.process_count() > 1 and jax.default_backend() == 'cpu':
    jax.config.update('jax_enable_compilation_cache', False)


def _open(path: str) -> Any:
  """The cache in a folder, and its path, as jax asks for them."""
  if '://' in path:
    return _jax_open(path)
  config: Any = jax.config
  return ProgramFolder(path, config.jax_compilation_cache_max_size), path


def _set_default(name: str, value: int) -> None:
  """Sets an option of jax that the environment does not set."""
  if name.upper() not in os.environ:
    jax.config.update(name, value)


def _warn(path: object, error: Exception) -> None:
  """Logs that compiled programs are not kept."""
  logging.warning(
    'Compiled programs are not kept in %s, so that every start compiles them '
    'anew: %s. JAX_COMPILATION_CACHE_DIR names another folder.',
    path,
    error,
  )


_loaded = 0


def _count(event: str, **_: Any) -> None:
  global _loaded
  _loaded += event == '/jax/compilation_cache/cache_hits'


jax.monitoring.register_event_listener(_count)


def loaded() -> int:
  """How many programs this process has read rather than compiled."""
  return _loaded
