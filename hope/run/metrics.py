"""The numbers of a run, written so that a killed run loses and repeats none.

A working directory holds

  metrics.jsonl  one JSON object per line: step, kind ('train' or 'eval') and
                 values. Nothing that depends on the clock, so that a run that
                 was killed and resumed has the same bytes as one that was not.
  timing.jsonl   the same for seconds and tokens per second
  tensorboard/   both, as TensorBoard events
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import os
import pathlib
import time
from typing import Any

from absl import logging
import numpy as np
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from hope.run.workdir import full_disk_explained, is_full

KINDS = ('train', 'eval')

_METRICS = 'metrics.jsonl'
_TIMING = 'timing.jsonl'


def _to_json(value: Any) -> Any:
  """Returns a number as JSON has it; 'nan', 'inf' or '-inf' as a string."""
  value = np.asarray(value).item()
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def _parse(line: bytes) -> dict[str, Any] | None:
  """Returns the record of a line, or None if the line is damaged."""
  try:
    record = json.loads(line)
    step, kind = record.pop('step'), record.pop('kind')
    intact = type(step) is int and kind in KINDS
    for value in record.values():
      intact = intact and type(value) in (int, float, str)
      float(value)  # of a text: 'nan', 'inf' or '-inf'
  except (ValueError, KeyError, TypeError, AttributeError):
    return None
  return {'step': step, 'kind': kind, **record} if intact else None


def _cut(path: pathlib.Path, resume_step: int | None) -> None:
  """Drops damaged lines and lines of steps after resume_step from a file."""
  if not path.exists():
    return
  old = path.read_bytes()
  kept, damaged = [], 0
  for line in old.splitlines():
    record = _parse(line)
    damaged += record is None
    if record and resume_step is not None and record['step'] <= resume_step:
      kept.append(line + b'\n')
  if damaged:
    logging.warning('Dropped %d damaged line(s) of %s.', damaged, path)
  new = b''.join(kept)
  if new != old:
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('wb') as file:
      file.write(new)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)


class MetricsWriter:
  """Writes the numbers of a run; a context manager.

  To lose nothing when a run is killed, write the numbers of step s before you
  save its checkpoint: a run that resumes from that checkpoint does not write
  them again.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    resume_step: int | None = None,
    enabled: bool = True,
  ):
    """Opens the files of a run, and cuts off what will be written again.

    Args:
      workdir: Directory of the run.
      resume_step: Step of the checkpoint that the run goes on from; lines of
        later steps are dropped. None: the run starts anew, and all lines are
        dropped.
      enabled: Whether to write at all; false in all processes but one.
    """
    self._files = {}
    self._events = None
    if not enabled:
      return
    with full_disk_explained('a new file of metrics'):
      self._open(pathlib.Path(workdir), resume_step)

  def _open(self, workdir: pathlib.Path, resume_step: int | None) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    for name in (_METRICS, _TIMING):
      _cut(workdir / name, resume_step)
      # Unbuffered: a written line survives the end of the process.
      self._files[name] = (workdir / name).open('ab', buffering=0)
    folder = workdir / 'tensorboard'
    folder.mkdir(exist_ok=True)
    self._events = event_file_writer.EventsWriter(
      str(folder / 'events'), f'.{os.getpid()}'
    )
    # TensorBoard hides what earlier files say of this step and later ones.
    session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    first = 0 if resume_step is None else resume_step + 1
    self._events.write_event(
      event_pb2.Event(wall_time=time.time(), step=first, session_log=session)
    )

  def __enter__(self) -> MetricsWriter:
    return self

  def __exit__(self, kind, error, traceback) -> None:
    try:
      self.close()
    except OSError as second:
      if error is None:
        raise
      if not (is_full(error) and is_full(second)):  # said already
        logging.error('Closing the metrics failed as well: %s', second)

  def write(
    self,
    step: int,
    kind: str,
    values: Mapping[str, Any],
    timing: Mapping[str, Any] | None = None,
  ) -> None:
    """Writes the numbers of one step; they are in the file on return.

    Args:
      step: Training steps done.
      kind: One of `KINDS`.
      values: Scalars by name, for instance loss, bits_per_byte, tokens (so
        far) or 'memory/write_norm/layer_0'. They must be a function of the
        configuration alone.
      timing: Scalars that depend on the clock.

    Raises:
      ValueError: if kind or a name is not allowed.
      OSError: if the disk is full.
    """
    if kind not in KINDS:
      raise ValueError(f'kind={kind!r} is not one of {", ".join(KINDS)}.')
    for name in ('step', 'kind'):
      if name in values or name in (timing or {}):
        raise ValueError(f'{name!r} cannot be the name of a metric.')
    if self._events is None:
      return
    with full_disk_explained(f'step {step}'):
      self._write(step, kind, values, timing)

  def _write(self, step, kind, values, timing) -> None:
    assert self._events is not None
    self._append(_METRICS, step, kind, values)
    event = {f'{kind}/{name}': value for name, value in values.items()}
    if timing:
      self._append(_TIMING, step, kind, timing)
      event |= {f'{kind}/{name}': value for name, value in timing.items()}
    scalars = [
      summary_pb2.Summary.Value(tag=name, simple_value=float(number))
      for name, number in event.items()
    ]
    self._events.write_event(
      event_pb2.Event(
        wall_time=time.time(),
        step=step,
        summary=summary_pb2.Summary(value=scalars),
      )
    )
    self._events.flush()

  def close(self) -> None:
    """Closes the files; does nothing the second time."""
    files, self._files = self._files, {}
    events, self._events = self._events, None
    for file in files.values():
      file.close()
    if events is not None:
      events.close()

  def _append(
    self, name: str, step: int, kind: str, values: Mapping[str, Any]
  ) -> None:
    numbers = {key: _to_json(value) for key, value in values.items()}
    record = {'step': int(step), 'kind': kind, **numbers}
    line = (json.dumps(record, allow_nan=False) + '\n').encode()
    while line:
      line = line[self._files[name].write(line) :]


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the intact lines of a run's metrics.jsonl, in order.

  Non-finite numbers are the strings 'nan', 'inf' and '-inf'.
  """
  lines = (pathlib.Path(workdir) / _METRICS).read_bytes().splitlines()
  return [record for line in lines if (record := _parse(line)) is not None]
