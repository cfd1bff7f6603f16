"""Starting a program whose flags hold a configuration."""

from collections.abc import Callable, Sequence
import functools
import os
import sys

from absl import app, flags


def _parse(argv: Sequence[str]) -> list[str]:
  """Reads the flags; a mistake in one is said in a line and exits with 2."""
  try:
    return flags.FLAGS(argv)
  except (
    flags.Error,
    KeyError,
    AttributeError,
    TypeError,
    ValueError,
  ) as error:
    reason = error.args[0] if error.args else error
    print(f'error: {reason}', file=sys.stderr)
    print(f'{argv[0]} --help lists the flags.', file=sys.stderr)
    sys.exit(2)
  except OSError as error:  # the experiment file
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


def _use_huge_pages() -> None:
  """Starts this command anew with huge pages, which glibc gives if asked.

  glibc reads the setting when a process starts. A training step on the CPU
  takes a tenth to a quarter less time with them. The process keeps its id; a
  setting that the environment has is kept.
  """
  if sys.platform == 'linux' and 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _start(main: Callable[[list[str]], None], argv: list[str]) -> None:
  """Runs main; what it compiles is kept for the next start."""
  from hope import compilation_cache  # after the flags, as jax is slow

  compilation_cache.use()
  main(argv)


def run(main: Callable[[list[str]], None]) -> None:
  """Runs main with the arguments that are no flags."""
  _use_huge_pages()
  app.run(functools.partial(_start, main), flags_parser=_parse)
