"""The sentences in which tasks of text hide what they ask for.

`Choice:` a sentence ends behind '.', '!' or '?' and white space, or at an empty
line; white space within it becomes a space.
"""

import glob
import os
import pathlib
import re
from typing import NamedTuple

from hope.data.content import fingerprint
from hope.data.files import matching_files

_END = re.compile(r'(?<=[.!?])\s+|\n\s*\n')


class Background(NamedTuple):
  """Sentences, and what they come from.

  Attributes:
    sentences: in the order of the files' paths.
    fingerprint: a hash of them, the same on every machine. None: there are
      none.
  """

  sentences: tuple[str, ...] = ()
  fingerprint: str | None = None


def open_background(path: str | None) -> Background:
  """Reads the sentences of texts.

  Args:
    path: `data.task.text`: a file, a folder, of which the files '*.txt' at any
      depth are read, or a glob. None: no background.

  Raises:
    ValueError: There is no such file, or one that is not UTF-8 or is
      unreadable, or no sentence.
  """
  if path is None:
    return Background()
  given = f'data.task.text={path!r}'
  pattern = os.path.expanduser(path)
  if os.path.isdir(pattern):
    pattern = os.path.join(glob.escape(pattern), '**', '*.txt')
  try:
    found = [pattern] if os.path.isfile(pattern) else matching_files(pattern)
    paths = sorted(set(map(pathlib.Path, found)))
    texts = [path.read_text('utf-8') for path in paths]
  except UnicodeError as error:
    raise ValueError(
      f'{given}: not a path, or a file that is not UTF-8 ({error}); give files '
      'of plain text.'
    ) from error
  except (ValueError, OSError) as error:
    raise ValueError(f'{given}: {error}; give readable files.') from error
  if not found:
    raise ValueError(
      f'{given}: no file matches (looked from {os.getcwd()}); give a file, a '
      "folder with files '*.txt', or a glob."
    )
  sentences = tuple(
    ' '.join(sentence.split())
    for text in texts
    for sentence in _END.split(text)
    if sentence.strip()
  )
  if not sentences:
    raise ValueError(f'{given}: no file has a sentence; give files with text.')
  return Background(sentences, fingerprint(sentences))
