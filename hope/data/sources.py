"""Documents with random access, by name, and their held-out split.

A source is `stdlib`, `text:GLOB` or `tfds:NAME[:SPLIT]`. Each document has a
name that is the same on every machine, and a hash of that name alone decides
whether the document is held out.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import difflib
import glob
import hashlib
import os
import sysconfig
from typing import Protocol

import ml_collections
import numpy as np

_KINDS = ('stdlib', 'text:GLOB', 'tfds:NAME[:SPLIT]', 'synthetic:TASK')


class Source(Protocol):
  """Documents that can be read in any order."""

  def __len__(self) -> int:
    """Returns the number of documents."""

  def name(self, index: int) -> str:
    """Returns the name of a document, the same on every machine."""

  def read(self, index: int) -> bytes:
    """Returns the text of a document."""

  def fingerprint(self) -> str:
    """Returns a hash that changes when the set of documents changes."""


class FileSource:
  """The non-empty files of a list, in the order of their relative paths."""

  def __init__(self, root: str, paths: Iterable[str]):
    """Lists the files.

    Args:
      root: Folder that the names are relative to.
      paths: Files under `root`.

    Raises:
      ValueError: A file cannot be read.
    """
    names = {os.path.relpath(p, root).replace(os.sep, '/'): p for p in paths}
    self._files = []
    for name, path in sorted(names.items()):
      try:
        size = os.stat(path).st_size
      except OSError as error:
        raise _unreadable(path, error.strerror) from error
      if not os.access(path, os.R_OK):
        raise _unreadable(path, 'permission denied')
      if size:
        self._files.append((name, path, size))

  def __len__(self) -> int:
    return len(self._files)

  def name(self, index: int) -> str:
    """Returns the path relative to the root, with /."""
    return self._files[index][0]

  def read(self, index: int) -> bytes:
    """Returns the bytes of the file."""
    path = self._files[index][1]
    try:
      with open(path, 'rb') as file:
        return file.read()
    except OSError as error:
      raise _unreadable(path, error.strerror) from error

  def fingerprint(self) -> str:
    """Returns a hash of names and sizes."""
    listing = '\n'.join(f'{size} {name}' for name, _, size in self._files)
    return _hash(listing).hex()


def stdlib_source() -> FileSource:
  """Returns the Python sources of the running Python's standard library.

  They include `pydoc_data/topics.py`, its language reference in prose, and
  exclude installed packages.
  """
  root = sysconfig.get_paths()['stdlib']
  paths = []
  for folder, folders, files in os.walk(root):
    folders[:] = [
      f for f in folders if f not in ('site-packages', 'dist-packages')
    ]
    paths += [os.path.join(folder, f) for f in files if f.endswith('.py')]
  if not paths:
    raise ValueError(
      f'data.source=stdlib: no .py file under {root}; this Python has no '
      'sources of its library, so give data.source=text:GLOB.'
    )
  return FileSource(root, paths)


def text_source(pattern: str) -> FileSource:
  """Returns the files that match a glob, in which `**` crosses folders.

  Names are relative to the folder before the first wildcard.

  Args:
    pattern: The glob; `~` is the home folder.

  Raises:
    ValueError: Nothing matches, everything is empty, or a file is unreadable.
  """
  given = f'data.source=text:{pattern}'
  pattern = os.path.expanduser(pattern)
  paths = [
    p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p)
  ]
  if not paths:
    raise ValueError(
      f'{given}: no file matches (looked from {os.getcwd()}); '
      "check the path, and write '**/*.txt' to search folders within folders."
    )
  root = pattern
  while glob.has_magic(root) or root == pattern:
    root = os.path.dirname(root)
  source = FileSource(root or os.curdir, paths)
  if not len(source):
    raise ValueError(
      f'{given}: all {len(paths)} matching files are empty; '
      'give files with text.'
    )
  return source


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A source and its two splits.

  Attributes:
    source: All documents.
    train: Indices of the training documents, in the order of the source.
    heldout: Indices of the held-out documents, in the order of the hash of
      their names, so that the first n are a fair sample.
  """

  source: Source
  train: np.ndarray
  heldout: np.ndarray

  def documents(self, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields name and text of the documents of 'train' or 'heldout'."""
    if split not in ('train', 'heldout'):
      raise ValueError(f"split={split!r}: give 'train' or 'heldout'.")
    for index in getattr(self, split).tolist():
      yield self.source.name(index), self.source.read(index)


def open_corpus(config: ml_collections.ConfigDict) -> Corpus:
  """Opens `data.source` and splits it by `data.heldout_fraction`.

  Args:
    config: The run's configuration.

  Raises:
    ValueError: The source is unknown, missing or empty, or a split is empty.
  """
  source = _open_source(config)
  fraction = config.data.heldout_fraction
  if not 0 < fraction < 1:
    raise ValueError(
      f'data.heldout_fraction={fraction} is outside (0, 1); try 0.02.'
    )
  # 64-bit fractions of the hash range are compared as integers: no rounding.
  limit = int(fraction * 2**64)
  ranks = np.array(
    [_rank(source.name(i)) for i in range(len(source))], np.uint64
  )
  held = ranks < limit
  heldout = np.flatnonzero(held)
  corpus = Corpus(
    source, np.flatnonzero(~held), heldout[np.argsort(ranks[heldout])]
  )
  for split, advice in (('heldout', 'raise'), ('train', 'lower')):
    if not len(getattr(corpus, split)):
      raise ValueError(
        f'data.heldout_fraction={fraction} leaves no {split} document among '
        f'the {len(source)} of data.source={config.data.source}; {advice} it, '
        'or give more documents (a long file can be split into several).'
      )
  return corpus


def documents(
  config: ml_collections.ConfigDict, split: str
) -> Iterator[tuple[str, bytes]]:
  """Yields name and text of each document of a split.

  Args:
    config: The run's configuration.
    split: 'train' or 'heldout'.
  """
  return open_corpus(config).documents(split)


def _open_source(config: ml_collections.ConfigDict) -> Source:
  kind, _, rest = config.data.source.partition(':')
  if kind == 'stdlib' and not rest:
    return stdlib_source()
  if kind == 'text' and rest:
    return text_source(rest)
  if kind == 'tfds' and rest:
    # TFDS takes a second to import, so only its users pay for it.
    from hope.data import tfds_source

    return tfds_source.open_tfds(rest, config.data.tfds_dir)
  if kind == 'synthetic':
    raise ValueError(
      f'data.source={config.data.source} generates numbers and has no '
      'documents; give stdlib, text:GLOB or tfds:NAME[:SPLIT].'
    )
  raise ValueError(
    f'data.source={config.data.source!r} is unknown; '
    f'{nearest(config.data.source, _KINDS)}'
  )


def nearest(given: str, allowed: Sequence[str]) -> str:
  """Returns 'allowed: ...', with the nearest choice first if one is near."""
  heads = {choice.partition(':')[0]: choice for choice in allowed}
  near = difflib.get_close_matches(given.partition(':')[0], heads, 1)
  hint = f'did you mean {heads[near[0]]}? ' if near else ''
  return f'{hint}Allowed: {", ".join(allowed)}.'


def _hash(text: str) -> bytes:
  data = text.encode('utf-8', 'surrogateescape')
  return hashlib.blake2b(data, digest_size=8).digest()


def _rank(name: str) -> int:
  return int.from_bytes(_hash(name), 'big')


def _unreadable(path: str, reason: str | None) -> ValueError:
  return ValueError(
    f'cannot read {path}: {reason}; fix the file or leave it out of the glob.'
  )
