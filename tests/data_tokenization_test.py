"""Tests of the tokenizers."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from hope.config import base_config
from hope.data import documents, open_tokenizer, tokenization

TEXT = 'def f(x):\n  return x  # é 漢字 🙂 <|endoftext|>\n'


@pytest.fixture
def config(tmp_path):
  folder = tmp_path / 'corpus'
  folder.mkdir()
  for i in range(40):
    text = f'the document number {i} of the corpus\n' * 20
    (folder / f'{i}.txt').write_text(text)
  config = base_config()
  config.data.source = f'text:{folder}/*.txt'
  config.data.heldout_fraction = 0.2
  return config


def test_byte_round_trip():
  tokenizer = tokenization.ByteTokenizer()
  ids = tokenizer.encode(TEXT)
  assert ids.dtype == np.int32
  assert ids.tolist() == list(TEXT.encode())
  assert tokenizer.vocab_size == 257
  assert tokenizer.decode([*ids, tokenizer.document_separator]) == TEXT
  # A model may have more tokens than its tokenizer.
  assert tokenizer.decode([*ids, 300]) == TEXT


def test_byte_tokens_of_bytes_that_are_not_utf8():
  tokenizer = tokenization.ByteTokenizer()
  assert tokenizer.encode(b'a\xff\x00').tolist() == [97, 255, 0]
  assert tokenizer.decode([97, 255]) == 'a\ufffd'


def test_number_round_trip():
  tokenizer = tokenization.NumberTokenizer(10)
  assert tokenizer.encode('3 0 9').tolist() == [3, 0, 9]
  assert tokenizer.decode(np.array([3, 0, 9])) == '3 0 9'
  for text in ('3 10', 'def ', '-1'):
    with pytest.raises(ValueError, match='numbers from 0 to 9'):
      tokenizer.encode(text)


def test_bpe_round_trip(config):
  config.data.tokenizer = 'bpe-train:300'
  tokenizer = open_tokenizer(config)
  ids = tokenizer.encode(TEXT)
  assert tokenizer.vocab_size == 300
  assert ids.dtype == np.int32 and ids.max() < 300
  assert tokenizer.document_separator not in ids
  assert tokenizer.decode([*ids, tokenizer.document_separator]) == TEXT
  assert tokenizer.decode(tokenizer.encode(b'a\xff')) == 'a\ufffd'
  assert len(tokenizer.encode('the document')) < len('the document')


def test_bpe_is_trained_on_the_beginning_of_long_documents(config, monkeypatch):
  monkeypatch.setattr(tokenization, '_BPE_TRAINING_BYTES', 4800)
  config.data.tokenizer = 'bpe-train:270'  # each document is longer than 300
  tokenizer = open_tokenizer(config)
  assert len(tokenizer.encode('the document')) < len('the document')


def test_bpe_is_trained_on_training_documents_alone(config, tmp_path):
  config.data.tokenizer = 'bpe-train:300'
  config.data.heldout_fraction = 0.2
  names = [name for name, _ in documents(config, 'heldout')]
  assert names
  before = open_tokenizer(config).encode('zzzz the document')
  for name in names:
    (tmp_path / 'corpus' / name).write_text('zzzz ' * 1000)
  after = open_tokenizer(config).encode('zzzz the document')
  np.testing.assert_array_equal(before, after)


def test_bpe_is_kept_in_the_workdir(config, tmp_path):
  config.data.tokenizer = 'bpe-train:300'
  workdir = tmp_path / 'run'
  trained = open_tokenizer(config, str(workdir)).encode(TEXT)
  assert [p.name for p in workdir.iterdir()] == ['tokenizer.json']
  for path in (tmp_path / 'corpus').iterdir():
    path.write_text('other text altogether ' * 50)
  loaded = open_tokenizer(config, str(workdir))
  np.testing.assert_array_equal(loaded.encode(TEXT), trained)
  config.data.tokenizer = f'bpe:{workdir}/tokenizer.json'
  from_file = open_tokenizer(config)
  np.testing.assert_array_equal(from_file.encode(TEXT), trained)
  assert from_file.document_separator == loaded.document_separator
  config.data.tokenizer = 'bpe-train:301'
  with pytest.raises(ValueError, match='has 300 tokens .* asks for 301'):
    open_tokenizer(config, str(workdir))


def test_bpe_without_all_characters(config, tmp_path):
  model = tokenizers.Tokenizer(models.BPE(unk_token='[UNK]'))
  model.pre_tokenizer = pre_tokenizers.Whitespace()
  trainer = trainers.BpeTrainer(
    vocab_size=30, special_tokens=['[UNK]'], show_progress=False
  )
  model.train_from_iterator(['hello world'], trainer)
  model.save(str(tmp_path / 'words.json'))
  config.data.tokenizer = f'bpe:{tmp_path}/words.json'
  tokenizer = open_tokenizer(config)
  # No end token in the file: the separator is the id after its last.
  assert tokenizer.document_separator == model.get_vocab_size()
  assert tokenizer.vocab_size == model.get_vocab_size() + 1
  assert tokenizer.decode(tokenizer.encode('hello')) == 'hello'
  with pytest.raises(ValueError, match=r"from byte 1 on, b'\\xc3\\xa9llo"):
    tokenizer.encode('héllo wörld')


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('bytes', r"'bytes' is unknown; did you mean byte\? Allowed: byte, bpe:"),
    ('bpe', "'bpe' is unknown; did you mean bpe:FILE"),
    ('bpe:/nowhere/t.json', 'no such file; give the path of a tokenizer.json'),
    ('bpe-train:256', 'from 257 .* to 1048576; try bpe-train:4096'),
    ('bpe-train:many', 'must be a number'),
    ('bpe-train:0', 'must be a number from 257'),
    ('bpe-train:-5', 'must be a number from 257'),
    ('bpe-train:nan', 'must be a number from 257'),
    ('bpe-train:300.5', 'must be a number from 257'),
    ('bpe-train: 300', 'must be a number from 257'),
    ('bpe-train:1000000000', 'must be a number from 257 .* to 1048576'),
    ('bpe-train:1048577', 'must be a number from 257 .* to 1048576'),
    ('bpe-train:' + '9' * 5000, 'must be a number from 257'),
    ('bpe:a\0b', 'no such file'),
    ('bpe:.', 'no such file'),
    ('bpe-train:100000', r'documents yield \d+ tokens; give at most'),
  ],
)
def test_errors(config, spec, message):
  config.data.tokenizer = spec
  with pytest.raises(ValueError, match=message):
    open_tokenizer(config)


def test_file_that_is_no_tokenizer(config, tmp_path):
  path = tmp_path / 'tokenizer.json'
  path.write_text('{}')
  config.data.tokenizer = f'bpe:{path}'
  with pytest.raises(ValueError, match='not a tokenizer.json'):
    open_tokenizer(config)
