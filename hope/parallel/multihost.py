"""Several processes: how they start, agree, notice a death, and end."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import errno
import faulthandler
import functools
import json
import math
import os
import re
import socket
import sys
import threading
import traceback
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
import numpy as np

from hope import compilation_cache, errors, signals
from hope.fields import field

# Exit codes of a process; launchers start again after the last three.
DONE = 0
FAILED, MISUSED = errors.FAILED, errors.MISUSED
PREEMPTED = 42  # told to stop; everything is saved
BROKEN = 75  # another process, a device or the network failed
STUCK = 83  # nothing happened for too long

# What jax and the operating system say when another process is gone.
_BROKEN = (jax.errors.JaxRuntimeError, TimeoutError, ConnectionError)
# How the message of a runtime error begins. It may be a ValueError: where the
# result of a collective is awaited.
_STATUS = re.compile(
  '(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN)'
  ': '
)
# File errors that the user can fix after training has begun. All others are
# taken to come from the network or the bucket.
_FIXABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_ADDRESS = re.compile(
  r'(?P<host>[^\s,/:\[\]]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,9}),'
  r'(?P<count>\d{1,6}),(?P<id>\d{1,6})',
  re.ASCII,
)
# Seconds until the first line that says who is awaited, and between the next.
_SAY_FIRST, _SAY_AGAIN = 5.0, 15.0
_DAY = 86_400
# jax waits so many seconds longer than we do, since it would abort.
_LATER = 60
# Seconds until a silent process counts as dead.
_HEARTBEAT = 60
# Seconds that a process that is done waits for the others.
_SHUTDOWN = 60
# Compiling, evaluating and saving may take this many times as long as a step.
_PATIENCE = 10


def _parse(distributed: str) -> tuple[str, int, int]:
  """Returns (address, count, index) of 'HOST:PORT,COUNT,ID'.

  Raises:
    ValueError: for anything else.
  """
  found = _ADDRESS.fullmatch(distributed)
  if not found:
    raise ValueError(
      f"--distributed={distributed!r} must be 'off', 'auto' or "
      "'HOST:PORT,COUNT,ID' with 0 <= ID < COUNT."
    )
  port, count, index = (int(found[name]) for name in ('port', 'count', 'id'))
  if not 1 <= port < 1 << 16:
    raise ValueError(
      f'--distributed={distributed!r}: there is no port {port}; give one from '
      '1 to 65535.'
    )
  if not 0 <= index < count:
    raise ValueError(
      f'--distributed={distributed!r} has COUNT={count} and ID={index}; give 1 '
      'process or more, and to each another ID with 0 <= ID < COUNT.'
    )
  return f'{found["host"]}:{port}', count, index


def _check_free(address: str) -> None:
  """Checks that process 0 can listen on its port; jax would crash in C++.

  Raises:
    ValueError: if it cannot.
  """
  port = int(address.rpartition(':')[2])
  kind = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  with socket.socket(kind) as probe:
    # jax does the same: connections that are being closed do not matter.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.AF_INET6:
      probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
      probe.bind(('', port))
      probe.listen()
    except OSError as error:
      if error.errno not in (errno.EADDRINUSE, errno.EACCES):
        return  # no IPv6, perhaps; jax may find a way
      raise ValueError(
        f'--distributed: process 0 cannot listen on port {port} '
        f'({error.strerror}). Choose another port for all processes, or end '
        'the program that has this one.'
      ) from None


@contextlib.contextmanager
def _said(others: str, seconds: float) -> Iterator[None]:
  """Prints what is awaited, and ends this process if it takes too long.

  jax would wait in silence and then abort with a stack of C++.
  """
  done = threading.Event()

  def say() -> None:
    waited, pause = 0.0, _SAY_FIRST
    while not done.wait(pause := min(pause, seconds - waited)):
      waited += pause
      if waited >= seconds:
        _print(
          f'error: {others} did not come within {seconds:g} s. Are all '
          'processes started, with the same address, and can they reach it?'
        )
        os._exit(BROKEN)
      _print(f'waiting for {others} ... ({waited:g} of {seconds:g} s)')
      pause = _SAY_AGAIN

  threading.Thread(target=say, daemon=True).start()
  try:
    yield
  finally:
    done.set()


def _print(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def start(distributed: str, seconds: float = 300) -> None:
  """Joins the other processes; call it before jax touches any device.

  Args:
    distributed: 'off': there are none. 'auto': TPU, SLURM and other clusters
      that jax knows. 'HOST:PORT,COUNT,ID': where process 0 listens, how many
      processes there are, which this one is.
    seconds: how long it waits for them; then it ends this process with
      `BROKEN`.

  Raises:
    ValueError: for any other text, a cluster that is not found, or a port that
      another program has.
  """
  if distributed == 'off':
    return
  if not 0 < seconds <= _DAY:
    raise ValueError(
      f'--distributed_seconds={seconds} must be a positive number of seconds, '
      f'{_DAY:,} at most.'
    )
  arguments: dict[str, Any] = {
    'heartbeat_timeout_seconds': _HEARTBEAT,
    'shutdown_timeout_seconds': _SHUTDOWN,
    'initialization_timeout': math.ceil(seconds) + _LATER,
  }
  others = 'the other processes of this cluster'
  if distributed != 'auto':
    address, count, index = _parse(distributed)
    if index == 0:
      _check_free(os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', address))
    arguments |= {
      'coordinator_address': address,
      'num_processes': count,
      'process_id': index,
    }
    others = f'the other {count - 1} of {count} processes at {address}'
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  join = functools.partial(jax.distributed.initialize, **arguments)
  try:
    with _said(others, seconds):
      signals.take_over(PREEMPTED, join)
  except ValueError as error:
    if distributed != 'auto':
      raise
    raise ValueError(
      '--distributed=auto found no cluster of several processes here '
      f'({error}); use --distributed=off, or HOST:PORT,COUNT,ID.'
    ) from None
  compilation_cache.leave_if_processes_differ()


def is_leader() -> bool:
  """Whether this process writes logs, metrics and samples."""
  return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
  """A JSON value of every process, in their order; all must call it."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(text.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: text.size] = text
  rows = multihost_utils.process_allgather(padded)
  return [
    json.loads(row[:size].tobytes())
    for row, size in zip(rows, sizes, strict=True)
  ]


def wait_for_all(name: str) -> None:
  """Returns when every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
  """Whether to stop: a function of the steps done, the same everywhere.

  If `signals.watch` was called, as commands do, Ctrl-C and SIGTERM no longer
  end the program at once after the first call of the function: the first step
  is compiled and done, so there is something to save. A signal to one process
  stops all processes after the same step, and so does a notice of maintenance.
  """
  stopped = threading.Event()
  several = jax.distributed.is_initialized()

  def stop(step: int) -> bool:
    signals.save_first(signals.tell_runtime if several else stopped.set)
    if several:
      return bool(multihost_utils.reached_preemption_sync_point(step))
    return stopped.is_set()

  try:
    yield stop
  finally:
    signals.save_first(None)


@dataclasses.dataclass(frozen=True)
class ProcessesOptions:
  """How the processes of a run watch each other."""

  watchdog: int = field(
    100,
    'A run of several processes ends if one of them finishes no step for this '
    'long; 0: never.',
    unit='seconds',
    minimum=0,
  )


class Watchdog:
  """Ends a process in which nothing happens; a context manager.

  Neither a peer that is stuck nor a device that hangs raises an error: without
  a watchdog all processes would wait for ever.
  """

  def __init__(self, seconds: float, *, enabled: bool):
    """Args: seconds between two `beat`s; 0 or not enabled: no watchdog."""
    self._limit = seconds
    self._enabled = enabled and seconds > 0
    self._patience = _PATIENCE  # until the first step is compiled
    # Seconds counted here, not by a clock, which goes on while the process is
    # suspended.
    self._silent = 0
    self._closed = threading.Event()

  def __enter__(self) -> 'Watchdog':
    if self._enabled:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, kind, error, traceback) -> None:
    self._closed.set()

  def beat(self) -> None:
    """Says that a step is done."""
    self._silent, self._patience = 0, 1

  @contextlib.contextmanager
  def patient(self) -> Iterator[None]:
    """Allows ten times as long for what is not a step."""
    self._silent, self._patience = 0, _PATIENCE
    try:
      yield
    finally:
      self._silent, self._patience = 0, 1

  def _watch(self) -> None:
    while not self._closed.wait(1):
      self._silent += 1
      if self._silent > self._limit * self._patience:
        print(
          f'error: nothing has happened for {self._silent} s '
          f'(processes.watchdog={self._limit:g}): a process or a device is '
          f'stuck. The threads of process {jax.process_index()} are at:',
          file=sys.stderr,
          flush=True,
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(STUCK)


def _is_broken(error: BaseException | None) -> bool:
  """Whether an error, or what caused it, is one of the runtime's."""
  if error is None:
    return False
  if isinstance(error, _BROKEN) or _STATUS.match(str(error)):
    return True
  return _is_broken(error.__cause__)


def fail(error: BaseException) -> NoReturn:
  """Says why a process cannot go on, and ends it.

  One of several processes ends at once: it must not wait for the others, which
  may be waiting for it.

  The message and the exit code are those of `hope.errors`, except in training:
  there a `ValueError` is a bug, and most kinds of `OSError` come from the
  network.
  """
  training = getattr(error, 'in_training', False)
  fixable = getattr(error, 'errno', None) in _FIXABLE
  code = errors.exit_code(error)
  said = code is not None
  if _is_broken(error):
    code, said = BROKEN, isinstance(error, errors.ExplainedError)
  elif isinstance(error, OSError) and training and not fixable:
    code, said = BROKEN, False
  elif isinstance(error, ValueError) and training:
    code, said = FAILED, False
  if said:
    errors.say(error)
  else:
    traceback.print_exception(error)
  sys.stdout.flush()
  sys.stderr.flush()
  code = FAILED if code is None else code
  if jax.distributed.is_initialized():
    os._exit(code)
  sys.exit(code)


@contextlib.contextmanager
def in_training() -> Iterator[None]:
  """Marks errors as those of training: few of them are the user's to fix.

  If there are several processes, it ends this one at once. It must be the
  innermost context: leaving the others may wait for processes that are gone.
  """
  try:
    yield
  except Exception as error:
    marked: Any = error
    marked.in_training = True
    if jax.process_count() > 1:
      fail(error)
    raise


def finish(code: int) -> NoReturn:
  """Ends a process that is done, or stopped and saved, with the others."""
  sys.stdout.flush()
  if jax.distributed.is_initialized():
    try:
      jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:
      # Another one was gone before the end; here all is done.
      print(f'Not all processes ended together: {error}', file=sys.stderr)
      sys.stderr.flush()
      os._exit(code)
  sys.exit(code)
