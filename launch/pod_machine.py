"""Training on Cloud TPU VMs that are asked for as queued resources.

A state machine over `gcloud`: create, wait until the machines are there, set
them up, train, and delete them, whatever happened. Machines that are taken away
are deleted and asked for again.
"""

import argparse
from concurrent import futures
import contextlib
import enum
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pod_gcloud
from pod_local import Restarts, say
import pod_plan

# A resource that failed with one of these codes of google.rpc would fail again:
# INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, RESOURCE_EXHAUSTED.
_HOPELESS = (3, 5, 7, 8)

# How often in a row gcloud may fail to answer, or workers to be reached.
_PATIENCE = 3


class PodError(Exception):
  """The run cannot go on; code is the exit code to end with."""

  def __init__(self, message: str, code: int = 1):
    super().__init__(message)
    self.code = code


class Phase(enum.Enum):
  """What is to be done next."""

  CREATE = 'ask for the machines'
  WAIT = 'wait until they are there'
  SET_UP = 'copy this checkout, install'
  START = 'start training'
  FOLLOW = 'wait for its end'
  REPLACE = 'delete machines that were taken away, ask again'
  REMOVE = 'delete the machines'
  END = 'nothing'


class Run:
  """The state machine.

  Args:
    options: The flags, resolved.
    scratch: A directory for the archive.
  """

  def __init__(self, options: argparse.Namespace, scratch: str):
    self._options = options
    self._name = options.name
    self._scratch = scratch
    self.commands = pod_gcloud.Commands(options, scratch)
    self._restarts = Restarts(options.max_restarts, options.reset_seconds)
    self._started: float | None = None  # training, since the last restart
    self._state = ''
    self._fresh = False  # nothing was set up on these machines yet
    self._logs: subprocess.Popen | None = None
    self._lines = '100'
    self._ours = False  # this invocation made what is there
    self._code = 1

  def run(self, phase: Phase) -> int:
    """Goes from phase to phase until the end; returns the exit code.

    Raises:
      PodError: if the run cannot go on. What this invocation made is deleted.
    """
    steps = {
      Phase.CREATE: self._create,
      Phase.WAIT: self._wait,
      Phase.SET_UP: self._set_up,
      Phase.START: self._start,
      Phase.FOLLOW: self._follow,
      Phase.REPLACE: self._replace,
      Phase.REMOVE: self._remove,
    }
    try:
      while phase is not Phase.END:
        phase = steps[phase]()
    except Exception as error:
      if self._ours:
        self._remove_after(error)
      elif self._options.action == 'attach':
        say(f'{self._name} is left as it is; --action=delete deletes it.')
      raise
    finally:
      self._end_logs()
    return self._code

  def _call(self, command: pod_plan.Command) -> subprocess.CompletedProcess:
    # A session of its own, or Ctrl-C would reach gcloud amidst a request.
    return subprocess.run(
      command.argv,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      start_new_session=True,
    )

  def _on_each_node(self, make) -> list[subprocess.CompletedProcess]:
    commands = [make(node) for node in self.commands.nodes]
    with futures.ThreadPoolExecutor(len(commands)) as pool:
      return list(pool.map(self._call, commands))

  def _script(self, *words: str) -> list[subprocess.CompletedProcess]:
    return self._on_each_node(lambda node: self.commands.script(node, *words))

  def _pause(self) -> None:
    time.sleep(self._options.poll_seconds)

  def describe(self) -> dict | None:
    """Returns the queued resource, or None if there is none.

    Raises:
      PodError: if gcloud does not say.
    """
    for attempt in range(_PATIENCE):
      if attempt:
        self._pause()
      result = self._call(self.commands.describe())
      if result.returncode == 0:
        return json.loads(result.stdout)
      if 'NOT_FOUND' in result.stderr:
        return None
    raise PodError(
      f'gcloud does not say whether {self._name} is there: '
      f'{pod_gcloud.reason(result)}'
    )

  def _look(self) -> tuple[str, dict]:
    """Returns the state and its details, and says when it has changed."""
    resource = self.describe()
    if resource is None:
      self._ours = False
      raise PodError(f'{self._name} is gone: somebody deleted it.')
    state = resource.get('state', {})
    name = state.get('state', 'STATE_UNSPECIFIED')
    if name != self._state:
      say(f'{self._name} is {name}.')
      self._state = name
    return name, state

  def _create(self) -> Phase:
    options = self._options
    say(f'asking for {options.slices} x {options.accelerator_type}.')
    self._state = ''
    self._fresh = True
    result = self._call(self.commands.create())
    if result.returncode == 0:
      self._ours = True
      return Phase.WAIT
    found = self.describe()
    mine = options.invocation
    if found and pod_gcloud.labels(found).get(pod_gcloud.LABEL) == mine:
      self._ours = True  # made, although gcloud failed
    if 'ALREADY_EXISTS' not in result.stderr:
      raise PodError(
        f'{self._name} was not made: {pod_gcloud.reason(result)}'
        f'{pod_gcloud.hint(result.stderr)}',
        2,
      )
    if not self._ours:
      raise PodError(
        f'{self._name} exists already and was left as it is. Go on with it '
        'by --action=attach, delete it by --action=delete, or give another '
        '--name.',
        2,
      )
    return Phase.WAIT

  def _wait(self) -> Phase:
    while True:
      name, state = self._look()
      if name == 'ACTIVE':
        return Phase.SET_UP
      if name == 'FAILED':
        failure = state.get('failedData', {}).get('error', {})
        message = failure.get('message', 'no reason is given.')
        if failure.get('code') in _HOPELESS:
          raise PodError(f'{self._name} failed: {message}', 2)
        say(f'{self._name} failed: {message}')
      if name in ('FAILED', 'SUSPENDED'):
        return Phase.REPLACE
      self._pause()

  def _set_up(self) -> Phase:
    if not self._fresh:
      states = set(self._reach().values())
      if 'missing' not in states:
        # A worker that was started anew since is lost, and not halted.
        halted = 'running' not in states and any(
          state.startswith('halted') for state in states
        )
        say(f'training was {"halted" if halted else "started"} before.')
        return Phase.START if halted else Phase.FOLLOW
    file = pod_gcloud.command_file(self._options, self._scratch)
    pathlib.Path(file.path).write_text(file.text)
    results = [self._call(self.commands.pack())]
    if not results[0].returncode:
      say('copying this checkout to all workers.')
      results = self._on_each_node(self.commands.copy)
    if not any(result.returncode for result in results):
      say('installing on all workers; this takes minutes.')
      results = self._on_each_node(self.commands.install)
    return self._after(results, 'set up', Phase.START)

  def _start(self) -> Phase:
    self._end_logs()
    self._lines = '+1'
    self._fresh = False
    results = self._script('start')
    self._started = time.monotonic()
    return self._after(results, 'started', Phase.FOLLOW)

  def _after(self, results, done: str, phase: Phase) -> Phase:
    """Returns phase if all went well, and WAIT if machines were lost."""
    failed = [result for result in results if result.returncode]
    if not failed:
      say(f'{done} on all workers.')
      return phase
    if self._look()[0] != 'ACTIVE':
      return Phase.WAIT
    if any(map(pod_gcloud.is_unreachable, failed)):
      raise self._unreachable(failed[0])
    print(failed[0].stdout + failed[0].stderr, file=sys.stderr)
    raise PodError(
      f'{self._name} is not {done} on all workers: what failed is above.'
    )

  def _unreachable(self, result: subprocess.CompletedProcess) -> PodError:
    return PodError(
      f'not all workers of {self._name} can be reached: '
      f'{pod_gcloud.reason(result)} Is port 22 open to this machine '
      '(--gcloud-ssh=--internal-ip from within the network), and is your key '
      'in ssh-agent?'
    )

  def _reach(self) -> dict[str, str]:
    """Returns each worker's state.

    Raises:
      PodError: if not all workers can be reached, several times.
    """
    for attempt in range(_PATIENCE):
      if attempt:
        self._pause()
      results = self._on_each_node(self.commands.status)
      failed = [result for result in results if result.returncode]
      if not failed:
        return pod_gcloud.parse_status(
          ''.join(result.stdout for result in results)
        )
    raise self._unreachable(failed[0])

  def _follow(self) -> Phase:
    first_end = None
    while True:
      self._show_logs()
      self._pause()
      if self._look()[0] != 'ACTIVE':
        return Phase.WAIT
      try:
        workers = self._reach()
      except PodError as error:
        say(f'{error}')
        return Phase.REPLACE if self._look()[0] == 'ACTIVE' else Phase.WAIT
      codes = pod_gcloud.exit_codes(workers)
      if len(codes) == len(workers):
        return self._after_training(workers, codes)
      if codes:
        now = time.monotonic()
        first_end = first_end or now
        well = pod_gcloud.outcome(codes) in (0, pod_plan.SAVED)
        if not well or now - first_end > self._options.grace_seconds:
          say(f'{len(workers) - len(codes)} workers are left; ending them.')
          self._script('stop', '5')

  def _after_training(self, workers: dict[str, str], codes: list[int]) -> Phase:
    self._end_logs(wait=5)
    self._code = pod_gcloud.outcome(codes)
    say(f'training has ended: exit codes {pod_gcloud.count_codes(codes)}.')
    if any(state.startswith('halted') for state in workers.values()):
      say(f'it was halted; {self._name} is still there and costs money.')
      return Phase.END
    if not pod_plan.is_retried(self._code):
      if self._code:
        for result in self._script('last', '20'):
          print(result.stdout, end='', flush=True)
      return Phase.REMOVE
    if self._look()[0] != 'ACTIVE':
      return Phase.WAIT
    return Phase.START if self._may_restart() else Phase.REMOVE

  def _may_restart(self) -> bool:
    now = time.monotonic()
    lasted = now - self._started if self._started else 0.0
    self._started = None
    limit = self._options.max_restarts
    if not self._restarts.allow(lasted):
      say(f'--max-restarts={limit} restarts in a row did not help.')
      return False
    say(f'restart {self._restarts.count} of {limit}.')
    return True

  def _replace(self) -> Phase:
    again = self._may_restart()
    self._remove()
    return Phase.CREATE if again else Phase.END

  def _remove_after(self, error: Exception) -> None:
    try:
      self._remove()
    except PodError as second:
      raise PodError(f'{error} {second}') from error

  def _remove(self) -> Phase:
    self._end_logs()
    say(f'deleting {self._name}.')
    self._ours = False  # below is all that can be done about it
    command = self.commands.delete()
    for attempt in range(_PATIENCE):
      if attempt:
        self._pause()
      result = self._call(command)
      if result.returncode == 0 or 'NOT_FOUND' in result.stderr:
        say(f'{self._name} is deleted.')
        return Phase.END
    raise PodError(
      f'{self._name} could NOT be deleted and may cost money: '
      f'{pod_gcloud.reason(result)} Delete it by\n  {shlex.join(command.argv)}'
    )

  def _show_logs(self) -> None:
    """Keeps the log of worker 0 coming, through one connection."""
    if self._logs is None or self._logs.poll() is not None:
      self._logs = subprocess.Popen(
        self.commands.logs(self._lines).argv,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
      )
      self._lines = '5'  # if the connection breaks

  def _end_logs(self, wait: float = 0) -> None:
    if self._logs:
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._logs.wait(wait)
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._logs.pid, signal.SIGKILL)
      self._logs.wait()
      self._logs = None

  def halt(self) -> int:
    """Ends training for good and keeps the machines; returns the exit code."""
    self._script('halt', str(self._options.grace_seconds))
    workers = self._reach()
    for host, state in sorted(workers.items()):
      say(f'{host}: {state}')
    say(f'{self._name} is still there and costs money: --action=delete.')
    codes = pod_gcloud.exit_codes(workers)
    saved = len(codes) == len(workers) and set(codes) <= {0, pod_plan.SAVED}
    return 0 if saved else 1

  def delete(self) -> int:
    """Deletes the machines; returns the exit code."""
    self._remove()
    return 0
