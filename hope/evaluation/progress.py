"""How far an evaluation is, on the console."""

from collections.abc import Callable
import sys
import time
from typing import Any, TextIO

import rich.console
import rich.progress

from hope.run.progress import format_duration

# Seconds between two lines where there is no terminal.
_PAUSE = 10.0


class ExampleProgress:
  """Shows examples, examples per second and the time left; a context manager.

  A bar in a terminal, else plain lines. The first update, which has the
  compilation in it, is not used to estimate speed.
  """

  def __init__(
    self,
    label: str,
    number: int,
    done: int = 0,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts at what is done.

    Args:
      label: of what is evaluated.
      number: of examples.
      done: examples that were done before.
      stream: where to show it. None: the standard output.
      clock: seconds since some point in time.
    """
    self._label, self._number, self._done = label, number, done
    self._clock, self._stream = clock, stream or sys.stdout
    self._first: tuple[int, float] | None = None
    self._shown = clock()
    self._bar = None
    console = rich.console.Console(file=self._stream, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn(f'{label} {{task.completed}}/{{task.total}}'),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TextColumn('{task.description}', markup=False),
        console=console,
        expand=True,
      )
      self._task = self._bar.add_task('compiling', total=number, completed=done)

  def __enter__(self) -> 'ExampleProgress':
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, kind, error, traceback) -> None:
    if self._bar:
      self._bar.stop()

  def update(self, done: int) -> None:
    """Shows how many examples are done."""
    now = self._clock()
    self._done = done
    self._first = self._first or (done, now)
    speed, left = '?', None
    if (count := done - self._first[0]) and now > self._first[1]:
      each = (now - self._first[1]) / count
      speed, left = f'{1 / each:.3g}', (self._number - done) * each
    self._show(
      f'{speed} examples/s  {format_duration(left)} left',
      last=done == self._number,
    )

  def reading(self, tokens: int) -> None:
    """Shows how much of the prompts that come next is read."""
    self._show(f'reading a prompt: {tokens:,} tokens')

  def _show(self, text: str, last: bool = False) -> None:
    if self._bar:
      shown: Any = {'completed': self._done, 'description': text}
      self._bar.update(self._task, **shown)
    elif last or self._clock() >= self._shown + _PAUSE:
      self._shown = self._clock()
      print(
        f'{self._label} {self._done}/{self._number}  {text}',
        file=self._stream,
        flush=True,
      )
