"""Ctrl-C and SIGTERM: they end a program at once, or after training has saved.

Python runs signal handlers in the main thread, between two of its own
instructions. A compilation is a single instruction and takes minutes. Python
also writes each signal to a file descriptor at once, so a thread waits there.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from typing import NoReturn

# Seconds in which a second signal counts as a copy of the first one: shells and
# launchers pass on what the terminal has already sent. A later one ends the
# program.
_COPY_SECONDS = 1.0
# A bar of progress has hidden it.
_SHOW_CURSOR = b'\x1b[?25h'


class _Watch:
  """What signals do in this process.

  Attributes:
    save: what makes training save and end; None while nothing is to be saved.
    codes: exit codes by the number of the signal that ends the program.
    runtime: the handler of SIGTERM that jax's runtime had set, if any.
  """

  def __init__(self):
    self.save: Callable[[], None] | None = None
    self.codes: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
    self.runtime: Callable[[int], None] | None = None
    self._saving_since: float | None = None

  def get(self, number: int) -> None:
    """Acts on a signal; may be called in any thread."""
    name = 'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'
    now = time.monotonic()
    if self._saving_since is not None:
      if now - self._saving_since < _COPY_SECONDS:
        return
      self._end(number, f'{name} again: ended without saving.')
    if self.save is None:
      self._end(number, f'{name}: ended; there was nothing to save.')
    self._saving_since = now
    _say(f'{name}: saving after this step; once more ends at once.')
    self.save()

  def _end(self, number: int, text: str) -> NoReturn:
    _say(text)
    os._exit(self.codes[number])


def _say(text: str) -> None:
  """Prints a line without a lock that the main thread may hold."""
  with contextlib.suppress(OSError):  # nobody may read it any more
    if os.isatty(1):
      os.write(1, _SHOW_CURSOR)
    os.write(2, f'{text}\n'.encode())


_watch: _Watch | None = None


def watch() -> None:
  """From now on Ctrl-C and SIGTERM end this program with 130 and 143.

  They do so within a second and in one line, whatever the main thread does.
  For programs that are a command; call it in the main thread, once.
  """
  global _watch
  _watch = watching = _Watch()
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
  signal.signal(signal.SIGTERM, _do_nothing)
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _do_nothing)  # else a shell's `&` ignores it

  def read() -> None:
    while number := reader.recv(1):
      if number[0] in watching.codes:
        watching.get(number[0])

  threading.Thread(target=read, daemon=True, name='signals').start()


def _do_nothing(number, frame) -> None:
  """Stands for the thread that acts."""


def save_first(save: Callable[[], None] | None) -> None:
  """Makes the first signal call `save`; a second one still ends the program.

  Args:
    save: ends training in a while, and may be called in any thread. None: the
      first one ends the program again.
  """
  if _watch is not None:
    _watch.save = save


def take_over(code: int, start: Callable[[], None]) -> None:
  """Calls what sets a handler of SIGTERM in C++, and keeps this one's instead.

  Args:
    code: of a program that SIGTERM ends while there is nothing to save.
    start: starts jax's runtime of several processes.
  """
  if _watch is None:
    start()
    return
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  libc.signal.restype = ctypes.c_void_p
  _watch.codes[signal.SIGTERM] = code
  start()
  handler = libc.signal(signal.SIGTERM, None)
  signal.signal(signal.SIGTERM, _do_nothing)
  _watch.runtime = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)


def tell_runtime() -> None:
  """Tells jax's runtime of a SIGTERM: all processes stop after one step."""
  if _watch is not None and _watch.runtime is not None:
    _watch.runtime(signal.SIGTERM)
