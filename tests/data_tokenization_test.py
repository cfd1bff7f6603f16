"""Tests of the tokenizers."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from hope.config import base_config
from hope.data import documents, open_data, open_tokenizer, tokenization

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


@pytest.mark.parametrize(
  'text',
  [
    bytes(range(256)),
    bytes(range(255, -1, -1)) * 3,
    'caf\xe9 na\xefve'.encode('latin-1'),
    'caf\xe9'.encode('utf-16'),
    '漢字'.encode()[1:-1],
    b'\xed\xa0\x80 \xf4\x90\x80\x80 \xc0\xaf',  # surrogates, too long
    b'',
    b'a\xff',
  ],
)
def test_bpe_keeps_every_byte(config, text):
  config.data.tokenizer = 'bpe-train:300'
  tokenizer = open_tokenizer(config)
  tokens = tokenizer.encode(text)  # or it raises
  assert tokenizer.difference(text, tokens) is None
  assert tokenizer.decode(tokens) == text.decode(errors='replace')
  assert tokenizer.sizes(text, tokens).sum() == len(text)


def test_the_byte_alphabet_is_the_libraries():
  model = tokenizers.Tokenizer(models.BPE())
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  vocab = {character: i for i, character in enumerate(sorted(alphabet))}
  spec = {'pre_tokenizer': {'type': 'ByteLevel'}}
  found = tokenization._token_bytes(spec, vocab)
  assert sorted(found.values()) == [bytes([byte]) for byte in range(256)]
  level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  for character in map(chr, range(1, 0x800)):
    ((mapped, _),) = level.pre_tokenize_str(character)
    raw = b''.join(found[vocab[c]] for c in mapped)
    assert raw == character.encode()
  assert model.get_vocab_size() == 0


def byte_level(**parts):
  """A trained byte-level encoding with parts replaced."""
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=270,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  model.train_from_iterator(['the number of the corpus'] * 9, trainer)
  for name, value in parts.items():
    setattr(model, name, value)
  return model


def byte_fallback():
  """What SentencePiece makes: no normaliser that loses, bytes as tokens."""
  model = tokenizers.Tokenizer(
    models.BPE(byte_fallback=True, unk_token='<unk>')
  )
  model.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  model.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  pieces = [f'<0x{byte:02X}>' for byte in range(256)]
  vocab = ['<unk>', *pieces, '▁', *'documentfhrpsb', 'do', '▁do']
  model.model = models.BPE(
    {piece: i for i, piece in enumerate(vocab)},
    [('d', 'o'), ('▁', 'do')],
    byte_fallback=True,
    unk_token='<unk>',
  )
  return model


def words(*vocabulary):
  model = tokenizers.Tokenizer(
    models.WordLevel({w: i for i, w in enumerate(vocabulary)}, '[UNK]')
  )
  model.pre_tokenizer = pre_tokenizers.Whitespace()
  return model


def stored(config, tmp_path, model):
  """A configuration with a tokenizer of a file, and room for its rows."""
  model.save(str(tmp_path / 'stored.json'))
  config.data.tokenizer = f'bpe:{tmp_path}/stored.json'
  config.data.update(seq_len=16, batch_size=2)
  config.evals.batches = 2
  return config


def test_truncation_padding_and_dropout_are_off(config, tmp_path):
  expected = open_data(stored(config, tmp_path, byte_level()))
  model = byte_level()
  model.enable_truncation(16)
  model.enable_padding(length=5000)
  model.model.dropout = 0.5
  got = open_data(stored(config, tmp_path, model))
  assert got.heldout_text == expected.heldout_text
  text = 'the number of the corpus ' * 99
  for _ in range(3):
    np.testing.assert_array_equal(
      got.tokenizer.encode(text), expected.tokenizer.encode(text)
    )
  assert got.tokenizer.decode(got.tokenizer.encode(text)) == text


def test_bytes_of_other_encodings(config, tmp_path):
  for path in (tmp_path / 'corpus').iterdir():
    path.write_text(f'{path.name} the 漢字 document é 🙂 of numbers\n' * 20)
  data = open_data(stored(config, tmp_path, byte_fallback()))
  text = '漢 do 🙂 the é'.encode()
  tokens = data.tokenizer.encode(text)
  sizes = data.tokenizer.sizes(text, tokens)
  assert sizes.sum() == len(text) and sizes.min() >= 0
  joined = b''.join(text for _, text in documents(config, 'heldout'))
  assert data.heldout_text.decode() and data.heldout_text[:10] in joined
  assert 0.5 < data.bytes_per_token < 3


LATIN = '\xe9 d\xe9j\xe0 vu '
LOSSY = {
  'lowercase': (byte_level(normalizer=normalizers.Lowercase()), 'A B'),
  'nfc': (byte_level(normalizer=normalizers.NFC()), 'e\u0301'),
  'nfkc': (byte_level(normalizer=normalizers.NFKC()), '\ufb01'),
  'accents': (
    byte_level(
      normalizer=normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents()]
      )
    ),
    LATIN,
  ),
  'strip': (byte_level(normalizer=normalizers.Strip()), ' '),
  'replace': (byte_level(normalizer=normalizers.Replace('vu', 'v')), LATIN),
  'decoder': (byte_level(decoder=decoders.WordPiece()), 'a b'),
  'no decoder': (byte_level(decoder=decoders.Fuse()), 'a b'),
  'prefix': (
    byte_level(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    'a',
  ),
  'whitespace': (
    byte_level(
      pre_tokenizer=pre_tokenizers.Sequence(
        [
          pre_tokenizers.WhitespaceSplit(),
          pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
      )
    ),
    'a b',
  ),
  'unknown': (words('[UNK]', 'the'), 'zebra'),
  'no unknown': (words('the'), 'zebra'),
  'not utf-8': (byte_fallback(), b'caf\xe9'),
}
LOSSY['added'] = (byte_level(), 'a vu b')
LOSSY['added'][0].add_tokens(
  [tokenizers.AddedToken('vu', lstrip=True, rstrip=True)]
)


@pytest.mark.parametrize('name', LOSSY)
def test_text_that_does_not_come_back_is_refused(config, tmp_path, name):
  model, text = LOSSY[name]
  text = text if isinstance(text, bytes) else text.encode()
  config = stored(config, tmp_path, model)
  heldout = {name for name, _ in documents(config, 'heldout')}
  for path in (tmp_path / 'corpus').iterdir():
    end = text if path.name in heldout else b''
    path.write_bytes(b'the ' * 60 + path.name.encode() + end)
  with pytest.raises(ValueError, match='the tokenizer cannot|data.tokenizer=b'):
    open_data(config).eval_batches()


def test_the_place_of_a_change_is_said(config, tmp_path):
  config = stored(
    config, tmp_path, byte_level(normalizer=normalizers.Lowercase())
  )
  name = next(name for name, _ in documents(config, 'heldout'))
  (tmp_path / 'corpus' / name).write_text('é' * 99 + 'Upper' + 'é' * 99)
  message = rf"document '{name}': from byte 198 on, b'Upper.* as b'upper"
  with pytest.raises(ValueError, match=message):
    open_data(config).eval_batches()


def test_changes_of_training_documents_are_reported(config, tmp_path, caplog):
  config = stored(
    config, tmp_path, byte_level(normalizer=normalizers.Lowercase())
  )
  names = [name for name, _ in documents(config, 'train')][:9]
  data = open_data(config)
  data.eval_batches()
  for name in names:
    (tmp_path / 'corpus' / name).write_text(f'{name} the Number ' * 20)
  data = open_data(config)
  data.eval_batches()
  assert not caplog.records
  iterator = data.train_iterator()
  for _ in range(30):
    next(iterator)
  said = [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']
  assert len(said) == 6  # five documents, and that there may be more
  place = len(f'{names[0]} the ')
  assert any(f"byte {place} on, b'Number" in line for line in said)


def test_a_prompt_that_does_not_come_back_is_refused(config, tmp_path):
  config = stored(
    config, tmp_path, byte_level(normalizer=normalizers.Lowercase())
  )
  tokenizer = open_tokenizer(config)
  assert len(tokenizer.encode('the'))
  with pytest.raises(ValueError, match="changes the text 'The': from byte 0"):
    tokenizer.encode('The')


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'[]',
    b'null',
    b'3',
    b'<html>',
    bytes(range(256)),
    b'[' * 10**5,
    tokenizers.Tokenizer(models.BPE()).to_str().encode(),
    tokenizers.Tokenizer(models.WordLevel()).to_str().encode(),
    words('a').to_str().replace('"a":0', '"a":4294967295').encode(),
    words('a').to_str().replace('"a":0', '"a":-1').encode(),
    words('a').to_str().replace('WordLevel', 'Nothing').encode(),
  ],
)
def test_files_that_are_no_tokenizers(config, tmp_path, content):
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(content)
  config.data.tokenizer = f'bpe:{path}'
  with pytest.raises(ValueError, match='not a tokenizer.json') as error:
    open_tokenizer(config)
  assert '\n' not in str(error.value)
