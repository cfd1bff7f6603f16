"""The gang supervisor: the processes of one training run on this machine.

The processes live and die together. When one dies, the others are killed,
because they would wait for it, and the gang is started again. SIGTERM and
SIGINT are passed on as SIGTERM, on which training saves; a second signal kills.
"""

import argparse
import contextlib
import datetime
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import pod_plan

# The others' time between SIGTERM and SIGKILL after one died. It is short, as a
# save that needs the dead one cannot succeed.
KILL_SECONDS = 5.0


class Death(NamedTuple):
  """A process ended with this exit code, negative for a signal."""

  index: int
  code: int


class Signal(NamedTuple):
  """The supervisor got a signal."""

  number: int


class Restarts:
  """Counts failures in a row.

  Args:
    limit: How many restarts are allowed.
    reset_seconds: A run that lasted this long was no failure in a row.
  """

  def __init__(self, limit: int, reset_seconds: float):
    self._limit = limit
    self._reset_seconds = reset_seconds
    self.count = 0

  def allow(self, lasted: float) -> bool:
    """Whether to start again after a run that lasted so many seconds."""
    if lasted >= self._reset_seconds:
      self.count = 0
    self.count += 1
    return self.count <= self._limit


def say(message: str) -> None:
  """Prints a line of the launcher, with the time, on standard error."""
  now = datetime.datetime.now().isoformat(timespec='milliseconds')
  print(f'pod: {now} {message}', file=sys.stderr, flush=True)


def describe(code: int) -> str:
  """Returns what an exit code says."""
  if code >= 0:
    return f'exit code {code}'
  with contextlib.suppress(ValueError):
    return f'killed by {signal.Signals(-code).name}'
  return f'killed by signal {-code}'


class Gang:
  """Processes that are started together.

  Args:
    commands: One for each process.
    events: Gets a Death for each process that ends.
  """

  def __init__(self, commands, events: queue.SimpleQueue):
    self._alive: dict[int, subprocess.Popen] = {}
    self._lock = threading.Lock()
    try:
      for index, command in enumerate(commands):
        self._alive[index] = self._start(command)
    except OSError:
      self.kill()
      raise
    for index, process in list(self._alive.items()):
      threading.Thread(
        target=self._wait, args=(index, process, events), daemon=True
      ).start()

  @staticmethod
  def _start(command: pod_plan.Command) -> subprocess.Popen:
    path = [str(pod_plan.ROOT), os.environ.get('PYTHONPATH', '')]
    env = {
      **os.environ,
      'PYTHONPATH': os.pathsep.join(filter(None, path)),
      **dict(command.env),
    }
    with contextlib.ExitStack() as stack:
      output = None
      if command.log:
        pathlib.Path(command.log).parent.mkdir(parents=True, exist_ok=True)
        output = stack.enter_context(open(command.log, 'ab'))
      # A session of its own: Ctrl-C reaches the supervisor alone, and what a
      # process leaves behind can be killed with it.
      return subprocess.Popen(
        command.argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        env=env,
        start_new_session=True,
      )

  def _wait(self, index, process, events):
    code = process.wait()
    with self._lock:
      del self._alive[index]
      _signal_group(process.pid, signal.SIGKILL)  # its own children
    events.put(Death(index, code))

  def terminate(self) -> None:
    """Sends SIGTERM to the processes that are alive."""
    with self._lock:
      for process in self._alive.values():
        process.terminate()

  def kill(self) -> None:
    """Kills the processes that are alive, stopped ones too."""
    with self._lock:
      for process in self._alive.values():
        _signal_group(process.pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(group, number)


class Outcome(NamedTuple):
  """How a gang ended.

  Attributes:
    code: The exit code of the first process that failed; 42 if one saved and
      none failed, else 0.
    stopped: Whether the supervisor was asked to end.
    noticed: When the first process ended, in seconds of time.monotonic().
  """

  code: int
  stopped: bool
  noticed: float


def run_gang(
  gang: Gang, size: int, events: queue.SimpleQueue, grace_seconds: float
) -> Outcome:
  """Waits for all processes of a gang, and ends those that must end.

  Args:
    gang: The processes.
    size: How many there are.
    events: Deaths and Signals.
    grace_seconds: What the others have after one is done or has saved, and
      all have after a Signal.
  """
  codes: list[int] = []
  noticed = 0.0
  stopped = False
  deadline = None
  while len(codes) < size:
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    try:
      event = events.get(timeout=left)
    except queue.Empty:
      say(f'{size - len(codes)} of {size} processes did not end; killing them.')
      gang.kill()
      deadline = None
      continue
    now = time.monotonic()
    if isinstance(event, Signal):
      name = signal.Signals(event.number).name
      if stopped:
        say(f'{name} again: killing all processes.')
        gang.kill()
      else:
        say(f'{name}: asking all processes to save and end.')
        gang.terminate()
        deadline = now + grace_seconds
      stopped = True
      continue
    codes.append(event.code)
    noticed = noticed or now
    say(f'process {event.index}: {describe(event.code)}.')
    seconds = grace_seconds
    if event.code not in (0, pod_plan.SAVED):
      gang.terminate()
      seconds = KILL_SECONDS
    limit = now + seconds
    deadline = limit if deadline is None else min(deadline, limit)
  failures = [code for code in codes if code not in (0, pod_plan.SAVED)]
  return Outcome((failures or [max(codes)])[0], stopped, noticed)


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def run(options: argparse.Namespace) -> int:
  """Runs the gang until it is done; returns its exit code."""
  events: queue.SimpleQueue = queue.SimpleQueue()
  passed_on = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup does
    passed_on.append(signal.SIGHUP)
  for number in passed_on:
    signal.signal(number, lambda number, frame: events.put(Signal(number)))
  restarts = Restarts(options.max_restarts, options.reset_seconds)
  noticed = None
  while True:
    cpu = 'JAX_PLATFORMS' not in os.environ
    plan = pod_plan.local(options, _free_port(), cpu)
    gang = Gang(plan.commands, events)
    started = time.monotonic()
    again = (
      '' if noticed is None else f', {started - noticed:.2f} s after the death'
    )
    say(f'{options.processes} processes launched{again}.')
    for command in plan.commands[1:] if noticed is None else ():
      say(f'{command.purpose} writes to {command.log}.')
    outcome = run_gang(gang, options.processes, events, options.grace_seconds)
    noticed = outcome.noticed
    gone = time.monotonic()
    if gone > noticed and outcome.code:
      say(f'all processes are gone {gone - noticed:.2f} s after the death.')
    code = outcome.code if outcome.code >= 0 else 128 - outcome.code
    if outcome.stopped or not pod_plan.is_retried(outcome.code):
      return code
    if not restarts.allow(noticed - started):
      say(
        f'{describe(outcome.code)}, and --max-restarts={options.max_restarts} '
        'restarts in a row did not help.'
      )
      return code
    if not events.empty():  # a signal, between two gangs
      return code
    say(f'restart {restarts.count} of {options.max_restarts}.')
