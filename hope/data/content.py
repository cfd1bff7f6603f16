"""Hashes of what is read: of texts, and of the documents of a source.

Choice: documents are identified by their content. All of it is hashed if it is
at most 256 MiB in at most 65,536 documents: 0.15 s for the standard library,
from the file system's cache. Of a larger corpus, 65,536 documents at even
distances are hashed, of each an equal share of 256 MiB, so that a second start
does not read terabytes. A change outside of what was read is then noticed only
if it changes a name, a size or the number of documents. Times of files do not
count.
"""

from collections.abc import Iterable
import hashlib
from typing import Protocol

import numpy as np

_HASHED_BYTES = 1 << 28
_HASHED_DOCUMENTS = 1 << 16
# Least bytes of a long document that are read.
_SMALLEST_SHARE = 1 << 17


class Readable(Protocol):
  """Documents that can be read in part."""

  def __len__(self) -> int:
    """Number of documents."""

  def num_bytes(self) -> int:
    """Size of all documents."""

  def sample(self, index: int, limit: int | None) -> bytes:
    """A document, or `limit` bytes of it."""


def fingerprint(parts: Iterable[str | bytes]) -> str:
  """Returns a hash of a list of texts, 16 hexadecimal digits."""
  digest = hashlib.blake2b(digest_size=8)
  for part in parts:
    raw = (
      part.encode(errors='surrogateescape') if isinstance(part, str) else part
    )
    digest.update(len(raw).to_bytes(8, 'big') + raw)
  return digest.hexdigest()


def content_digests(source: Readable) -> tuple[dict[int, bytes], bool]:
  """Returns hashes of documents by their index, and whether they are complete.

  Complete: every document is there, and was read whole.
  """
  count = min(len(source), _HASHED_DOCUMENTS)
  limit = None
  if source.num_bytes() > _HASHED_BYTES:
    limit = max(_HASHED_BYTES // count, _SMALLEST_SHARE)
  digests, left = {}, _HASHED_BYTES
  # In random order, so that what the limit cuts off is no part of its own.
  chosen = np.random.default_rng(0).permutation(count) * len(source) // count
  for index in chosen.tolist():
    text = source.sample(index, limit)
    digests[index] = hashlib.blake2b(text, digest_size=16).digest()
    left -= len(text)
    if left < 0:
      break
  return digests, limit is None and len(digests) == len(source)
