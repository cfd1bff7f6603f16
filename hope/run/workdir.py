"""The directory of a run: it can be written and has one configuration."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import socket
from typing import Any, TextIO
import uuid

from absl import logging
from etils import epath
import jax

from hope.fields import listed

# Sections that say how a run is computed, kept and shown. All others say what
# is computed: they, without train.steps, are the run's identity.
HOW = (
  *('compute', 'mesh', 'processes', 'reading'),
  *('checkpoint', 'log', 'evals', 'sample'),
)

# What to do about a configuration that lacks fields of this version.
ANOTHER_VERSION = (
  'another version wrote the configuration, and this one cannot go on with the '
  'run. Train anew in another workdir, or use the version that wrote it; '
  'CHANGELOG.md lists the fields that have new names.'
)

# Orbax takes these as a pattern of names, or as another directory.
_PATTERN = re.compile(r'[][*?\\\x00-\x1f\x7f]')
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# What a run has in its workdir.
_FOLDERS = ('checkpoints', 'tensorboard')
_FILES = (
  *('config.json', 'metrics.jsonl', 'timing.jsonl', 'tokenizer.json'),
  *('results.json', 'sample.txt', 'curves.png', 'memories.png'),
  *('inner_losses.json', 'inner_losses.png'),
)
# Letters of the longest name below `checkpoints`, folders included.
_LONGEST = 140


def is_full(error: BaseException) -> bool:
  """Whether an error says that a disk, or a user's quota of it, is full.

  Errors of Orbax say so only in their text.
  """
  return getattr(error, 'errno', None) in _FULL or any(
    os.strerror(code) in str(error) for code in _FULL
  )


@contextlib.contextmanager
def full_disk_explained(what: str) -> Iterator[None]:
  """If the disk is full, raises an error that says what to do.

  Args:
    what: the name of what is written, for the message.
  """
  try:
    yield
  except OSError as error:
    if not is_full(error):
      raise
    raise OSError(
      error.errno,
      f'The disk is full: {what} could not be written. Free some space and '
      'start the same command again to go on from the newest checkpoint.',
    ) from None


def check_name(workdir: str | os.PathLike[str]) -> None:
  """Makes sure that checkpoints below this path can be found again.

  Args:
    workdir: absolute path of a directory, or gs://BUCKET/DIRECTORY.

  Raises:
    ValueError: if they cannot.
  """
  name = os.fspath(workdir)
  shown = ascii(name)[1:-1]
  if found := _PATTERN.search(name):
    raise ValueError(
      f'The path {shown} has {ascii(found[0])} in it: checkpoints there could '
      'not be restored. Choose a workdir whose path has no [ ] * ? \\ and no '
      'control characters.'
    )
  if re.search('[\ud800-\udfff]', name):
    raise ValueError(f'The path {shown} is not UTF-8; choose another workdir.')
  scheme, separator, rest = name.partition('://')
  if separator and not (scheme and rest.strip('/')):
    raise ValueError(
      f'The workdir {shown} names no bucket; give gs://BUCKET/DIRECTORY.'
    )


def check_kinds(folder: pathlib.Path) -> None:
  """Makes sure that no file is where a run has a folder, or the reverse.

  Raises:
    ValueError: if one is, which saving or writing would find out late.
  """
  for name in (*_FILES, *_FOLDERS):
    path = folder / name
    if os.path.lexists(path) and path.is_dir() != (name in _FOLDERS):
      wanted = 'folder' if name in _FOLDERS else 'file'
      raise ValueError(
        f'{path} is no {wanted}, but a run has a {wanted} of this name. Move '
        'it away, or choose another workdir.'
      )


def lock(path: pathlib.Path) -> TextIO:
  """Locks a file for this process; makes it, and its folder.

  Closing the file, or any end of the process, releases the lock.

  Choice: on a file system without locks (some network file systems), there is
  one warning and no protection.

  Returns:
    The open file, which names this process.

  Raises:
    ValueError: if another process has the lock.
    OSError: if the file cannot be made.
  """
  check_writable(path.parent)
  file = path.open('a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    holder = file.read(200).strip() or 'unknown'
    file.close()
    raise ValueError(
      f'Another run is at work in {path.parent}: process {holder}. Wait until '
      'it ends, stop it, or choose another workdir.'
    ) from None
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    logging.warning(
      'The file system of %s has no locks (%s): a second run in this workdir '
      'would not be noticed.',
      path,
      error.strerror,
    )
  file.truncate(0)
  file.write(f'{os.getpid()} on {socket.gethostname()}\n')
  file.flush()
  return file


def check_writable(workdir: str | os.PathLike[str]) -> None:
  """Makes sure that files can be written in workdir; makes the directory.

  Raises:
    OSError: if they cannot.
  """
  workdir = epath.Path(workdir)
  # All processes of a run do this at once, and in containers many have id 1.
  probe = workdir / f'.probe-{uuid.uuid4().hex}'.ljust(_LONGEST, '-')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    try:
      probe.write_text('probe')
    finally:
      probe.unlink(missing_ok=True)
  except OSError as error:
    remedy = 'free some space' if is_full(error) else 'make this one writable'
    raise OSError(
      error.errno or errno.EIO,
      f'No files can be written in the workdir {workdir}: '
      f'{error.strerror or error}. Choose another workdir, or {remedy}.',
    ) from None


def _fields(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the fields of nested dicts by their dotted names."""
  fields = {}
  for name, value in config.items():
    if isinstance(value, dict):
      fields |= _fields(value, f'{prefix}{name}.')
    else:
      fields[prefix + name] = value
  return fields


def _as_json(config: Any) -> dict[str, Any]:
  nested = config.to_dict() if hasattr(config, 'to_dict') else config
  return json.loads(json.dumps(nested))


def is_identity(name: str) -> bool:
  """Whether another value of a field makes another run.

  Choice: `train.steps` may change, so that a run can be made longer; that moves
  the end of the learning rate's schedule. Another kernel, remat or mesh sums in
  another order: the last digits differ. `model.dtype` counts: it rounds every
  product.

  Args:
    name: of a field, as 'train.steps'.
  """
  return name.partition('.')[0] not in HOW and name != 'train.steps'


def config_fingerprint(config: Any) -> str:
  """Returns a hash of the fields that a continued run may not change.

  Args:
    config: An `ml_collections.ConfigDict` or nested dicts.
  """
  fields = _fields(_as_json(config))
  kept = {k: v for k, v in fields.items() if is_identity(k)}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_workdir(workdir: str | os.PathLike[str], config: Any) -> None:
  """Makes sure that workdir belongs to this configuration.

  The first use writes `config.json`. Later uses compare with it. If only fields
  differ that are not part of the run's identity, the change is logged and the
  file is written again. Every process may call this; the first one writes.

  Args:
    workdir: Directory of the run.
    config: An `ml_collections.ConfigDict` or nested dicts.

  Raises:
    ValueError: if workdir holds a run of another configuration.
    OSError: if files cannot be written in workdir.
  """
  check_writable(workdir)
  path = epath.Path(workdir) / 'config.json'
  new = _as_json(config)
  if path.exists():
    try:
      old = json.loads(path.read_text())
      old_fields = _fields(old)
    except (ValueError, AttributeError):
      raise ValueError(
        f'{path} is damaged, so whether this workdir belongs to this '
        'configuration is unknown. Use another workdir, or delete the file if '
        'you know that it does.'
      ) from None
    if old == new:
      return
    new_fields = _fields(new)
    for names, are in (
      (new_fields.keys() - old_fields.keys(), 'missing'),
      (old_fields.keys() - new_fields.keys(), 'unknown'),
    ):
      if names:
        raise ValueError(
          f'{path}: {listed(sorted(names))} {are}: {ANOTHER_VERSION}'
        )
    refused = []
    for name in sorted(new_fields):
      before, after = old_fields[name], new_fields[name]
      if before == after:
        continue
      change = f'{name}: {before!r} -> {after!r}'
      if is_identity(name):
        refused.append(f'  {change}')
      else:
        logging.info('Going on with another %s', change)
    if refused:
      changes = '\n'.join(refused)
      raise ValueError(
        f'The workdir {workdir} holds a run of another configuration:\n'
        f'{changes}\nUse another workdir for the new configuration, or give '
        'these fields their old values to go on with the old run.'
      )
  if jax.process_index() == 0:
    temporary = path.with_name('config.json.tmp')
    with full_disk_explained(str(path)):
      temporary.write_text(json.dumps(new, indent=2) + '\n')
      temporary.replace(path)
