"""Rows with `data.segments`: what they hold, and where documents start."""

import json

import numpy as np
import pytest

from hope.config import base_config, resolve
from hope.data import (
  documents,
  eval_batches,
  open_data,
  pipeline,
  train_iterator,
)
from hope.data.tokenization import ByteTokenizer

SEPARATOR = ByteTokenizer.document_separator


def make_config(folder, count, chunk=4, size=100, **data):
  """Writes `count` documents of up to `size` bytes, each of its own text."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(1)
  for i in range(count):
    (folder / f'{i}.txt').write_text(
      (f'<{i}> ' * size)[: rng.integers(1, size)]
    )
  config = base_config()
  titans = config.model.titans
  titans.chunk_size = titans.projection_chunk_size = chunk
  config.data.source = f'text:{folder}/*.txt'
  config.data.heldout_fraction = 0.3
  config.data.update({'seq_len': 16, 'batch_size': 4, 'segments': True} | data)
  return config


def take(config, count):
  """Rows of the first batches, {name: [n, t]}."""
  iterator = train_iterator(config, ByteTokenizer())
  return join([next(iterator) for _ in range(count)])


def join(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def whole_documents(rows, align):
  """The texts of the documents that start in rows, which follow one another.

  Args:
    rows: of one lane, {name: [n, t]}.
    align: of which places in a row documents start at multiples.
  """
  assert not rows['starts'][:, np.arange(16) % align > 0].any()
  flat = {name: value.reshape(-1) for name, value in rows.items()}
  starts = np.flatnonzero(flat['starts'])
  found = []
  for start, end in zip(starts, starts[1:], strict=False):
    weights, targets = flat['weights'][start:end], flat['targets'][start:end]
    inputs, count = flat['inputs'][start:end], int(weights.sum())
    assert len(weights) == -(-count // align) * align
    assert weights[:count].all()
    assert inputs[0] == SEPARATOR and targets[count - 1] == SEPARATOR
    np.testing.assert_array_equal(inputs[1:count], targets[: count - 1])
    assert (inputs[count:] == SEPARATOR).all()
    assert (targets[count:] == SEPARATOR).all()
    found.append(bytes(targets[: count - 1].tolist()))
  return found


@pytest.mark.parametrize('chunk', [1, 4, 16])
def test_every_byte_is_scored_once(tmp_path, chunk):
  """Of documents that are dealt whole to 64 lanes."""
  config = make_config(tmp_path, 200, chunk)
  train = {text for _, text in documents(config, 'train')}
  rows = take(config, 40 * 64 // 4)
  assert rows['starts'].dtype == bool and rows['weights'].dtype == np.float32
  seen = set()
  for i in range(64):
    lane = {k: v[i::64] for k, v in rows.items()}
    found = whole_documents(lane, chunk)
    assert found and set(found) <= train
    seen |= set(found)
  assert seen == train


@pytest.mark.parametrize('chunk', [4, 8])
def test_lanes_of_few_documents_start_with_blocks(tmp_path, chunk):
  config = make_config(tmp_path, 20, chunk)
  train = {text for _, text in documents(config, 'train')}
  state = train_iterator(config, ByteTokenizer()).get_state()
  lanes = len(state['position']['lanes'])
  assert 4 < lanes < 64  # they read one stream from different places
  rows = take(config, 100)
  assert not rows['starts'][:lanes, 0].all()
  seen = set()
  for i in range(lanes):
    lane = {k: v[i::lanes] for k, v in rows.items()}
    seen |= set(whole_documents(lane, chunk))
  assert seen == train


def test_heldout_documents(tmp_path):
  config = make_config(tmp_path, 60, size=300, batch_size=1)
  heldout = [text for _, text in documents(config, 'heldout')]
  scored = pipeline.heldout_batches(config, ByteTokenizer(), 10**4)
  rows = join(scored.batches)
  found = whole_documents(rows, 4)
  # The last document may not fill a row.
  assert found == heldout[: len(found)] and len(found) >= len(heldout) - 2
  targets = rows['targets'][rows['weights'] > 0]
  assert scored.targets == len(targets)
  assert scored.text == bytes(targets[targets != SEPARATOR].tolist())
  assert scored.text and b''.join(heldout).startswith(scored.text)


def test_bytes_per_token_are_those_of_the_rows(tmp_path):
  """Some rows of all, so that they begin and end within documents."""
  config = make_config(tmp_path, 60, size=300)
  config.evals.batches = 3
  data = open_data(config)
  targets = np.concatenate(
    [b['targets'][b['weights'] > 0] for b in data.eval_batches()]
  )
  assert (targets == SEPARATOR).any()
  text = bytes(targets[targets != SEPARATOR].tolist())
  assert data.heldout_text == text
  assert data.bytes_per_token == len(text) / len(targets)


def test_without_padding_the_stream_is_the_same(tmp_path):
  """Attention's documents start anywhere: the option adds only `starts`."""
  config = make_config(tmp_path, 200)
  config.model.pattern = 'attention+cms'
  rows = take(config, 10 * 64 // 4)
  assert rows['weights'].all()
  config.data.segments = False
  plain = take(config, 10 * 64 // 4)
  assert 'starts' not in plain
  for i in range(64):
    tokens = rows['targets'][i::64].reshape(-1)
    joined = np.c_[plain['inputs'], plain['targets'][:, -1:]][i::64].reshape(-1)
    # Lanes enter their first document at places that depend on the length of
    # a sequence, which is a token less here.
    tokens, joined = (x[np.argmax(x == SEPARATOR) :] for x in (tokens, joined))
    size = min(len(tokens), len(joined))
    assert size > 50
    np.testing.assert_array_equal(tokens[:size], joined[:size])
  # Held out, each target is scored alike, but for the first of each row.
  both = []
  for segments in (False, True):
    config.data.segments = segments
    both.append(eval_batches(config, ByteTokenizer(), 1)[0]['targets'][0])
  np.testing.assert_array_equal(both[0], both[1][1:].tolist() + [both[0][-1]])


def test_exact_resumption(tmp_path):
  config = make_config(tmp_path, 150, batch_size=3)
  iterator = train_iterator(config, ByteTokenizer())
  for _ in range(30):
    next(iterator)
  state = json.dumps(iterator.get_state())
  expected = [next(iterator) for _ in range(60)]
  fresh = train_iterator(config, ByteTokenizer())
  fresh.set_state(json.loads(state))
  for batch in expected:
    other = next(fresh)
    for name, value in batch.items():
      np.testing.assert_array_equal(other[name], value)
  other = train_iterator(
    make_config(tmp_path, 0, 8, batch_size=3), ByteTokenizer()
  )
  with pytest.raises(ValueError, match='alignment was 4 and is 8'):
    other.set_state(json.loads(state))


def test_rows_hold_whole_blocks(tmp_path):
  config = make_config(tmp_path, 11, chunk=6, seq_len=64)
  message = 'multiples of 6 tokens.*data.seq_len=64 is none.*data.seq_len=66'
  with pytest.raises(ValueError, match=message):
    train_iterator(config, ByteTokenizer())
  with pytest.raises(ValueError, match=message):
    resolve(config, 257)
  config.model.cms.mode, config.model.cms.periods = 'in_context', (1, 4)
  config.data.seq_len = 24
  resolve(config, 257)
  config.data.seq_len = 18
  with pytest.raises(ValueError, match='multiples of 12 tokens'):
    resolve(config, 257)
