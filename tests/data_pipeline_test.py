"""Tests of packing, batching, sharding and exact resumption."""

import json

import numpy as np
import pytest

from hope.config import base_config
from hope.data import (
  documents,
  encoding,
  eval_batches,
  join_states,
  open_data,
  train_iterator,
)
from hope.data.tokenization import ByteTokenizer

SEPARATOR = ByteTokenizer.document_separator


def make_config(folder, count, size=100, **data):
  """Writes `count` documents of up to `size` bytes, each of its own text."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(1)
  for i in range(count):
    words = f'<{i}> ' * size
    (folder / f'{i}.txt').write_text(words[: rng.integers(1, size)])
  config = base_config()
  config.data.source = f'text:{folder}/*.txt'
  config.data.heldout_fraction = 0.3
  config.data.update({'seq_len': 7, 'batch_size': 4} | data)
  return config


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def assert_same(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def sequences(batches):
  """Returns the packed sequences, [n, t + 1]."""
  return np.concatenate(
    [np.c_[b['inputs'], b['targets'][:, -1:]] for b in batches]
  )


def unpack(stream):
  """Returns the whole documents of a stream of tokens, in order."""
  tokens = stream.tolist()
  parts, start = [], 0
  for place, token in enumerate(tokens):
    if token == SEPARATOR:
      parts.append(bytes(tokens[start:place]))
      start = place + 1
  return parts


def test_batch_contract(tmp_path):
  config = make_config(tmp_path, 30)
  for batch in (
    next(train_iterator(config, ByteTokenizer())),
    eval_batches(config, ByteTokenizer(), 1)[0],
  ):
    assert batch['inputs'].shape == (4, 7)
    assert batch['inputs'].dtype == batch['targets'].dtype == np.int32
    assert batch['weights'].dtype == np.float32 and batch['weights'].all()
    np.testing.assert_array_equal(
      batch['inputs'][:, 1:], batch['targets'][:, :-1]
    )


@pytest.mark.parametrize('count', [200, 300])
def test_packing_is_undone_by_unpacking(tmp_path, count):
  config = make_config(tmp_path, count)
  train = {text for _, text in documents(config, 'train')}
  heldout = {text for _, text in documents(config, 'heldout')}
  assert len(train) >= 128  # enough for 64 lanes
  streams = 64
  batches = take(train_iterator(config, ByteTokenizer()), 30 * streams)
  packed = sequences(batches)
  seen = set()
  for i in range(streams):
    first, *parts = unpack(packed[i::streams].reshape(-1))
    assert any(text.endswith(first) for text in train)  # entered within
    assert parts
    assert set(parts) <= train
    seen |= set(parts)
  assert seen == train
  assert not seen & heldout


def test_epochs_hold_each_document_once_and_differ(tmp_path):
  # Documents of one length, a sequence each, so that epochs are visible.
  config = make_config(tmp_path, 0, batch_size=1)
  for i in range(200):
    (tmp_path / f'{i}.txt').write_text(f'{i:07d}')
  train = [text for _, text in documents(config, 'train')]
  packed = sequences(take(train_iterator(config, ByteTokenizer()), 3 * 200))
  order = [bytes(row[:-1].tolist()) for row in packed]
  epochs = [order[i * len(train) : (i + 1) * len(train)] for i in range(3)]
  assert all(sorted(epoch) == sorted(train) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


def shares(config, process_count, state=None):
  """The iterators of all processes, each with every n-th row, at a position."""
  size = config.data.batch_size
  iterators = [
    train_iterator(
      config, ByteTokenizer(), rows=range(index, size, process_count)
    )
    for index in range(process_count)
  ]
  for iterator in iterators:
    if state:
      iterator.set_state(json.loads(json.dumps(state)))
  return iterators


def join(parts):
  """The batches of all processes, from those of each."""
  return [
    {
      k: np.stack([part[k] for part in each], axis=1).reshape(-1, *v.shape[1:])
      for k, v in each[0].items()
    }
    for each in zip(*parts, strict=True)
  ]


@pytest.mark.parametrize('source', ['text', 'synthetic:mqar'])
def test_batches_do_not_depend_on_the_processes(tmp_path, source):
  """A run goes on with 1, 2, 4 processes where others saved its position."""
  config = make_config(tmp_path, 60, batch_size=4)
  if source != 'text':
    config.data.update({'source': source, 'seq_len': 64})
  expected = take(train_iterator(config, ByteTokenizer()), 36)
  state, got = None, []
  for process_count in (2, 4, 1, 2):
    iterators = shares(config, process_count, state)
    got += join([take(iterator, 9) for iterator in iterators])
    state = join_states([iterator.get_state() for iterator in iterators])
  assert_same(got, expected)


def test_a_process_reads_its_own_documents_alone(tmp_path, monkeypatch):
  config = make_config(tmp_path, 240, size=400)
  encode, read = encoding.encode_document, []
  monkeypatch.setattr(
    encoding,
    'encode_document',
    lambda tokenizer, text: read.append(text) or encode(tokenizer, text),
  )
  parts = []
  for iterator in shares(config, 2):
    read.clear()
    take(iterator, 32)  # an epoch is not over
    parts.append(set(read))
  assert len(parts[0]) > 10 and len(parts[1]) > 10
  assert not parts[0] & parts[1]


def test_a_position_of_one_process_of_several_is_refused(tmp_path):
  config = make_config(tmp_path, 30)
  first, second = shares(config, 2)
  with pytest.raises(ValueError, match='is of one process of several'):
    train_iterator(config, ByteTokenizer()).set_state(first.get_state())
  next(second)
  with pytest.raises(ValueError, match='different batches'):
    join_states([first.get_state(), second.get_state()])


def test_rows_of_a_batch_are_of_different_documents(tmp_path):
  config = make_config(tmp_path, 240, size=1000)
  batch = next(train_iterator(config, ByteTokenizer()))
  starts = {bytes(row.tolist()[:4]) for row in batch['inputs']}
  assert len(starts) == 4


def test_order_follows_the_seed(tmp_path):
  config = make_config(tmp_path, 30)
  first = take(train_iterator(config, ByteTokenizer()), 20)
  assert_same(first, take(train_iterator(config, ByteTokenizer()), 20))
  config.seed = 1
  other = take(train_iterator(config, ByteTokenizer()), 20)
  assert not np.array_equal(sequences(first), sequences(other))


@pytest.mark.parametrize('source', ['text', 'synthetic:mqar'])
@pytest.mark.parametrize('place', [0, 1, 3, 7, 60])
def test_exact_resumption(tmp_path, source, place):
  config = make_config(tmp_path, 11, batch_size=3)
  if source != 'text':
    config.data.update({'source': source, 'seq_len': 64})
  # Lengths that end a document exactly at, before and behind a cut.
  for i, size in enumerate((6, 7, 8, 15, 16)):
    (tmp_path / f'{i}.txt').write_text('x' * size)
  data = open_data(config)
  iterator = data.train_iterator()
  take(iterator, place)
  saved = iterator.get_state()
  text = json.dumps(saved)
  expected = take(iterator, 40)
  # What was saved does not move with the iterator.
  assert json.dumps(saved) == text
  fresh = data.train_iterator()
  fresh.set_state(json.loads(text))
  assert json.dumps(fresh.get_state()) == text
  assert_same(take(fresh, 40), expected)
  # Back and forth on the same iterator, and on from there.
  iterator.set_state(json.loads(text))
  assert_same(take(iterator, 40), expected)
  assert json.dumps(iterator.get_state()) == json.dumps(fresh.get_state())


def test_resumption_through_many_saves(tmp_path):
  config = make_config(tmp_path, 11, batch_size=2)
  expected = take(train_iterator(config, ByteTokenizer()), 20)
  state, got = None, []
  while len(got) < 20:
    iterator = train_iterator(config, ByteTokenizer())
    if state:
      iterator.set_state(json.loads(state))
    got += take(iterator, 1)
    state = json.dumps(iterator.get_state())
  assert_same(got, expected)


def test_reading_ahead_changes_nothing(tmp_path):
  config = make_config(tmp_path, 30)
  expected = take(train_iterator(config, ByteTokenizer()), 15)
  config.reading.ahead = 3
  iterator = train_iterator(config, ByteTokenizer())
  assert_same(take(iterator, 5), expected[:5])
  state = json.dumps(iterator.get_state())
  assert_same(take(iterator, 10), expected[5:])
  iterator.set_state(json.loads(state))
  assert_same(take(iterator, 10), expected[5:])
  iterator.close()
  config.reading.ahead = 0
  iterator = train_iterator(config, ByteTokenizer())
  iterator.set_state(json.loads(state))
  assert_same(take(iterator, 10), expected[5:])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'seq_len': 8}, 'seq_len was 7 and is 8'),
    ({'batch_size': 2}, 'batch_size was 4 and is 2'),
    ({'seed': 5}, 'seed was 0 and is 5'),
    (
      {'document': 'more'},
      'of the documents was .* Restore them, or start',
    ),
  ],
)
def test_state_of_another_setting(tmp_path, change, message):
  config = make_config(tmp_path, 30)
  state = train_iterator(config, ByteTokenizer()).get_state()
  if 'document' in change:
    (tmp_path / '0.txt').write_text('longer' * 100)
  elif 'seed' in change:
    config.seed = change['seed']
  else:
    config.data.update(change)
  iterator = train_iterator(config, ByteTokenizer())
  with pytest.raises(ValueError, match=message):
    iterator.set_state(json.loads(json.dumps(state)))


def test_moving_the_prepared_data_keeps_the_state(tmp_path):
  config = make_config(tmp_path, 30)
  state = train_iterator(config, ByteTokenizer()).get_state()
  config.reading.tfds_dir = '/elsewhere'
  train_iterator(config, ByteTokenizer()).set_state(state)


def test_heldout_batches_are_fixed_and_spread(tmp_path):
  config = make_config(tmp_path, 60, size=300)
  heldout = [text for _, text in documents(config, 'heldout')]
  batches = eval_batches(config, ByteTokenizer(), 10)
  assert len(batches) == 10
  config.seed = 3
  assert_same(batches, eval_batches(config, ByteTokenizer(), 10))
  joined = b'\x00'.join(heldout)
  tagged = set()
  for row in sequences(batches):
    row = bytes(0 if t == SEPARATOR else t for t in row.tolist())
    assert row in joined + b'\x00'
    tagged |= {text for text in heldout if row.split(b'\x00')[0] in text}
  assert len(tagged) > len(heldout) / 2


def test_heldout_rows_are_dealt_to_processes(tmp_path):
  config = make_config(tmp_path, 60)
  whole = eval_batches(config, ByteTokenizer(), 3)
  halves = [
    eval_batches(config, ByteTokenizer(), 3, rows=rows)
    for rows in ([0, 2], [1, 3])
  ]
  assert_same(join(halves), whole)


def test_heldout_batches_as_many_as_there_are(tmp_path):
  config = make_config(tmp_path, 30)
  size = sum(len(text) + 1 for _, text in documents(config, 'heldout'))
  batches = eval_batches(config, ByteTokenizer(), 10**4)
  assert len(batches) == size // 8 // 4
  config.data.seq_len = 10**4
  with pytest.raises(ValueError, match='hold 0 sequences .* lower either'):
    eval_batches(config, ByteTokenizer(), 1)


@pytest.mark.parametrize('tokenizer', ['byte', 'bpe-train:270'])
def test_heldout_text_is_the_bytes_of_the_targets(tmp_path, tokenizer):
  config = make_config(tmp_path, 60, size=300, tokenizer=tokenizer)
  for i, path in enumerate(sorted(tmp_path.glob('*.txt'))):  # Latin-1, CJK
    path.write_bytes((f'<{i}> caf\xe9 ' * 9).encode('latin-1'))
    if i % 2:
      path.write_text(f'<{i}> \u6f22\u5b57 ' * 9)
  config.evals.batches = 10
  data = open_data(config)
  joined = b''.join(text for _, text in data.documents('heldout'))
  tokens = np.concatenate(
    [
      encoding.encode_document(data.tokenizer, text)
      for _, text in data.documents('heldout')
    ]
  )
  assert data.tokenizer.decode(tokens) == joined.decode(errors='replace')
  # Each row's bytes: those behind its first token, by how many tokens it takes.
  text = data.heldout_text
  for row in sequences(data.eval_batches()):
    for token in row[1:].tolist():
      if token != data.tokenizer.document_separator:
        size = data.tokenizer.sizes(b'', np.array([token]))[0]
        piece, text = text[:size], text[size:]
        assert piece in joined
        assert data.tokenizer.decode([token]) == piece.decode(errors='replace')
  assert not text
  targets = sum(batch['targets'].size for batch in data.eval_batches())
  assert data.bytes_per_token == len(data.heldout_text) / targets
  assert data.eval_batches() is data.eval_batches()


def test_open_data_of_the_default_configuration():
  data = open_data(base_config())
  assert data.vocab_size == 257
  batch = next(data.train_iterator())
  assert batch['inputs'].shape == (8, 256)
  assert len(data.eval_batches()) == 16
  assert 0.99 < data.bytes_per_token < 1


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'seq_len': 0}, 'data.seq_len=0: give at least 1'),
    ({'batch_size': 0}, 'data.batch_size=0: give at least 1'),
  ],
)
def test_errors(tmp_path, change, message):
  config = make_config(tmp_path, 30, **change)
  with pytest.raises(ValueError, match=message):
    train_iterator(config, ByteTokenizer())
