"""Tests of the identity of a run's data: documents and tokenizer by content."""

import json
import os

import numpy as np
import pytest

from hope.config import base_config
from hope.data import content, files, open_data, sources


@pytest.fixture
def config(tmp_path):
  folder = tmp_path / 'corpus'
  folder.mkdir()
  for i in range(40):
    (folder / f'{i}.txt').write_text(f'the document number {i}, {i * i}\n' * 20)
  config = base_config()
  config.data.update(
    source=f'text:{folder}/*.txt',
    heldout_fraction=0.3,
    seq_len=16,
    batch_size=2,
    tokenizer='bpe-train:300',
  )
  config.evals.batches = 1
  return config


def replace_document(config, workdir):
  path = workdir.parent / 'corpus' / '7.txt'
  path.write_text(path.read_text().replace('number', 'numbre'))


def swap_documents(config, workdir):
  first, second = (workdir.parent / 'corpus' / f'1{i}.txt' for i in (1, 2))
  text = first.read_text()
  first.write_text(second.read_text())
  second.write_text(text)


def swap_ids(config, workdir):
  path = workdir / 'tokenizer.json'
  spec = json.loads(path.read_text())
  vocab = spec['model']['vocab']
  vocab['a'], vocab['b'] = vocab['b'], vocab['a']
  path.write_text(json.dumps(spec))


def swap_merges(config, workdir):
  path = workdir / 'tokenizer.json'
  spec = json.loads(path.read_text())
  merges = spec['model']['merges']
  merges[-1], merges[-2] = merges[-2], merges[-1]
  path.write_text(json.dumps(spec))


def lowercase(config, workdir):
  path = workdir / 'tokenizer.json'
  spec = json.loads(path.read_text())
  spec['normalizer'] = {'type': 'Lowercase'}  # which these texts do not notice
  path.write_text(json.dumps(spec))


DOCUMENTS = r'content of the documents was \w{16} and is \w{16}\.'
TOKENIZER = r'content of the tokenizer was \w{16} and is \w{16}\.'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (replace_document, DOCUMENTS),
    (swap_documents, DOCUMENTS),
    (swap_ids, TOKENIZER),
    (swap_merges, TOKENIZER),
    (lowercase, TOKENIZER),
  ],
)
def test_other_content_is_refused(config, tmp_path, change, message):
  workdir = tmp_path / 'run'
  state = open_data(config, str(workdir)).train_iterator().get_state()
  change(config, workdir)
  iterator = open_data(config, str(workdir)).train_iterator()
  with pytest.raises(ValueError, match=message) as error:
    iterator.set_state(json.loads(json.dumps(state)))
  assert str(error.value).count(' was ') == 2  # one thing, and the sentence


def test_what_changes_no_token_is_no_change(config, tmp_path):
  workdir = tmp_path / 'run'
  data = open_data(config, str(workdir))
  state = data.train_iterator().get_state()
  assert data.identity == state['identity']
  for path in (tmp_path / 'corpus').iterdir():
    os.utime(path, (0, 0))
  path = workdir / 'tokenizer.json'
  spec = json.loads(path.read_text())
  spec['decoder']['trim_offsets'] = not spec['decoder']['trim_offsets']
  vocab = spec['model']['vocab']
  spec['model']['vocab'] = dict(reversed(vocab.items()))
  path.write_text(json.dumps(spec, indent=7))
  data = open_data(config, str(workdir))
  data.train_iterator().set_state(state)
  assert open_data(config, str(workdir), rows=[1]).identity == data.identity


def test_generated_tasks_have_an_identity(config):
  config.data.update(source='synthetic:mqar', seq_len=64)
  found = open_data(config).identity
  assert found['content of the documents'] is None
  assert json.loads(json.dumps(found)) == found
  config.data.task.vocab_size = 128
  assert open_data(config).identity != found


def test_processes_that_disagree_are_refused(config):
  from hope.data import join_states

  first = open_data(config, rows=[0]).train_iterator().get_state()
  config.seed = 7
  second = open_data(config, rows=[1]).train_iterator().get_state()
  with pytest.raises(ValueError, match='processes read different data: seed'):
    join_states([first, second])


class Counted(files.FileSource):
  """Counts the bytes that are read."""

  total = 0

  def sample(self, index, limit):
    text = super().sample(index, limit)
    self.total += len(text)
    return text


def open_counted(folder):
  paths = [str(path) for path in sorted(folder.iterdir())]
  return Counted(str(folder), paths)


@pytest.fixture
def limits(monkeypatch):
  monkeypatch.setattr(content, '_HASHED_BYTES', 1 << 14)
  monkeypatch.setattr(content, '_HASHED_DOCUMENTS', 32)
  monkeypatch.setattr(content, '_SMALLEST_SHARE', 1 << 10)
  monkeypatch.setattr(files, '_BLOCK', 1 << 8)


def write(folder, count, size):
  rng = np.random.default_rng(0)
  for i in range(count):
    (folder / f'{i}').write_bytes(rng.bytes(size))


@pytest.mark.parametrize(
  ('count', 'size', 'complete'),
  [
    (32, 512, True),
    (33, 100, False),  # documents beyond their limit
    (2, 1 << 13, True),
    (2, 1 << 20, False),  # bytes beyond theirs
    (1, 1 << 20, False),
    (200, 1 << 12, False),
  ],
)
def test_what_is_read_is_bounded(tmp_path, limits, count, size, complete):
  write(tmp_path, count, size)
  source = open_counted(tmp_path)
  digests, whole = content.content_digests(source)
  assert whole == complete
  assert len(digests) == min(count, 32) or not complete
  assert source.total <= (1 << 14) + (1 << 10)
  assert source.total == count * size or not complete
  again, _ = content.content_digests(open_counted(tmp_path))
  assert again == digests
  # A change of what is read is seen; the first and the last bytes of a sampled
  # document are read.
  for path in (tmp_path / str(i) for i in range(count)):
    text = bytearray(path.read_bytes())
    text[0] ^= 1
    path.write_bytes(text)
  changed, _ = content.content_digests(open_counted(tmp_path))
  assert all(changed[i] != digests[i] for i in digests)


def test_beyond_the_limits_names_and_sizes_count(tmp_path, limits):
  write(tmp_path, 40, 1 << 12)
  config = base_config()
  config.data.source = f'text:{tmp_path}/*'
  config.data.heldout_fraction = 0.3
  before = sources.open_corpus(config)
  assert not before.copies
  (tmp_path / '0').rename(tmp_path / '00')
  renamed = sources.open_corpus(config).fingerprint
  (tmp_path / '00').write_bytes(b'x')
  smaller = sources.open_corpus(config).fingerprint
  assert len({before.fingerprint, renamed, smaller}) == 3
