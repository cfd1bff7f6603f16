"""How a program ends: one line where the user can mend it, else a traceback.

Only the standard library is imported, so that every command can use it. A
`ValueError` or an `OSError` that reaches a command is taken for the user's to
mend: that is how all of the code raises what it checks.
"""

import sys
import traceback

# Exit codes of a program.
FAILED = 1  # it cannot go on: a loss that is not finite, a bug
MISUSED = 2  # something that the user can mend

# Letters of a message that are printed.
_LONGEST = 4000


class ExplainedError(RuntimeError):
  """The reason why a program ends, whose text says all: no bug.

  Attributes:
    exit_code: of the program.
  """

  exit_code = FAILED


class MendableError(ExplainedError):
  """The same, where the user can mend it."""

  exit_code = MISUSED


def exit_code(error: BaseException) -> int | None:
  """The exit code of an error whose text says all; None: it is a bug."""
  if isinstance(error, ExplainedError):
    return error.exit_code
  return MISUSED if isinstance(error, ValueError | OSError) else None


def _printable(text: str) -> str:
  """A message without what would move the cursor, and not endless."""
  if len(text) > _LONGEST:
    text = f'{text[:_LONGEST]}...'
  return ''.join(
    letter if letter.isprintable() or letter == '\n' else ascii(letter)[1:-1]
    for letter in text
  )


def say(error: BaseException | str) -> None:
  """Prints 'error: ' and a message to the standard error."""
  print(f'error: {_printable(str(error))}', file=sys.stderr, flush=True)


def report(error: BaseException) -> int:
  """Says why a program ends; returns its exit code."""
  code = exit_code(error)
  if code is None:
    traceback.print_exception(error)
    return FAILED
  say(error)
  return code
