"""Tests of the documents and of their split."""

import itertools
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from hope.config import base_config
from hope.data import documents, sources, tfds_source

ROOT = pathlib.Path(__file__).resolve().parent.parent


def make_config(source, tfds_dir=None, **data):
  config = base_config()
  config.data.source = source
  config.reading.tfds_dir = tfds_dir
  config.data.update(data)
  return config


def write_files(folder, count):
  for i in range(count):
    path = folder / f'part{i % 3}' / f'{i}.txt'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f'document {i}\n'.encode() + b'\xff' * i)
  return f'text:{folder}/**/*.txt'


class LocalText(tfds.core.GeneratorBasedBuilder):
  """Forty short documents, one of them empty, and an empty split."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {'text': tfds.features.Text(), 'title': tfds.features.Text()}
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(['', *map('text {}'.format, range(39))]),
      'blank': self._generate_examples(['', '']),
    }

  def _generate_examples(self, texts):
    for i, text in enumerate(texts):
      yield i, {'text': text, 'title': f'title {i}'}


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tfds')
  LocalText(
    data_dir=str(folder), file_format='array_record'
  ).download_and_prepare()
  return str(folder)


def test_stdlib_has_modules_tests_and_prose_but_no_packages():
  source = sources.stdlib_source()
  names = [source.name(i) for i in range(len(source))]
  assert names == sorted(names)
  assert {'os.py', 'json/decoder.py', 'pydoc_data/topics.py'} <= set(names)
  assert not [n for n in names if 'site-packages' in n]
  assert (
    source.read(names.index('os.py')) == pathlib.Path(os.__file__).read_bytes()
  )


def test_splits_are_disjoint_complete_and_by_name_alone(tmp_path):
  config = make_config(write_files(tmp_path, 60), heldout_fraction=0.3)
  train, heldout = (dict(documents(config, s)) for s in ('train', 'heldout'))
  assert not train.keys() & heldout.keys()
  assert len(train) + len(heldout) == 60
  assert 8 <= len(heldout) <= 28
  for name, text in (train | heldout).items():
    assert text == (tmp_path / name).read_bytes()
  # Taking documents away moves no other across the border.
  for name in itertools.islice(sorted(train), 0, None, 2):
    (tmp_path / name).unlink()
  assert dict(documents(config, 'heldout')) == heldout
  # The same names elsewhere split alike, in the same order.
  moved = tmp_path / 'a' / 'b'
  moved.mkdir(parents=True)
  for part in tmp_path.glob('part*'):
    part.rename(moved / part.name)
  config.data.source = f'text:{moved}/**/*.txt'
  assert list(dict(documents(config, 'heldout'))) == list(heldout)


def test_split_is_the_same_on_every_machine():
  # `printf os.py | b2sum -l 64`
  assert sources._rank('os.py') == 0xF19DB6A54FEDE009
  assert sources._rank('json/decoder.py') == 0x1D2B2A9A82B8610D


def test_empty_files_are_left_out(tmp_path):
  config = make_config(write_files(tmp_path, 20), heldout_fraction=0.5)
  (tmp_path / 'empty.txt').touch()
  assert len(sources.open_corpus(config).source) == 20


def test_relative_glob_and_plain_file(tmp_path, monkeypatch):
  write_files(tmp_path, 6)
  monkeypatch.chdir(tmp_path)
  names = [sources.text_source('**/*.txt').name(i) for i in range(6)]
  assert 'part0/0.txt' in names
  assert sources.text_source('part1/1.txt').name(0) == '1.txt'
  assert sources.text_source('part?/1.txt').name(0) == 'part1/1.txt'


def test_fingerprint_follows_the_files(tmp_path):
  config = make_config(write_files(tmp_path, 9), heldout_fraction=0.5)
  before = sources.open_corpus(config).fingerprint
  assert sources.open_corpus(config).fingerprint == before
  (tmp_path / 'part0' / '0.txt').write_text('longer than it was before')
  assert sources.open_corpus(config).fingerprint != before


def test_tfds_reads_what_was_prepared(tfds_dir):
  config = make_config(
    'tfds:local_text', tfds_dir=tfds_dir, heldout_fraction=0.3
  )
  train, heldout = (dict(documents(config, s)) for s in ('train', 'heldout'))
  texts = sorted([*train.values(), *heldout.values()])
  assert texts == sorted([b'', *(f'text {i}'.encode() for i in range(39))])
  assert not train.keys() & heldout.keys()
  source = sources.open_corpus(config).source
  assert pickle.loads(pickle.dumps(source)).read(7) == source.read(7)
  config.data.source = 'tfds:local_text/1.0.0:train[:50%]'
  assert len(sources.open_corpus(config).source) == 20


def test_tfds_needs_no_tensorflow(tfds_dir):
  script = (
    'import sys\n'
    'from hope.config import base_config\n'
    'from hope.data import open_data\n'
    'config = base_config()\n'
    'config.data.update(source="tfds:local_text", heldout_fraction=0.3,\n'
    '    batch_size=2, seq_len=8)\n'
    'config.reading.tfds_dir = sys.argv[1]\n'
    'batch = next(open_data(config).train_iterator())\n'
    'assert batch["inputs"].shape == (2, 8)\n'
    'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', script, tfds_dir], check=True, cwd=ROOT)


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('tfds:other', r'tfds_dir=.*prepared there: .*local_text.*download_and'),
    ('tfds:local_text/2.0.0', 'is not prepared'),
    ('tfds:local_text:dev', "split 'dev'.*the splits are train, blank"),
    ('tfds:local_text:train[:x]', 'slices such as'),
    ('tfds:local_text:blank', 'all 2 documents are empty'),
  ],
)
def test_tfds_errors(tfds_dir, source, message):
  config = make_config(source, tfds_dir=tfds_dir)
  with pytest.raises(ValueError, match=message):
    sources.open_corpus(config)


def test_tfds_asks_for_a_config(tfds_dir, tmp_path):
  (tmp_path / 'wiki' / 'english' / '1.0.0').mkdir(parents=True)
  config = make_config('tfds:wiki', tfds_dir=str(tmp_path))
  with pytest.raises(ValueError, match='has english: name one, as wiki/eng'):
    sources.open_corpus(config)


@pytest.mark.parametrize(
  ('names', 'found'),
  [(['title'], 'title'), (['a', 'text'], 'text'), (['a', 'b'], None), ([], 0)],
)
def test_tfds_text_feature(names, found):
  features = tfds.features.FeaturesDict(
    {name: tfds.features.Text() for name in names}
    | {'label': tfds.features.Scalar(np.int64)}
  )
  if found:
    assert tfds_source._text_key('given', features) == found
  else:
    with pytest.raises(ValueError, match=f'given has {len(names)} text feat'):
      tfds_source._text_key('given', features)


def test_tfds_refuses_what_needs_tensorflow(tfds_dir, tmp_path):
  shutil.copytree(tfds_dir, tmp_path, dirs_exist_ok=True)
  info = tmp_path / 'local_text' / '1.0.0' / 'dataset_info.json'
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  config = make_config('tfds:local_text', tfds_dir=str(tmp_path))
  with pytest.raises(ValueError, match="as tfrecord.*='array_record'"):
    sources.open_corpus(config)


INFO, FEATURES = 'dataset_info.json', 'features.json'
SHARD = 'local_text-train.array_record-00000-of-00001'


@pytest.mark.parametrize(
  ('name', 'damage', 'message'),
  [
    (
      SHARD,
      None,
      'cannot read local_text/1.0.0:train/.*prepare the data',
    ),
    (SHARD, lambda raw: b'', 'cannot read local_text'),
    (SHARD, lambda raw: raw[: len(raw) // 2], 'cannot read local_text'),
    (SHARD, lambda raw: raw[:99] + bytes(len(raw) - 99), 'cannot read local_t'),
    (SHARD, lambda raw: raw[::-1], 'cannot read local_text'),
    (INFO, lambda raw: b'', 'metadata in .*1.0.0 cannot be read'),
    (INFO, lambda raw: b'{}', 'metadata in .* cannot be read'),
    (INFO, lambda raw: b'\xff\xfe\0', 'metadata in .* cannot be read'),
    (INFO, lambda raw: raw[: len(raw) // 2], 'metadata in .* cannot be read'),
    (INFO, lambda raw: raw.replace(b'splits', b'spl'), 'metadata in .* cannot'),
    (INFO, lambda raw: raw.replace(b'"40"', b'"4000000000"'), 'out of bound'),
    (INFO, lambda raw: raw.replace(b'"40"', b'"x"'), 'metadata in .* cannot'),
    (INFO, lambda raw: raw.replace(b'array_', b'\\u0000'), 'metadata in'),
    (FEATURES, None, 'metadata in .* cannot be read'),
    (FEATURES, lambda raw: b'{}', 'metadata in .* cannot be read'),
    (FEATURES, lambda raw: raw[:-9], 'metadata in .* cannot be read'),
    (
      FEATURES,
      lambda raw: raw.replace(b'.Text', b'.No'),
      'metadata in',
    ),
  ],
)
def test_damaged_tfds_is_said_in_one_line(
  tfds_dir, tmp_path, name, damage, message
):
  shutil.copytree(tfds_dir, tmp_path, dirs_exist_ok=True)
  path = tmp_path / 'local_text' / '1.0.0' / name
  raw = path.read_bytes()
  path.unlink()
  if damage:
    path.write_bytes(damage(raw))
  config = make_config('tfds:local_text', tfds_dir=str(tmp_path))
  config.data.heldout_fraction = 0.3
  with pytest.raises(ValueError, match=f'data.source=tfds.*{message}') as error:
    sources.open_corpus(config)
  assert '\n' not in str(error.value)


def test_tfds_is_known_by_its_content(tfds_dir, tmp_path):
  config = make_config('tfds:local_text', heldout_fraction=0.3)
  config.reading.tfds_dir = tfds_dir
  before = sources.open_corpus(config).fingerprint
  shutil.copytree(tfds_dir, tmp_path / 'moved')
  config.reading.tfds_dir = str(tmp_path / 'moved')
  assert sources.open_corpus(config).fingerprint == before

  class Other(LocalText, skip_registration=True):
    name = 'local_text'

    def _split_generators(self, dl_manager):
      return {
        'train': self._generate_examples(
          ['', *map('Text {}'.format, range(39))]
        )
      }

  folder = tmp_path / 'other'
  Other(data_dir=str(folder), file_format='array_record').download_and_prepare()
  config.reading.tfds_dir = str(folder)
  assert sources.open_corpus(config).fingerprint != before


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('stdlb', r"'stdlb' is unknown; did you mean stdlib\? Allowed: stdlib,"),
    ('txt:*.txt', r'did you mean text:GLOB\?'),
    ('nonsense', "'nonsense' is unknown; Allowed: stdlib"),
    ('text:', "'text:' is unknown"),
    ('text:/nowhere/**/*.md', 'no file matches .*check the path'),
    ('synthetic:mqar', 'has no documents; give stdlib'),
  ],
)
def test_unknown_sources(source, message):
  with pytest.raises(ValueError, match=message):
    sources.open_corpus(make_config(source))


def test_only_empty_files(tmp_path):
  (tmp_path / 'a.txt').touch()
  with pytest.raises(ValueError, match='all 1 matching files are empty'):
    sources.open_corpus(make_config(f'text:{tmp_path}/*.txt'))


def test_unreadable_file(tmp_path):
  (tmp_path / 'a.txt').symlink_to(tmp_path / 'gone')
  with pytest.raises(ValueError, match="cannot read .*a.txt': No such file"):
    sources.open_corpus(make_config(f'text:{tmp_path}/*.txt'))


def test_file_that_goes_away(tmp_path):
  source = sources.text_source(write_files(tmp_path, 1).partition(':')[2])
  (tmp_path / 'part0' / '0.txt').unlink()
  with pytest.raises(ValueError, match="cannot read .*0.txt': No such file"):
    source.read(0)


@pytest.mark.parametrize(
  ('fraction', 'message'),
  [
    (1e-9, 'leaves no heldout document among the 5 .*raise it'),
    (1 - 1e-9, 'leaves no train document among the 5 .*lower it'),
    (0.0, r'outside \(0, 1\)'),
    (1.0, r'outside \(0, 1\)'),
  ],
)
def test_empty_splits(tmp_path, fraction, message):
  config = make_config(write_files(tmp_path, 5), heldout_fraction=fraction)
  with pytest.raises(ValueError, match=message):
    sources.open_corpus(config)


def test_unknown_split():
  with pytest.raises(ValueError, match="'test': give 'train' or 'heldout'"):
    next(documents(make_config('stdlib'), 'test'))
