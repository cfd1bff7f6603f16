"""Scores of examples in a file, to which a killed evaluation goes back.

Its first line says what was evaluated, each other line is an example: JSON
objects, written whole. A line that a kill cut short is dropped.
"""

from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

from hope.fields import shown


class ScoreFile:
  """The file; a context manager.

  Attributes:
    done: scores by the index of their example.
    path: of the file.
  """

  def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]):
    """Opens a file, or begins one.

    Args:
      path: of the file.
      identity: JSON values; a file of another one is refused.

    Raises:
      ValueError: if the file holds scores of something else, or no scores.
      OSError: if it cannot be written.
    """
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.done: dict[int, dict[str, Any]] = {}
    content = self.path.read_bytes() if self.path.exists() else b''
    whole = content[: content.rfind(b'\n') + 1]
    lines = whole.splitlines()
    if lines:
      self._check(lines[0], dict(identity))
    elif content and not _begins(content, dict(identity)):
      raise ValueError(self._foreign())
    for line in lines[1:]:
      record = self._parse(line)
      self.done.setdefault(record.pop('example'), record)
    # Unbuffered: a written line survives the end of the process.
    self._file = self.path.open('r+b' if content else 'wb', buffering=0)
    self._file.truncate(len(whole))
    self._file.seek(len(whole))
    if not lines:
      self._write(dict(identity))

  def __enter__(self) -> 'ScoreFile':
    return self

  def __exit__(self, kind, error, traceback) -> None:
    self._file.close()

  def append(self, example: int, scores: Mapping[str, Any]) -> None:
    """Writes the scores of an example; those of one that is done stay."""
    if example not in self.done:
      self._write({'example': example, **scores})
      self.done[example] = dict(scores)

  def _write(self, record: dict[str, Any]) -> None:
    line = (json.dumps(record) + '\n').encode()
    while line:
      line = line[self._file.write(line) :]

  def _foreign(self) -> str:
    return (
      f'{self.path} holds no scores of examples; give another file, or remove '
      'it.'
    )

  def _parse(self, line: bytes) -> dict[str, Any]:
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    if isinstance(record, dict) and type(record.get('example')) is int:
      return record
    raise ValueError(
      f'{self.path} has a line that is no score of an example: '
      f'{shown(line)}. Remove the file, to evaluate anew.'
    )

  def _check(self, line: bytes, identity: dict[str, Any]) -> None:
    """Raises ValueError if the first line is not of this identity."""
    try:
      found = json.loads(line)
    except ValueError:
      found = None
    if not isinstance(found, dict) or 'task' not in found:
      raise ValueError(self._foreign())
    identity = json.loads(json.dumps(identity))
    changed = [
      f'{name} is {shown(found.get(name))} there and {shown(value)} here'
      for name, value in identity.items()
      if found.get(name) != value
    ]
    if changed:
      raise ValueError(
        f'{self.path} holds scores of something else: {"; ".join(changed)}. '
        'Give another file, or remove it.'
      )


def _begins(content: bytes, identity: dict[str, Any]) -> bool:
  """Whether a file is the beginning of a first line that was cut short."""
  return (json.dumps(identity) + '\n').encode().startswith(content)
