"""Documents with random access, by name, and their held-out split.

A source is `stdlib`, `text:GLOB` or `tfds:NAME[:SPLIT]`. Each document has a
name that is the same on every machine, and a hash of that name alone decides
whether the document is held out.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import difflib
import glob
import hashlib
import os
import sysconfig
from typing import Protocol

from absl import logging
import ml_collections
import numpy as np

from hope.data.content import content_digests, fingerprint
from hope.data.files import FileSource, matching_files

_KINDS = ('stdlib', 'text:GLOB', 'tfds:NAME[:SPLIT]', 'synthetic:TASK')


class Source(Protocol):
  """Documents that can be read in any order."""

  def __len__(self) -> int:
    """Returns the number of documents."""

  def name(self, index: int) -> str:
    """Returns the name of a document, the same on every machine."""

  def read(self, index: int) -> bytes:
    """Returns the text of a document."""

  def sample(self, index: int, limit: int | None) -> bytes:
    """Returns the text, or about so many bytes of it, the same each time."""

  def num_bytes(self) -> int:
    """Returns the bytes of all documents, or an estimate."""

  def listing(self) -> str:
    """Returns what a source knows of its documents without reading them."""


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
  given = f'data.source={"text:" + pattern!r}'
  pattern = os.path.expanduser(pattern)
  try:
    paths = matching_files(pattern)
  except UnicodeError as error:
    raise ValueError(f'{given}: not a path ({error}).') from error
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
    train: [n], indices of the training documents, in the order of the source.
    heldout: [m], indices of the held-out documents, in the order of the hash of
      their names, so that the first n are a fair sample.
    copies: Those of `train` whose content an earlier one has, and which are
      not read.
    fingerprint: Hash of all documents by content; see `identity`.
  """

  source: Source
  train: np.ndarray
  heldout: np.ndarray
  copies: frozenset[int]
  fingerprint: str

  def documents(self, split: str) -> Iterator[tuple[str, bytes]]:
    """Yields name and text of the documents of 'train' or 'heldout'."""
    if split not in ('train', 'heldout'):
      raise ValueError(f"split={split!r}: give 'train' or 'heldout'.")
    for index in getattr(self, split).tolist():
      if index not in self.copies:
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
  digests, complete = content_digests(source)
  # 64-bit fractions of the hash range are compared as integers: no rounding.
  limit = int(fraction * 2**64)
  ranks = np.array(
    [_rank(source.name(i)) for i in range(len(source))], np.uint64
  )
  held = ranks < limit
  heldout = np.flatnonzero(held)
  heldout = heldout[np.argsort(ranks[heldout])]
  train, heldout, copies = _without_copies(
    np.flatnonzero(~held), heldout, digests if complete else {}
  )
  hashed = (f'{i} {digests[i].hex()}' for i in sorted(digests))
  corpus = Corpus(
    source=source,
    train=train,
    heldout=heldout,
    copies=copies,
    fingerprint=fingerprint([source.listing(), *hashed]),
  )
  for split, advice in (('heldout', 'raise'), ('train', 'lower')):
    if not len(getattr(corpus, split)):
      raise ValueError(
        f'data.heldout_fraction={fraction} leaves no {split} document among '
        f'the {len(source)} of data.source={config.data.source}; {advice} it, '
        'or give more documents (a long file can be split into several).'
      )
  return corpus


def _without_copies(
  train: np.ndarray, heldout: np.ndarray, digests: dict[int, bytes]
) -> tuple[np.ndarray, np.ndarray, frozenset[int]]:
  """Finds documents of the same bytes; each counts once, by its first name.

  Choice: the first name decides whether a text is held out. So no copy of a
  scored text is trained on, and a text with many copies is not more likely to
  be held out than others. Copies among the training documents keep their places
  in the order and are skipped, as rows of a batch would be copies too. This
  costs nothing: the hashes are those of the identity. In a corpus that is too
  large to be hashed whole, copies are not looked for.

  Args:
    train: Indices of training documents.
    heldout: Indices of held-out documents.
    digests: Hashes of all documents' contents by index, or none.

  Returns:
    The two without copies, and the copies within `train`, which stay there.
  """
  if not digests:
    logging.info('Copies of documents are not looked for: too much to hash.')
    return train, heldout, frozenset()
  first = {digests[index]: index for index in sorted(digests, reverse=True)}
  trained = set(train.tolist())
  kept = [i for i in heldout.tolist() if first[digests[i]] == i]
  dealt = [i for i in train.tolist() if first[digests[i]] in trained]
  copies = frozenset(i for i in dealt if first[digests[i]] != i)
  left_out = len(digests) - len(kept) - len(dealt) + len(copies)
  if left_out:
    logging.info('%d documents are copies of others, not read.', left_out)
  return np.array(dealt, int), np.array(kept, int), copies


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

    return tfds_source.open_tfds(rest, config.reading.tfds_dir)
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


def _rank(name: str) -> int:
  data = name.encode('utf-8', 'surrogateescape')
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'big')
