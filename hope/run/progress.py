"""How far a run is, on the console."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import sys
import time
from typing import Any, TextIO

import rich.console
import rich.progress

# Metrics that are shown, with their units.
_SHOWN = {
  'loss': ('loss ', ''),
  'bits_per_byte': ('', ' bits/byte'),
  'accuracy': ('accuracy ', ''),
}
# Updates over which speed is averaged.
_WINDOW = 20


def format_duration(seconds: float | None) -> str:
  """Returns seconds as two units, like '3m 05s'; '?' for None."""
  if seconds is None:
    return '?'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days}d {hours:02d}h'
  if hours:
    return f'{hours}h {minutes:02d}m'
  if minutes:
    return f'{minutes}m {seconds:02d}s'
  return f'{seconds}s'


def format_metrics(values: Mapping[str, Any]) -> str:
  """Returns the metrics worth a line, like 'loss 2.31  3.33 bits/byte'."""
  return '  '.join(
    f'{before}{float(values[name]):.4g}{after}'
    for name, (before, after) in _SHOWN.items()
    if name in values
  )


class Progress:
  """Shows the progress of a run: a bar in a terminal, else plain lines.

  A context manager. The time up to the first update, which has the
  compilation in it, is not used to estimate speed; that is '?' until the
  second update.
  """

  def __init__(
    self,
    steps: int,
    *,
    tokens_per_step: int,
    start: int = 0,
    enabled: bool = True,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      steps: Training steps in the whole run.
      tokens_per_step: Tokens of one step, over all processes.
      start: Steps done before.
      enabled: Whether to show anything; false in all processes but one.
      stream: Where to show it. None: the standard output.
      clock: Seconds since some point in time.
    """
    self._steps = steps
    self._start = start
    self._tokens_per_step = tokens_per_step
    self._clock = clock
    self._begin = clock()
    # Of recent updates: steps done, and seconds without pauses.
    self._marks = collections.deque(maxlen=_WINDOW)
    self._pauses = collections.defaultdict(list)
    self._enabled = enabled
    self._stream = stream or sys.stdout
    self._bar = None
    console = rich.console.Console(file=self._stream, highlight=False)
    if enabled and console.is_terminal and not console.is_dumb_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('step {task.completed}/{task.total}'),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TextColumn('{task.description}', markup=False),
        console=console,
        expand=True,
      )
      self._task = self._bar.add_task('compiling', total=steps, completed=start)

  def __enter__(self) -> Progress:
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if self._bar:
      self._bar.stop()

  def update(self, step: int, values: Mapping[str, Any]) -> dict[str, float]:
    """Shows a step.

    Args:
      step: Training steps done; its numbers have arrived from the device.
      values: Metrics by name; those worth a line are shown.

    Returns:
      What the clock says: 'seconds' since the start and, from the second
      update on, 'tokens_per_second' without pauses.
    """
    now = self._clock()
    paused = sum(map(sum, self._pauses.values()))
    self._marks.append((step, now - self._begin - paused))
    timing = {'seconds': now - self._begin}
    speed, left = '?', None
    step_seconds = self._step_seconds()
    if step_seconds:
      timing['tokens_per_second'] = self._tokens_per_step / step_seconds
      speed = f'{timing["tokens_per_second"]:,.0f}'
    if step_seconds is not None:
      each = step_seconds + self._pause_seconds() / (step - self._start)
      left = (self._steps - step) * each
    text = (
      f'{format_metrics(values)}  {speed} tokens/s  '
      f'{format_duration(left)} left'
    )
    if self._bar:
      self._bar.update(self._task, completed=step, description=text)
    else:
      self.note(f'step {step}/{self._steps}  {text}')
    return timing

  @contextlib.contextmanager
  def pause(self, name: str) -> Iterator[None]:
    """Marks what is not a training step, such as an evaluation.

    Its time does not count for the speed, but it does for the time left, as
    the pause will come again.

    Args:
      name: Of what goes on. Its first time includes compilation and is not
        used for the estimate once there are others.
    """
    begin = self._clock()
    try:
      yield
    finally:
      self._pauses[name].append(self._clock() - begin)

  def note(self, text: str) -> None:
    """Shows a line of text."""
    if not self._enabled:
      return
    if self._bar:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      print(text, file=self._stream, flush=True)

  def _step_seconds(self) -> float | None:
    """Returns the seconds of a recent step, or None if unknown."""
    (first, begin), (last, end) = self._marks[0], self._marks[-1]
    return (end - begin) / (last - first) if last > first else None

  def _pause_seconds(self) -> float:
    """Returns the seconds of all pauses, each as long as a typical one."""
    total = 0.0
    for seconds in self._pauses.values():
      later = seconds[1:] or seconds
      total += len(seconds) * sum(later) / len(later)
    return total
