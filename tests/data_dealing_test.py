"""Tests of lanes: no two rows of a batch are copies, whatever the documents."""

import json

import grain
import numpy as np
import pytest

from hope.config import base_config
from hope.data import dealing, open_data, sources, train_iterator
from hope.data.tokenization import ByteTokenizer


def write_corpus(folder, texts, **data):
  """A configuration whose training documents are these, in files of their own.

  Held-out is a document of other text.
  """
  names = {True: [], False: []}
  for number in range(10 * len(texts) + 100):
    name = f'{number}.txt'
    names[sources._rank(name) < int(0.3 * 2**64)].append(name)
  for name, text in zip(names[False], texts, strict=False):
    (folder / name).write_bytes(text)
  (folder / names[True][0]).write_bytes(b'HELD OUT ' * 99)
  config = base_config()
  config.data.source = f'text:{folder}/*.txt'
  config.data.update({'heldout_fraction': 0.3} | data)
  config.evals.batches = 1
  return config


def random_texts(sizes):
  rng = np.random.default_rng(0)
  return [rng.integers(97, 123, n, np.uint8).tobytes() for n in sizes]


def count_copies(config, steps=60):
  """Rows of batches that equal another row of the same batch."""
  iterator, copies = train_iterator(config, ByteTokenizer()), 0
  for _ in range(steps):
    rows = [row.tobytes() for row in next(iterator)['inputs']]
    copies += len(rows) - len(set(rows))
  return copies


ONE = random_texts([9000])[0]


@pytest.mark.parametrize(
  ('texts', 'batch_size', 'seq_len'),
  [
    (random_texts([5000, 7000]), 4, 64),
    (random_texts([5000]), 8, 64),
    (random_texts([650]), 8, 64),  # a lane each, hardly
    (random_texts([639] * 3), 2, 64),  # epochs in step
    (random_texts([64] * 70), 4, 64),  # a row each
    (random_texts([64] * 129), 4, 64),
    (random_texts([5] * 200), 8, 64),  # shorter than a row
    (random_texts([900] * 100), 128, 16),
    (random_texts([900] * 70), 48, 16),  # lanes beyond the first epoch
    ([ONE] * 200, 4, 64),  # copies of one document
    ([ONE] * 150 + random_texts([3000] * 150), 4, 64),
  ],
  ids=lambda value: f'{len(value)}' if isinstance(value, list) else None,
)
def test_no_two_rows_of_a_batch_agree(tmp_path, texts, batch_size, seq_len):
  config = write_corpus(tmp_path, texts, batch_size=batch_size, seq_len=seq_len)
  assert count_copies(config) == 0


@pytest.mark.parametrize(
  ('texts', 'tokens'),
  [
    ([b'x' * 518], 519),
    ([b'x'], 1 + 1),
    ([b'x' * 64] * 300, 65),
    (random_texts([4] * 100), 500),
  ],
)
def test_too_little_text_is_refused(tmp_path, texts, tokens):
  config = write_corpus(tmp_path, texts, batch_size=8, seq_len=64)
  message = f'hold {tokens} tokens.*batch_size=8.*seq_len need at least 520'
  with pytest.raises(ValueError, match=message):
    open_data(config).train_iterator()


@pytest.mark.parametrize('source', ['stdlib', 'synthetic:mqar'])
@pytest.mark.parametrize('field', ['batch_size', 'seq_len'])
def test_absurd_batches_are_refused_at_once(source, field):
  config = base_config()
  config.data.source = source
  config.data[field] = 10**9
  with pytest.raises(ValueError, match=f'data.{field}=1000000000'):
    open_data(config).train_iterator()
  with pytest.raises(ValueError, match=f'data.{field}=1000000000'):
    open_data(config).eval_batches()


def test_few_documents_are_read_whole_and_in_order(tmp_path):
  """An epoch of all lanes is the stream, cut; the next one goes on."""
  texts = random_texts([200, 300, 400])
  config = write_corpus(tmp_path, texts, batch_size=2, seq_len=16)
  lanes = 903 // 17 // 2 * 2
  iterator = train_iterator(config, ByteTokenizer())
  rows = [
    np.r_[inputs, targets[-1]]
    for _ in range(110 * lanes // 2)
    for batch in [next(iterator)]
    for inputs, targets in zip(batch['inputs'], batch['targets'], strict=True)
  ]
  first = np.concatenate(rows[::lanes])
  np.testing.assert_array_equal(first[:903], first[903:1806])
  parts = bytes(first[:903].astype(np.uint8)).split(b'\x00')  # 256 as a byte
  assert sorted(parts[:-1]) == sorted(texts)
  for lane in range(lanes):
    start = lane * 903 // lanes
    got = np.concatenate(rows[lane::lanes])[:903]
    np.testing.assert_array_equal(got, np.roll(first[:903], -start))


def test_lanes_start_where_blocks_do(tmp_path):
  """Documents of whole blocks, several numbers for a token."""
  config = write_corpus(tmp_path, random_texts([7 * 16, 33 * 16, 5 * 16]))
  corpus = sources.open_corpus(config)

  def encode(index):
    text = np.frombuffer(corpus.source.read(index), np.uint8)
    return np.stack([text, np.arange(len(text))], 1).astype(np.int32)

  lane, lanes = dealing.deal(
    corpus, encode, seed=0, batch_size=3, length=32, align=16
  )
  assert lanes == 45 * 16 // 32 // 3 * 3
  rows = [next(iter(lane(number)))['tokens'] for number in range(lanes)]
  assert all(row.shape == (32, 2) and row[0, 1] % 16 == 0 for row in rows)
  assert len({row.tobytes() for row in rows}) == lanes


@pytest.mark.parametrize('sizes', [[5000, 7000], [300] * 200])
def test_resumption_and_processes(tmp_path, sizes):
  config = write_corpus(tmp_path, random_texts(sizes), batch_size=4, seq_len=64)
  iterator = train_iterator(config, ByteTokenizer())
  expected = [next(iterator) for _ in range(60)]
  halves = [
    train_iterator(config, ByteTokenizer(), rows=rows)
    for rows in ([0, 1], [2, 3])
  ]
  for batch in expected:
    got = [next(half)['inputs'] for half in halves]
    np.testing.assert_array_equal(np.concatenate(got), batch['inputs'])
  resumed = train_iterator(config, ByteTokenizer())
  for _ in range(37):
    next(resumed)
  state = json.loads(json.dumps(resumed.get_state()))
  resumed = train_iterator(config, ByteTokenizer())
  resumed.set_state(state)
  for batch in expected[37:]:
    np.testing.assert_array_equal(next(resumed)['inputs'], batch['inputs'])


@pytest.mark.parametrize('count', [128, 131, 700])
def test_dealing_keeps_a_document_away_from_itself(tmp_path, count):
  config = write_corpus(tmp_path, random_texts([9] * count))
  order = dealing._Dealing(sources.open_corpus(config), lambda i: i, seed=3)
  assert order.count == count
  dealt = [order.position(place) for place in range(4 * count)]
  epochs = [dealt[i * count : (i + 1) * count] for i in range(4)]
  assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 4
  last = {}
  for place, document in enumerate(dealt):
    assert place - last.get(document, -count) >= count // 2
    last[document] = place
  # The first epoch is grain's own shuffle, as it always was.
  shuffled = grain.MapDataset.range(count).shuffle(seed=3)
  assert epochs[0] == list(shuffled)


def test_copies_keep_their_places(tmp_path):
  """Other documents are dealt to the same lanes as without the copies."""
  texts = random_texts([300] * 200)
  config = write_corpus(tmp_path, [*texts, texts[7]], seq_len=64)
  corpus = sources.open_corpus(config)
  assert len(corpus.train) == 201 and len(corpus.copies) == 1
  assert len(list(corpus.documents('train'))) == 200
  order = dealing._Dealing(corpus, lambda i: np.array([i]), seed=0)
  sizes = [len(order[place]['tokens']) for place in range(201)]
  assert sorted(sizes) == [0] + [1] * 200
