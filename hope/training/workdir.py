"""The directory of a run: it can be written and has one configuration."""

import errno
import hashlib
import json
import os
from typing import Any
import uuid

from absl import logging
from etils import epath
import jax

# Fields that may differ between a run and its continuation; one that ends in
# a dot stands for every field below it. Changing train.steps moves the end of
# the learning-rate schedule; another kernel, remat or mesh rounds differently.
RESUMABLE_FIELDS = (
  'train.steps',
  'train.log_every',
  'train.eval_every',
  'train.checkpoint_every',
  'train.keep',
  'train.keep_every',
  'train.keep_best',
  'train.watchdog',
  'data.read_ahead',
  'data.tfds_dir',
  'model.titans.kernel',
  'model.remat',
  'mesh.',
  'sample.',
)


def check_writable(workdir: str | os.PathLike[str]) -> None:
  """Makes sure that files can be written in workdir; makes the directory.

  Raises:
    OSError: if they cannot.
  """
  workdir = epath.Path(workdir)
  # All processes of a run do this at once, and in containers many are number 1.
  probe = workdir / f'.probe-{uuid.uuid4().hex}'
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe.write_text('probe')
    probe.unlink()
  except OSError as error:
    raise OSError(
      error.errno or errno.EIO,
      f'No files can be written in the workdir {workdir}: '
      f'{error.strerror or error}. Choose another workdir, or make this one '
      'writable.',
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


def _is_resumable(name: str) -> bool:
  return any(
    name.startswith(field) if field.endswith('.') else name == field
    for field in RESUMABLE_FIELDS
  )


def config_fingerprint(config: Any) -> str:
  """Returns a hash of the fields that a continued run may not change.

  Args:
    config: An `ml_collections.ConfigDict` or nested dicts.
  """
  fields = _fields(_as_json(config))
  kept = {k: v for k, v in fields.items() if not _is_resumable(k)}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def check_workdir(workdir: str | os.PathLike[str], config: Any) -> None:
  """Makes sure that workdir belongs to this configuration.

  The first use writes `config.json`. Later uses compare with it and, where
  only fields of `RESUMABLE_FIELDS` differ, log the change and write it anew.
  Every process may call this; the first one writes.

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
    refused = []
    for name in sorted({*old_fields, *new_fields}):
      before = old_fields.get(name, '(absent)')
      after = new_fields.get(name, '(absent)')
      if before == after:
        continue
      change = f'{name}: {before!r} -> {after!r}'
      if _is_resumable(name):
        logging.info('Going on with another %s', change)
      else:
        refused.append(f'  {change}')
    if refused:
      listed = '\n'.join(refused)
      raise ValueError(
        f'The workdir {workdir} holds a run of another configuration:\n'
        f'{listed}\nUse another workdir for the new configuration, or give '
        'these fields their old values to go on with the old run.'
      )
  if jax.process_index() == 0:
    temporary = path.with_name('config.json.tmp')
    temporary.write_text(json.dumps(new, indent=2) + '\n')
    temporary.replace(path)
