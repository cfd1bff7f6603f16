"""Tests of hope.run.workdir: one directory, one configuration."""

import contextlib
import errno
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from conftest import ROOT
import jax.numpy as jnp
import pytest

from hope import config as config_lib
from hope.config import FIELDS
from hope.run import checkpoint, mirror, workdir
from hope.trained import load
from hope.training import loop


def test_workdir_below_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='No files can be written in the workdir'):
    workdir.check_writable(tmp_path / 'file' / 'run')
  with pytest.raises(OSError, match='No files can be written in the workdir'):
    workdir.check_writable(tmp_path / 'file')


def test_workdir_without_permission(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise PermissionError(errno.EACCES, 'Permission denied')

  workdir.check_writable(tmp_path / 'a' / 'b')
  assert not list((tmp_path / 'a' / 'b').iterdir())
  monkeypatch.setattr(type(workdir.epath.Path(tmp_path)), 'write_text', refuse)
  with pytest.raises(PermissionError, match='Choose another workdir'):
    workdir.check_writable(tmp_path)


def test_workdir_remembers_its_configuration(tmp_path):
  config = config_lib.base_config()
  workdir.check_workdir(tmp_path, config)
  first = (tmp_path / 'config.json').read_bytes()
  assert json.loads(first)['model']['cms']['periods'] == [1, 1, 1, 1]
  workdir.check_workdir(tmp_path, config)
  assert (tmp_path / 'config.json').read_bytes() == first

  config.train.steps = 400
  config.sample.prompt = 'class '
  workdir.check_workdir(tmp_path, config)
  kept = json.loads((tmp_path / 'config.json').read_text())
  assert kept['train']['steps'] == 400

  config.seed = 1
  config.model.num_layers = 3
  config.log.every = 1
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ValueError) as error:
    workdir.check_workdir(tmp_path, config)
  assert str(error.value).splitlines() == [
    f'The workdir {tmp_path} holds a run of another configuration:',
    '  model.num_layers: None -> 3',
    '  seed: 0 -> 1',
    'Use another workdir for the new configuration, or give these fields '
    'their old values to go on with the old run.',
  ]
  assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
  ('there', 'message'),
  [
    ({'a': {'b': 1}}, 'a.c is missing: another version wrote'),
    ({'a': {'b': 1, 'c': 2, 'd': 3}}, 'a.d is unknown: another version wrote'),
  ],
)
def test_workdir_of_another_version(tmp_path, there, message):
  workdir.check_workdir(tmp_path, there)
  with pytest.raises(ValueError, match=message):
    workdir.check_workdir(tmp_path, {'a': {'b': 1, 'c': 2}})


# Fields of version 0.1.0 that have other names now.
RENAMED = {
  'model.mixer': 'model.pattern',
  'model.titans.kernel': 'compute.kernel',
  'model.remat': 'compute.remat',
  'train.watchdog': 'processes.watchdog',
  'data.read_ahead': 'reading.ahead',
  'data.tfds_dir': 'reading.tfds_dir',
  'train.checkpoint_every': 'checkpoint.every',
  'train.keep': 'checkpoint.keep',
  'train.keep_every': 'checkpoint.keep_every',
  'train.keep_best': 'checkpoint.keep_best',
  'train.log_every': 'log.every',
  'train.eval_every': 'evals.every',
  'train.eval_batches': 'evals.batches',
}


@pytest.mark.parametrize('read', [loop.run, lambda _, folder: load(folder)])
def test_a_run_of_version_0_1_0_is_refused(tmp_path, read):
  """In a line that says how to go on, by training and by reading it."""
  config = config_lib.base_config()
  config.data.source = 'synthetic:mqar'
  config.mesh.data = 1
  old = config.to_dict()
  for before, now in RENAMED.items():
    section, name = now.split('.')
    *parents, last = before.split('.')
    place = functools.reduce(dict.__getitem__, parents, old)
    place[last] = old[section].pop(name)
  (tmp_path / 'config.json').write_text(json.dumps(old))
  with pytest.raises(ValueError) as error:
    read(config, str(tmp_path))
  assert str(error.value) == (
    f'{tmp_path}/config.json: checkpoint.every, checkpoint.keep, '
    f'checkpoint.keep_best, ... are missing: {workdir.ANOTHER_VERSION}'
  )
  assert not (tmp_path / 'checkpoints').exists()


def test_workdir_with_a_damaged_configuration(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json is damaged'):
    workdir.check_workdir(tmp_path, config_lib.base_config())


def fill(folder):
  """Leaves no space on a small disk."""
  with contextlib.suppress(OSError), (folder / 'much').open('wb') as file:
    while True:
      file.write(bytes(4096))
      file.flush()


@pytest.fixture
def full_disk(tmp_path):
  """A file system without space for more than empty files."""
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(tmp_path)]
  if not shutil.which('mount') or subprocess.run(mount).returncode:
    pytest.skip('cannot mount a file system here')
  fill(tmp_path)
  yield tmp_path
  subprocess.run(['umount', '-l', str(tmp_path)], check=True)


def test_a_disk_that_is_full_at_the_start(full_disk):
  with pytest.raises(OSError, match='or free some space') as error:
    workdir.check_writable(full_disk / 'run')
  assert error.value.errno == errno.ENOSPC
  with pytest.raises(ValueError, match='or free some space'):
    mirror.Mirror(full_disk / 'run')
  assert list((full_disk / 'run').iterdir()) == []


def test_a_configuration_on_a_full_disk(full_disk, monkeypatch):
  """What is there stays as it is."""
  config = config_lib.base_config()
  (full_disk / 'much').unlink()
  workdir.check_workdir(full_disk, config)
  before = (full_disk / 'config.json').read_bytes()
  monkeypatch.setattr(workdir, 'check_writable', lambda _: None)
  fill(full_disk)
  config.train.steps = 400
  with pytest.raises(
    OSError, match='config.json could not be written'
  ) as error:
    workdir.check_workdir(full_disk, config)
  assert error.value.errno == errno.ENOSPC
  assert (full_disk / 'config.json').read_bytes() == before


# Sections of the fields that may change between two starts of a run.
HOW = (
  *('compute', 'mesh', 'processes', 'reading'),
  *('checkpoint', 'log', 'evals', 'sample'),
)


def test_identity_is_what_is_computed():
  """Another value of a field makes another run, or does not, by its section."""
  config = config_lib.resolve(config_lib.base_config(), 257)
  before = workdir.config_fingerprint(config)
  seen = set()
  for path in FIELDS:
    nested = config.to_dict()
    *parents, name = path.split('.')
    section = nested
    for part in parents:
      section = section[part]
    section[name] = [section[name], 'another']
    section = path.partition('.')[0]
    same = workdir.config_fingerprint(nested) == before
    assert same == (section in HOW or path == 'train.steps'), path
    seen.add(section)
  assert seen == {'seed', 'model', 'data', 'optimizer', 'train', *HOW}


HOSTILE = (
  *('a[1]', 'a]b', 'a[b', 'a*', 'a?b', 'a\\b', 'a\nb', 'a\tb', 'a\x7f'),
  *('a\udcff', 'a b', ' ', 'ünï', '日本', 'e\u0301', '{a,b}', 'a%20b', 'a#b'),
  *('a:b', 'a.', '..a', '~a', '$HOME', 'a|zip:', '-a', "a'b", 'a"b', 'a;b'),
)


@pytest.mark.parametrize('name', HOSTILE, ids=ascii)
def test_a_path_holds_checkpoints_or_is_refused(tmp_path, name):
  """Orbax reads some names as a pattern: what it wrote is lost."""
  state = {'x': jnp.arange(4)}
  try:
    files = mirror.Mirror(tmp_path / name)
  except ValueError as error:
    assert 'Choose a workdir' in str(error) or 'another workdir' in str(error)
    assert '\n' not in str(error)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError):
      checkpoint.Checkpointer(tmp_path / name / 'checkpoints', keep=1)
    return
  with files:
    for _ in range(2):
      folder = files.workdir / 'checkpoints'
      with checkpoint.Checkpointer(folder, keep=1) as saver:
        restored = saver.restore_latest(state)
        if restored is None:
          saver.save(1, state, data_state={})
  assert restored.state['x'].tolist() == [0, 1, 2, 3]
  assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('gs://', 'names no bucket'),
    ('gs:///', 'names no bucket'),
    ('://', 'names no bucket'),
    ('gs://b/run[1]', 'could not be restored'),
    ('nowhere://b/run', 'is not known here'),
  ],
)
def test_a_bucket_that_cannot_be(path, message):
  with pytest.raises(ValueError, match=message):
    mirror.Mirror(path)


def test_a_path_that_is_too_long_for_checkpoints(tmp_path):
  folder = str(tmp_path)
  while len(folder) < 3800:
    folder += '/' + 'x' * 100
  # A path may have 4,095 letters.
  folder += '/' + 'x' * (3999 - len(folder))
  os.makedirs(folder)
  with pytest.raises(ValueError, match='File name too long'):
    mirror.Mirror(folder)


@pytest.mark.parametrize('reading', [False, True])
@pytest.mark.parametrize(
  ('name', 'make'),
  [
    ('checkpoints', pathlib.Path.touch),
    ('checkpoints', lambda path: path.symlink_to('nowhere')),
    ('tensorboard', pathlib.Path.touch),
    ('metrics.jsonl', pathlib.Path.mkdir),
    ('results.json', pathlib.Path.mkdir),
    ('tokenizer.json', pathlib.Path.mkdir),
  ],
)
def test_a_file_where_a_run_has_a_folder(tmp_path, name, make, reading):
  make(tmp_path / name)
  with pytest.raises(ValueError, match=f'{name} is no (folder|file), but'):
    mirror.Mirror(tmp_path, reading=reading)


# A run that prints when it has its workdir, and then goes on for long.
RUN = """
import sys, time
from hope.run import mirror
with mirror.Mirror(sys.argv[1]):
  print('at work', flush=True)
  time.sleep(1e6)
"""


@pytest.fixture
def other_run(tmp_path):
  """A run of another process in tmp_path / 'run'."""
  process = subprocess.Popen(
    [sys.executable, '-c', RUN, str(tmp_path / 'run')],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'at work\n'
  yield process
  process.kill()
  process.communicate()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_second_run_is_refused_until_the_first_ends(
  tmp_path, other_run, number
):
  folder = tmp_path / 'run'
  with pytest.raises(ValueError) as error:
    mirror.Mirror(folder)
  assert str(error.value).startswith(
    f'Another run is at work in {folder}: process {other_run.pid} on '
  )
  mirror.Mirror(folder, reading=True)  # as hope.generate does
  other_run.send_signal(number)
  other_run.wait()
  for _ in range(2):
    with mirror.Mirror(folder):
      with pytest.raises(ValueError, match=f'process {os.getpid()} on'):
        mirror.Mirror(folder)


def test_an_error_ends_the_lock(tmp_path):
  with pytest.raises(KeyError):
    with mirror.Mirror(tmp_path):
      raise KeyError
  with mirror.Mirror(tmp_path):
    pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(workdir.fcntl, 'flock', refuse)
  for _ in range(2):
    mirror.Mirror(tmp_path)
  assert caplog.text.count('has no locks (No locks available)') == 2


def test_only_the_leader_locks(tmp_path, monkeypatch):
  with mirror.Mirror(tmp_path):
    monkeypatch.setattr(mirror.multihost, 'is_leader', lambda: False)
    mirror.Mirror(tmp_path)
    # All processes are refused if the leader is.
    monkeypatch.setattr(mirror.multihost, 'gather', lambda x: ['taken', x])
    with pytest.raises(ValueError, match='^taken$'):
      mirror.Mirror(tmp_path)
