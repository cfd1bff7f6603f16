"""A workdir in a bucket: gs:// on a file system in this process's memory."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
import pytest

from hope.run import mirror


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  class Bucket(MemoryFileSystem):
    store, pseudo_dirs = {}, ['']

    def __init__(self, **kwargs):
      kwargs.pop('finalize_on_close', None)
      super().__init__(**kwargs)

    @classmethod
    def _strip_protocol(cls, path):
      return super()._strip_protocol(path.removeprefix('gs:/'))

  for name in ('gcs', 'gs'):
    fsspec.register_implementation(name, Bucket, clobber=True)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  yield Bucket
  fsspec.config.conf.clear()


def test_a_local_workdir_is_used_as_it_is(tmp_path):
  with mirror.Mirror(tmp_path / 'run') as files:
    assert files.local == tmp_path / 'run'
    assert str(files.workdir) == str(tmp_path / 'run')
    files.push()
  (left,) = (tmp_path / 'run').iterdir()
  assert left.name == '.lock'


def test_files_are_copied_and_a_run_goes_on_from_them(bucket, tmp_path):
  with mirror.Mirror('gs://bucket/run') as files:
    assert tmp_path in files.local.parents
    (files.local / 'metrics.jsonl').write_text('{"step": 1}\n')
    (files.local / 'tensorboard').mkdir()
    (files.local / 'tensorboard' / 'events').write_bytes(b'\x00\x01')
    files.push()
    there = files.workdir / 'tensorboard' / 'events'
    assert there.read_bytes() == b'\x00\x01'
    # Lines that were written after the last push are gone with their machine.
    (files.local / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2}\n')
  with mirror.Mirror('gs://bucket/run') as again:
    assert (again.local / 'metrics.jsonl').read_text() == '{"step": 1}\n'


def test_a_second_run_leaves_the_files_of_the_first(bucket):
  with mirror.Mirror('gs://bucket/run') as files:
    (files.local / 'metrics.jsonl').write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match='Another run is at work in'):
      mirror.Mirror('gs://bucket/run')
    assert (files.local / 'metrics.jsonl').read_text() == '{"step": 1}\n'


def test_what_another_run_of_this_name_left_is_not_pushed(bucket):
  with mirror.Mirror('gs://bucket/run') as files:
    (files.local / 'results.json').write_text('{}')
  with mirror.Mirror('gs://bucket/run') as again:
    again.push()
  assert not (files.workdir / 'results.json').exists()


def test_reading_leaves_the_folder_of_a_run_alone(bucket):
  files = mirror.Mirror('gs://bucket/run')
  (files.local / 'metrics.jsonl').write_text('{"step": 1}\n')
  reader = mirror.Mirror('gs://bucket/run', reading=True)
  assert reader.local != files.local
  assert (files.local / 'metrics.jsonl').read_text() == '{"step": 1}\n'


def test_another_workdir_has_another_folder(bucket):
  names = ('gs://bucket/run', 'gs://bucket/other')
  assert len({mirror.Mirror(name).local for name in names}) == 2
