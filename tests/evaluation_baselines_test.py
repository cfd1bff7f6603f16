"""The baselines against a slow transcription and known values."""

import collections
import lzma
import math

import numpy as np
import pytest

from hope.evaluation import baselines


class SlowModel:
  """Witten-Bell of order two, one byte after another."""

  def __init__(self, documents):
    self.counts = collections.defaultdict(collections.Counter)
    for document in documents:
      for i, byte in enumerate(document):
        for order in range(min(i, 2) + 1):
          self.counts[document[i - order : i]][byte] += 1

  def probability(self, byte, context):
    lower = self.probability(byte, context[1:]) if context else 1 / 256
    followers = self.counts.get(context)
    if followers is None:
      return lower
    total, kinds = sum(followers.values()), len(followers)
    return (followers[byte] + kinds * lower) / (total + kinds)

  def probabilities(self, text):
    return [
      self.probability(byte, text[max(0, i - 2) : i])
      for i, byte in enumerate(text)
    ]


DOCUMENTS = [
  b'the cat sat on the mat; the bat did not.',
  b'',
  b'x',
  b'ab',
  b'\x00\xff\x00\xff\x00',
  'Ein Satz auf Deutsch: übergroß.'.encode(),
]
HELDOUT = b'the rat ate the cat, \xff\x00\xff and bax'


def test_probabilities_equal_the_transcription():
  fast = baselines.Order2Model(DOCUMENTS).probabilities(HELDOUT)
  slow = SlowModel(DOCUMENTS).probabilities(HELDOUT)
  np.testing.assert_allclose(fast, slow, rtol=1e-14)


@pytest.mark.parametrize('batch', [1, 7, 64])
def test_batches_change_nothing(monkeypatch, batch):
  rng = np.random.default_rng(0)
  documents = [rng.integers(97, 101, n, np.uint8).tobytes() for n in range(40)]
  heldout = rng.integers(97, 102, 200, np.uint8).tobytes()
  monkeypatch.setattr(baselines, '_BATCH', batch)
  fast = baselines.order2_bits_per_byte(documents, heldout)
  slow = SlowModel(documents).probabilities(heldout)
  np.testing.assert_allclose(fast, -np.log2(slow).mean(), rtol=1e-14)


@pytest.mark.parametrize('context', [b'', b'h', b'z', b'th', b'zh', b'zz'])
def test_probabilities_sum_to_one(context):
  model = baselines.Order2Model(DOCUMENTS)
  total = math.fsum(
    model.probabilities(context + bytes([byte]))[-1] for byte in range(256)
  )
  assert total == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize('length', [1, 2, 3])
def test_short_heldout(length):
  fast = baselines.order2_bits_per_byte(DOCUMENTS, HELDOUT[:length])
  slow = SlowModel(DOCUMENTS).probabilities(HELDOUT[:length])
  np.testing.assert_allclose(fast, -np.log2(slow).mean(), rtol=1e-14)


def test_uniform_bytes_cost_eight_bits():
  rng = np.random.default_rng(1)
  train = rng.integers(0, 256, 1 << 23, np.uint8).tobytes()
  heldout = rng.integers(0, 256, 1 << 16, np.uint8).tobytes()
  # Counts of finite data cannot predict noise: at least 8 bits, and little
  # more.
  assert 8 < baselines.order2_bits_per_byte([train], heldout) < 8.5
  # xz stores what it cannot compress.
  assert 8 < baselines.xz_bits_per_byte(heldout) < 8.02


def test_known_source_costs_its_entropy():
  # After a or b, each of two bytes with probability 1/4 and 3/4.
  rng = np.random.default_rng(2)
  text = np.where(rng.random(1 << 18) < 0.25, ord('a'), ord('b'))
  text = text.astype(np.uint8).tobytes()
  entropy = 2 - 0.75 * math.log2(3)
  bits = baselines.order2_bits_per_byte([text], text)
  assert bits == pytest.approx(entropy, abs=3e-3)


def test_training_is_read_once_and_may_be_a_generator():
  documents = iter(DOCUMENTS)
  bits = baselines.order2_bits_per_byte(documents, HELDOUT)
  assert bits == baselines.order2_bits_per_byte(DOCUMENTS, HELDOUT)


def test_xz_is_the_size_of_the_file():
  text = b'the same line again\n' * 500
  size = len(lzma.compress(text, format=lzma.FORMAT_XZ, preset=9))
  assert baselines.xz_bits_per_byte(text) == 8 * size / len(text)
  assert len(lzma.compress(b'', preset=9)) == 32  # As the docstring says.


def test_empty_heldout_is_an_error():
  with pytest.raises(ValueError, match='heldout is empty.*heldout_fraction'):
    baselines.order2_bits_per_byte(DOCUMENTS, b'')
  with pytest.raises(ValueError, match='heldout is empty.*heldout_fraction'):
    baselines.xz_bits_per_byte(b'')


@pytest.mark.parametrize('documents', [[], [b'', b'']])
def test_empty_training_is_an_error(documents):
  with pytest.raises(ValueError, match='train holds no bytes'):
    baselines.order2_bits_per_byte(documents, HELDOUT)
