"""How a program ends: one line where the user can fix it, else a traceback.

Only the standard library is imported, so that every command can use it. A
`ValueError` or an `OSError` that reaches a command counts as a mistake that the
user can fix, because all checks in the code raise one of these.
"""

import re
import sys
import traceback

# Exit codes of a program.
FAILED = 1  # it cannot go on: a loss that is not finite, a bug
MISUSED = 2  # something that the user can fix

# A word that is longer than a message should be, and its two ends.
_LONG = re.compile(r'(\S{100})\S{200,}(\S{20})')


class ExplainedError(RuntimeError):
  """The reason why a program ends; not a bug, so its text is enough.

  Attributes:
    exit_code: of the program.
  """

  exit_code = FAILED


class FixableError(ExplainedError):
  """The same, where the user can fix it."""

  exit_code = MISUSED


def exit_code(error: BaseException) -> int | None:
  """The exit code of an error whose text is enough; None: it is a bug."""
  if isinstance(error, ExplainedError):
    return error.exit_code
  return MISUSED if isinstance(error, ValueError | OSError) else None


def message(error: BaseException | str) -> str:
  """An error's text, safe to print: not endless, no control characters.

  Choice: a word that is longer than most paths is cut to its two ends.
  """
  text = _LONG.sub(r'\1...\2', str(error))
  return ''.join(
    letter if letter.isprintable() or letter == '\n' else ascii(letter)[1:-1]
    for letter in text
  )


def say(error: BaseException | str) -> None:
  """Prints 'error: ' and a message to the standard error."""
  print(f'error: {message(error)}', file=sys.stderr, flush=True)


def report(error: BaseException) -> int:
  """Says why a program ends; returns its exit code."""
  code = exit_code(error)
  if code is None:
    traceback.print_exception(error)
    return FAILED
  say(error)
  return code
