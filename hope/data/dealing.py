"""Which tokens each lane of the training data reads; no two read the same.

Rows of a batch come from lanes. If there are many documents, lanes get whole
documents in turn. If there are few, or short ones, lanes start at different
places of one stream.

Choice: a lane enters its first document at a random place, if the document is
longer than a sequence; the skipped part comes in the next epoch. Otherwise a
run would begin with only the first parts of documents. The main job ends before
most documents do, and would have 2.28 bits per byte on held-out text instead of
2.18 (seed 1; `experiments/README.md`).
"""

from collections.abc import Callable

import grain
import numpy as np

from hope.data.sources import Corpus

# The fewest and the most documents that are read in turn, one sequence of each,
# or somewhat more. Without this, all rows of a batch would be pieces of one
# document, and a short run would see few.
_FEWEST_OPEN, _MOST_OPEN = 64, 256
# Without grain's threads: reading and encoding are too cheap to hand over.
_READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
# Places of a stream of sequences, which is endless for every purpose.
_ENDLESS = 2**48

Lane = Callable[[int], grain.IterDataset]


class _Dealing:
  """Tokens of the documents in the order in which lanes get them.

  Each epoch has each document once. After the first epoch, the two halves of
  the order are shuffled separately. So documents at most half an epoch apart
  differ, also across the end of an epoch, and no two lanes get the same
  document in the same round. A copy of another document keeps its place and is
  empty.
  """

  def __init__(
    self, corpus: Corpus, encode: Callable[[int], np.ndarray], seed: int
  ):
    self._corpus, self._encode, self._seed = corpus, encode, seed
    self.count = len(corpus.train)

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    document = int(self._corpus.train[self.position(index)])
    tokens = self._encode(document)
    return {'tokens': tokens[:0] if document in self._corpus.copies else tokens}

  def position(self, place: int) -> int:
    """Returns which training document has a place of the order."""
    epoch, place = divmod(place, self.count)
    half = self.count // 2
    if epoch:
      first, size = (0, half) if place < half else (half, self.count - half)
      place = first + _shuffled(place - first, size, self._seed + epoch)
    return _shuffled(place, self.count, self._seed)


class _Stream:
  """Sequences of all documents joined, read round and round by each lane.

  Sequence s is of lane s mod l. Lane i starts at token i n / l of n, or at the
  multiple of `align` before it, and goes on from sequence to sequence, so that
  those of a batch never overlap.
  """

  def __init__(self, tokens: np.ndarray, lanes: int, length: int, align: int):
    self._tokens, self._lanes, self._length = tokens, lanes, length
    self._align = align

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    turn, lane = divmod(index, self._lanes)
    units = len(self._tokens) // self._align
    start = lane * units // self._lanes * self._align + turn * self._length
    places = np.arange(start, start + self._length)
    return {'tokens': self._tokens.take(places, axis=0, mode='wrap')}


def _shuffled(place: int, count: int, seed: int) -> int:
  """Returns what a place holds when `count` things are shuffled."""
  return grain.experimental.index_shuffle(
    place, max_index=count - 1, seed=seed % 2**32, rounds=4
  )


def _entered(
  tokens: np.ndarray, length: int, align: int, seed: int
) -> np.ndarray:
  """A document [n, ...] from a random multiple of `align` on.

  At least `length` tokens are left, or all.
  """
  places = max(len(tokens) - length, 0) // align + 1
  cut = int(np.random.default_rng(seed).integers(places)) * align
  return tokens[cut:]


def _fill(order: _Dealing, wanted: int) -> bool:
  """Returns whether the documents hold so many tokens; stops when they do."""
  for place in range(order.count):
    wanted -= len(order[place]['tokens'])
    if wanted <= 0:
      return True
  return False


def deal(
  corpus: Corpus,
  encode: Callable[[int], np.ndarray],
  *,
  seed: int,
  batch_size: int,
  length: int,
  align: int = 1,
) -> tuple[Lane, int]:
  """Returns the endless sequences of a lane by its number, and the lanes.

  Choice: documents are dealt whole if there are at least two documents and one
  sequence for each lane. Otherwise all are joined in one order, which each lane
  repeats from another place. Their tokens are kept in memory, as those of open
  documents are.

  Args:
    corpus: Its training documents are read.
    encode: Document index to tokens, int32 [n, ...].
    seed: Of the order of documents.
    batch_size: Rows of a batch; the lanes are a multiple of it.
    length: Tokens of a sequence.
    align: Lanes start at multiples of it, which the length and the tokens of
      every document are.

  Raises:
    ValueError: The documents do not fill the rows of one batch.
  """
  order = _Dealing(corpus, encode, seed)
  distinct = len(corpus.train) - len(corpus.copies)
  wanted = min(max(distinct // 4, _FEWEST_OPEN), _MOST_OPEN)
  lanes = -(-wanted // batch_size) * batch_size
  if distinct >= 2 * lanes and _fill(order, lanes * length):
    dealt = grain.MapDataset.source(order)

    def documents(number: int) -> grain.IterDataset:
      def enter(index: int, document: dict[str, np.ndarray]):
        if index:
          return document
        tokens = document['tokens']
        entry = seed * lanes + number
        return {'tokens': _entered(tokens, length, align, entry)}

      return grain.experimental.ConcatThenSplitIterDataset(
        dealt[number::lanes].map_with_index(enter).to_iter_dataset(_READ),
        length_struct={'tokens': length},
      )

    return documents, lanes

  tokens = np.concatenate(
    [order[place]['tokens'] for place in range(order.count)]
  )
  if len(tokens) < batch_size * length:
    raise ValueError(
      f'{distinct} training documents hold {len(tokens)} tokens, and the rows '
      f'of a batch would be copies: data.batch_size={batch_size} rows of '
      f'data.seq_len need at least {batch_size * length}; give more text, or '
      'lower either.'
    )
  lanes = min(lanes, len(tokens) // length // batch_size * batch_size)
  sequences = grain.MapDataset.source(_Stream(tokens, lanes, length, align))

  def pieces(number: int) -> grain.IterDataset:
    return sequences[number::lanes].to_iter_dataset(_READ)

  return pieces, lanes
