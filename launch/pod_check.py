"""One checker for the arguments of all back ends of `launch/pod.py`.

Every option has a rule here, by its name. The back end checks options that
depend on each other.
"""

import argparse
import math
import re
import shlex
from typing import NamedTuple


class Number(NamedTuple):
  """A number from low to high."""

  low: float
  high: float

  def problem(self, value: float) -> str:
    """Says what is allowed, or nothing if value is; NaN is not."""
    if math.isfinite(value) and self.low <= value <= self.high:
      return ''
    return f'give {self.low:,g} to {self.high:,g}.'


class Text(NamedTuple):
  """A text that a pattern describes as a whole.

  Attributes:
    pattern: a regular expression; of ASCII, but for '.'.
    allowed: what it says, with an example.
  """

  pattern: str
  allowed: str

  def problem(self, value: str) -> str:
    """Says what is allowed, or nothing if value is."""
    if re.fullmatch(self.pattern, value, re.ASCII):
      return ''
    return f'give {self.allowed}.'


class Words(NamedTuple):
  """A command, in words as a shell has them."""

  def problem(self, value: str) -> str:
    """Says what is wrong with its quotes, or nothing."""
    try:
      words = shlex.split(value)
    except ValueError as error:
      return f'it is not a command ({error}).'
    return '' if words else 'give a command.'


_ANY = Text(r'.+', 'a text')
_ID = r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?'
_CLOUD_NAME = Text(_ID, "lower-case letters, digits and '-', such as hope-1")
_TYPE = Text(_ID, 'a type such as v5litepod-256')
_GCLOUD = Text(r'--[a-z][-a-z0-9]*(=.+)?', 'a flag such as --network=NAME')

RULES = {
  'config': _ANY,
  'workdir': Text(
    r'(?![a-z0-9]*:/*$)[^][*?\\]+',
    'gs://BUCKET/DIRECTORY or a directory, without [ ] * ? and \\',
  ),
  'worker': Words(),
  'max_restarts': Number(0, 1_000_000),
  'reset_seconds': Number(0, 1e9),
  'grace_seconds': Number(0, 86_400),
  'processes': Number(1, 4096),
  'devices_per_process': Number(1, 4096),
  'log_dir': Text(r'(?!.*://).+', 'a directory on this machine'),
  'name': Text(
    r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?',
    "at most 40 lower-case letters, digits and '-', a letter first and no '-' "
    'last, such as hope-760m',
  ),
  'project': Text(
    r'[a-z0-9]([-a-z0-9.:]{0,98}[a-z0-9])?', 'the id of a project'
  ),
  'zone': Text(_ID, 'a zone such as us-west4-a'),
  'cluster': _CLOUD_NAME,
  'accelerator_type': _TYPE,
  'tpu_type': _TYPE,
  'runtime_version': Text(
    r'[a-z0-9][-a-z0-9._]*', 'a version such as v2-alpha-tpuv6e'
  ),
  'image': Text(
    r'[A-Za-z0-9][-\w./:@]*', 'an image such as gcr.io/PROJECT/hope:1'
  ),
  'slices': Number(1, 4096),
  'valid_until_duration': Text(
    r'(\d{1,6}[smhd])+', 'a duration such as 6h or 1h30m'
  ),
  'install': _ANY,
  'gcloud_create': _GCLOUD,
  'gcloud_ssh': _GCLOUD,
  'poll_seconds': Number(0.01, 3600),
  'nodes': Number(1, 100_000),
  'gpus_per_node': Number(0, 1024),
  'tasks_per_node': Number(1, 1024),
  'time': Text(
    r'\d{1,6}(:\d{1,2}){0,2}|\d{1,4}-\d{1,2}(:\d{1,2}){0,2}',
    "Slurm's MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS, such as 24:00:00",
  ),
  'partition': Text(r'\w[-\w.+,]*', 'a partition, or several: gpu,long'),
  'account': Text(r'\w[-\w.+@]*', 'an account'),
  'flags': _ANY,
}
# Options that argparse has checked: choices and switches.
CHOSEN = ('backend', 'action', 'tier', 'dry_run')


def check(options: argparse.Namespace) -> None:
  """Checks every argument by itself, before anything is made.

  Args:
    options: as parsed; None stands for an option that was not given.

  Raises:
    ValueError: for the first one that is not allowed.
  """
  for name, rule in RULES.items():
    given = getattr(options, name, None)
    for value in given if isinstance(given, list) else [given]:
      if value is None:
        continue
      if problem := _unprintable(value) or rule.problem(value):
        flag = '' if name == 'flags' else f'--{name.replace("_", "-")}='
        shown = ascii(value)[1:-1] if isinstance(value, str) else value
        raise ValueError(f'{flag}{shown} is not allowed: {problem}')
  for flag in options.flags:
    if re.match(r'--?(config|workdir|distributed)(=|$)', flag):
      raise ValueError(
        f'{flag} stands after --, but the launcher sets it; give --config and '
        '--workdir before --, and leave out --distributed.'
      )


def _unprintable(value: object) -> str:
  """Says so if a text has what could end a line of a script or a terminal's."""
  if isinstance(value, str) and not value.isprintable():
    return 'leave out newlines and other control characters.'
  return ''


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message: str):
    """Prints the line and exits with 2."""
    self.exit(2, f'error: {message} ({self.prog} --help lists the options)\n')
