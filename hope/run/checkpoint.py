"""Checkpoints that are written in the background and verified when read.

A checkpoint of step s is the directory `<directory>/s`. Orbax writes it beside
its final name and renames it when it is complete, so that a killed process
leaves no half of one. It holds two items:

  state  the arrays, flat: {'params.embed.table': array, ...}
  meta   JSON: shape, type and fingerprint of every array, the position in the
         data, the fingerprint of the configuration, and a digest of all that.

Choice: fingerprints, because Orbax returns arrays whose bytes changed on disk
without an error.
"""

from __future__ import annotations

import contextlib
import errno
import logging as python_logging
import os
import traceback
from typing import Any, NamedTuple

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from hope import errors
from hope.run import leaves as leaves_lib
from hope.run import manifest
from hope.run import workdir as workdir_lib


class Restored(NamedTuple):
  """What a checkpoint held.

  Attributes:
    step: Training steps done when it was saved.
    state: The saved pytree, bit for bit.
    data_state: Position in the data.
    extra: Whatever else was saved, or None.
  """

  step: int
  state: Any
  data_state: dict[str, Any]
  extra: dict[str, Any] | None


class CheckpointError(errors.FixableError):
  """No checkpoint of a directory that holds some can be read."""


class _RefusedError(Exception):
  """A checkpoint is damaged."""


def _all_agree(ok: bool) -> bool:
  """Returns whether ok holds in every process."""
  if jax.process_count() == 1:
    return ok
  return bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def _one_line(error: BaseException) -> str:
  """Returns the first cause of an error in at most 300 letters."""
  while error.__cause__ is not None:
    error = error.__cause__
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  return text if len(text) <= 300 else text[:300] + '...'


def _is_not_of_orbax(record: python_logging.LogRecord) -> bool:
  """Whether a log record is to be shown: errors that Orbax logs are not.

  Orbax raises these errors too. Without the filter, a full disk gives 300
  lines, because each of its threads logs its stack.
  """
  files = [record.pathname]
  if record.exc_info and record.exc_info[2]:
    stack = traceback.extract_tb(record.exc_info[2])
    files += [frame.filename for frame in stack]
  error = record.levelno >= python_logging.ERROR
  return not (error and any('/orbax/checkpoint/' in name for name in files))


def _loss(metrics: dict[str, float]) -> float:
  return metrics['loss']


class Checkpointer:
  """Saves and restores the state of a run; a context manager.

  Every method is to be called in every process.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep: int,
    keep_every: int = 0,
    keep_best: int = 0,
    config_fingerprint: str = '',
  ):
    """Opens a directory of checkpoints; it is made if it does not exist.

    Args:
      directory: Where the checkpoints are; shared by all processes.
      keep: How many of the newest checkpoints are kept, at least 1. With 1,
        there is no other one to use when it is damaged.
      keep_every: Checkpoints at multiples of this step are kept for ever. 0:
        off.
      keep_best: How many checkpoints of the lowest loss are also kept.
      config_fingerprint: Stored in every checkpoint; a checkpoint with another
        fingerprint is not restored. See `workdir.config_fingerprint`.

    Raises:
      ValueError: if keep is not positive, or for a path that Orbax could not
        read.
    """
    if keep < 1:
      raise ValueError(f'keep={keep}: at least 1 checkpoint must be kept.')
    self._directory = epath.Path(directory).absolute()
    workdir_lib.check_name(self._directory)
    for name in ('absl', 'asyncio'):  # the same filter is added once
      python_logging.getLogger(name).addFilter(_is_not_of_orbax)
    self._config_fingerprint = config_fingerprint
    # Step that this object saved or restored last.
    self._current: int | None = None
    self._refused: list[int] = []
    self._prepared = False
    kept: list[Any] = [policies.LatestN(keep)]
    if keep_every:
      kept.append(policies.EveryNSteps(keep_every))
    if keep_best:
      kept.append(
        policies.BestN(
          get_metric_fn=_loss,
          reverse=True,
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        best_fn=_loss if keep_best else None,
        single_host_load_and_broadcast=True,
      ),
      item_names=('state', 'meta'),
    )

  def __enter__(self) -> Checkpointer:
    return self

  def __exit__(self, kind, error, traceback) -> None:
    try:
      self.close()
    except Exception as second:
      if error is None:
        raise
      full = workdir_lib.is_full
      if not (full(error) and full(second)):  # said already
        logging.error('Closing the checkpoints failed as well: %s', second)

  def save(
    self,
    step: int,
    state: Any,
    *,
    data_state: dict[str, Any],
    extra: dict[str, Any] | None = None,
    loss: float | None = None,
  ) -> bool:
    """Starts to save a checkpoint, after the previous one is written.

    It returns when the arrays are copied: they may then be donated or changed.
    Writing goes on in the background; the next call of `save`, `wait` or
    `close` raises its errors.

    Args:
      step: Training steps done.
      state: A pytree of jax arrays.
      data_state: Position in the data; JSON, the same in every process.
      extra: Anything else; JSON, the same in every process.
      loss: Of the held-out data, the same in every process; None: unknown.

    Returns:
      False if this step is the one saved or restored last: it is on disk.

    Raises:
      ValueError: if a later checkpoint exists that was not restored.
      OSError: if the disk is full.
    """
    if step == self._current:
      return False
    self._prepare_to_write()
    latest = self._manager.latest_step()
    if latest is not None and latest >= step:
      raise ValueError(
        f'Step {step} cannot be saved in {self._directory}: it holds a '
        f'checkpoint of step {latest}. Restore that one first or use another '
        'directory.'
      )
    leaves = manifest.leaves_by_path(state)
    meta = manifest.build(
      step, leaves, self._config_fingerprint, data_state, extra
    )
    # Orbax writes neither arrays without elements nor trees without arrays.
    arrays = {
      name: leaves_lib.numbers(leaf)
      for name, leaf in leaves.items()
      if leaf.size
    }
    if not arrays:
      raise ValueError('The state has no arrays to save.')
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(arrays),
          meta=ocp.args.JsonSave(meta),
        ),
        metrics=None if loss is None else {'loss': loss},
        force=True,
      )
    self._current = step
    return True

  def restore_latest(
    self, abstract_state: Any, *, partly: bool = False
  ) -> Restored | None:
    """Restores the newest checkpoint that is intact.

    A damaged checkpoint is logged and left as it is. The next `save` renames it
    to `<step>.corrupt`.

    Args:
      abstract_state: The tree to restore into: arrays or
        `jax.ShapeDtypeStruct`s with the sharding wanted. Without a sharding,
        arrays go to the first device, not bound to it.
      partly: whether the tree may be a part of what was saved: the rest is not
        read, nor is damage in it noticed.

    Returns:
      The checkpoint, or None if there is none.

    Raises:
      ValueError: if a checkpoint is intact, but of another configuration.
      CheckpointError: if there are checkpoints and all are damaged.
    """
    with self._writing():
      self._manager.wait_until_finished()
    self._manager.reload()
    reasons = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      restored, reason = None, 'another process could not read it'
      try:
        restored = self._restore(step, abstract_state, partly)
      except _RefusedError as error:
        reason = str(error)
      if _all_agree(restored is not None):
        self._refused = list(reasons)
        self._current = step
        return restored
      reasons[step] = reason
      logging.warning(
        'Refused the checkpoint of step %d in %s: %s',
        step,
        self._directory,
        reason,
      )
    if not reasons:
      return None
    raise CheckpointError(
      f'None of the {len(reasons)} checkpoints in {self._directory} can be '
      'restored:\n'
      + '\n'.join(f'  step {step}: {why}' for step, why in reasons.items())
      + '\nNothing was changed. Copy an intact checkpoint there, or, to start '
      'anew, move the directory away or use another one.'
    )

  def wait(self) -> None:
    """Returns when the last save is complete.

    Raises:
      OSError: if the disk is full.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Completes the last save and frees all resources."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self):
    """Turns the error of a full disk into one that says what to do."""
    try:
      yield
    except Exception as error:
      self._current = None
      if not workdir_lib.is_full(error):
        raise
      raise OSError(
        errno.ENOSPC,
        f'The disk of {self._directory} is full: the newest checkpoint was not '
        'written, earlier ones are intact. Free some space, or lower '
        'checkpoint.keep, and start the same command again; it goes on from '
        f'the newest intact one. ({_one_line(error)})',
      ) from None

  def _restore(self, step: int, abstract_state: Any, partly: bool) -> Restored:
    """Restores one checkpoint; raises ValueError only if it does not fit."""
    try:
      meta = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )['meta']
    except Exception as error:
      raise _RefusedError(
        f'its metadata cannot be read: {_one_line(error)}'
      ) from error
    if not manifest.is_intact(meta, step):
      raise _RefusedError('its metadata differ from what was saved')
    content = meta['content']
    wanted = manifest.leaves_by_path(abstract_state)
    if partly:
      content['leaves'] = {
        name: leaf for name, leaf in content['leaves'].items() if name in wanted
      }
    problem = manifest.misfit(content, wanted, self._config_fingerprint)
    if problem:
      raise ValueError(
        f'The checkpoint of step {step} in {self._directory} {problem}\n'
        'Restore it with the configuration and the version that wrote it, or '
        'use another directory.'
      )
    targets = {
      name: leaves_lib.target(name, leaf) for name, leaf in wanted.items()
    }
    saved = {name: target for name, target in targets.items() if target.size}
    arguments: Any = ocp.args.StandardRestore(saved)
    if partly:
      kinds = {
        name: ocp.ArrayRestoreArgs(sharding=target.sharding)
        for name, target in saved.items()
      }
      arguments = ocp.args.PyTreeRestore(saved, kinds, partial_restore=True)
    try:
      arrays = self._manager.restore(
        step, args=ocp.args.Composite(state=arguments)
      )['state']
    except Exception as error:
      message = f'its arrays cannot be read: {_one_line(error)}'
      raise _RefusedError(message) from error
    leaves = {
      name: leaves_lib.place(arrays.get(name), leaf, targets[name])
      for name, leaf in wanted.items()
    }
    damaged = manifest.damaged(content, leaves)
    if damaged:
      raise _RefusedError(
        f'{len(damaged)} of {len(leaves)} arrays differ from what was saved: '
        + ', '.join(damaged[:5])
        + (', ...' if len(damaged) > 5 else '')
      )
    structure = jax.tree.structure(abstract_state)
    return Restored(
      step,
      jax.tree.unflatten(structure, leaves.values()),
      content['data_state'],
      content['extra'],
    )

  def _prepare_to_write(self) -> None:
    """Moves refused checkpoints aside, deletes unfinished ones; once."""
    if self._prepared and not self._refused:
      return
    if jax.process_index() == 0:
      if not self._prepared:
        for path in self._directory.glob('*.orbax-checkpoint-tmp*'):
          logging.info('Deleting the unfinished checkpoint %s.', path)
          path.rmtree(missing_ok=True)
      for step in self._refused:
        source = self._directory / str(step)
        target = self._directory / f'{step}.corrupt'
        count = 1
        while target.exists():
          count += 1
          target = self._directory / f'{step}.corrupt-{count}'
        source.rename(target)
        logging.warning('Moved the damaged checkpoint to %s.', target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('hope_checkpoint_prepare')
    self._manager.reload()
    self._refused = []
    self._prepared = True


def open_checkpoints(
  workdir: str | os.PathLike[str], config: Any
) -> Checkpointer:
  """The checkpoints of a run, in `<workdir>/checkpoints`.

  Args:
    workdir: Directory of the run.
    config: Its resolved configuration.
  """
  return Checkpointer(
    epath.Path(workdir) / 'checkpoints',
    keep=config.checkpoint.keep,
    keep_every=config.checkpoint.keep_every,
    keep_best=config.checkpoint.keep_best,
    config_fingerprint=workdir_lib.config_fingerprint(config.to_dict()),
  )
