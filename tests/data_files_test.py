"""Tests of files by several names, of links that loop, and of no files."""

import os

import pytest

from hope.config import base_config
from hope.data import documents, files, sources


def make_config(source):
  config = base_config()
  config.data.source = source
  config.data.heldout_fraction = 0.5
  return config


def names(pattern):
  source = sources.text_source(str(pattern))
  return [source.name(i) for i in range(len(source))]


@pytest.fixture
def folder(tmp_path):
  for i in range(8):
    path = tmp_path / 'real' / f'{i}.txt'
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'document {i}')
  return tmp_path


REAL = [f'real/{i}.txt' for i in range(8)]


def link_files(folder):
  for i in range(8):
    (folder / f'a{i}.txt').symlink_to(folder / 'real' / f'{i}.txt')


def link_links(folder):
  link_files(folder)
  for i in range(8):
    (folder / f'A{i}.txt').symlink_to(f'a{i}.txt')


def link_folder(folder):
  (folder / 'a').symlink_to('real')


def link_to_parents(folder):
  # Two of them: every path doubles at each level.
  for name in ('loop', 'again'):
    (folder / 'real' / name).symlink_to(folder)


@pytest.mark.parametrize(
  'link', [link_files, link_links, link_folder, link_to_parents]
)
def test_a_linked_file_is_one_document_by_its_real_name(folder, link):
  assert names(f'{folder}/**/*.txt') == REAL
  config = make_config(f'text:{folder}/**/*.txt')
  before = [dict(documents(config, split)) for split in ('train', 'heldout')]
  link(folder)
  assert names(f'{folder}/**/*.txt') == REAL
  after = [dict(documents(config, split)) for split in ('train', 'heldout')]
  assert after == before


def test_a_hard_link_is_one_document(folder):
  for i in range(8):
    os.link(folder / 'real' / f'{i}.txt', folder / 'real' / f'x{i}.txt')
  assert names(f'{folder}/**/*.txt') == REAL


def test_several_spellings_of_a_path_are_one_document(folder, monkeypatch):
  monkeypatch.chdir(folder)
  paths = ['real/0.txt', './real/0.txt', 'real/../real/0.txt', 'real//0.txt']
  paths.append(f'{folder}/real/0.txt')
  source = files.FileSource('.', paths)
  assert [source.name(i) for i in range(len(source))] == ['real/0.txt']


def test_links_alone_are_read(folder):
  (folder / 'links').mkdir()
  (folder / 'links' / 'b.txt').symlink_to(folder / 'real' / '0.txt')
  (folder / 'links' / 'a.txt').symlink_to(folder / 'real' / '0.txt')
  assert names(f'{folder}/links/*.txt') == ['a.txt']
  (folder / 'there').symlink_to('real')
  assert len(names(f'{folder}/there/**')) == 8


def test_patterns_mean_what_they_mean_to_glob(folder, monkeypatch):
  monkeypatch.chdir(folder)
  (folder / '.hidden').mkdir()
  (folder / '.hidden' / 'x.txt').write_text('x')
  (folder / 'real' / 'deep').mkdir()
  (folder / 'real' / 'deep' / 'y.txt').write_text('y')
  (folder / 'real[1]').mkdir()
  (folder / 'real[1]' / 'z.txt').write_text('z')
  everything = {*REAL, 'real/deep/y.txt', 'real[1]/z.txt'}
  for pattern, expected in (
    ('**/*.txt', everything),
    ('**', everything),
    ('./**/*.txt', everything),
    ('real/**/*.txt', everything - {'real[1]/z.txt'}),
    ('re*/**/y.txt', {'real/deep/y.txt'}),
    ('**/deep/**/*.txt', {'real/deep/y.txt'}),
    ('.hidden/*.txt', {'.hidden/x.txt'}),
    ('real/*', set(REAL)),
    ('nothing/**/*.txt', set()),
  ):
    found = files.matching_files(pattern)
    assert {os.path.normpath(path) for path in found} == expected
    assert len(found) == len(set(found))


def test_identical_files_are_never_on_both_sides(tmp_path):
  for i in range(40):
    (tmp_path / f'{i}.txt').write_text(f'text {i % 10}')
  config = make_config(f'text:{tmp_path}/*.txt')
  train, heldout = (
    [text for _, text in documents(config, split)]
    for split in ('train', 'heldout')
  )
  assert len(set(train) | set(heldout)) == len(train) + len(heldout) == 10
  # The first name of a text decides, so that none is more likely held out.
  for text in {*train, *heldout}:
    copies = sorted(
      p.name for p in tmp_path.iterdir() if p.read_bytes() == text
    )
    assert (sources._rank(copies[0]) < 2**63) == (text in heldout)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda path: path.symlink_to(path), 'Too many levels of symbolic links'),
    (lambda path: path.symlink_to('gone'), 'No such file'),
    (os.mkfifo, 'not a regular file'),
  ],
)
def test_unreadable_names(folder, make, message):
  make(folder / 'real' / 'bad.txt')
  with pytest.raises(ValueError, match=f'data.source: .*bad.txt.*{message}'):
    sources.open_corpus(make_config(f'text:{folder}/**/*.txt'))


def test_folders_that_match_are_left_out(folder):
  (folder / 'real' / 'folder.txt').mkdir()
  assert names(f'{folder}/real/*.txt') == [f'{i}.txt' for i in range(8)]


def test_a_file_that_goes_away_while_listing(folder, monkeypatch):
  pattern = f'{folder}/real/*.txt'
  listed = files.matching_files(pattern)
  monkeypatch.setattr(sources, 'matching_files', lambda _: listed)
  (folder / 'real' / '3.txt').unlink()
  with pytest.raises(ValueError, match='data.source: .*3.txt.*No such file'):
    sources.text_source(pattern)


@pytest.mark.parametrize(
  'pattern',
  ['a\0b', '\ud800', '\ud800/**/*', '[', '\n', 'x' * 9999, '/', '**/\0', '//'],
)
def test_odd_patterns(tmp_path, monkeypatch, pattern):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match='data.source=') as error:
    sources.open_corpus(make_config(f'text:{pattern}'))
  assert '\n' not in str(error.value) and str(error.value).encode()


@pytest.mark.parametrize('fraction', [float('nan'), float('inf'), -0.5])
def test_fractions_that_are_none(folder, fraction):
  config = make_config(f'text:{folder}/**/*.txt')
  config.data.heldout_fraction = fraction
  with pytest.raises(ValueError, match=r'heldout_fraction=.* outside \(0, 1\)'):
    sources.open_corpus(config)
