"""Tests of hope.training.workdir: one directory, one configuration."""

import errno
import json

import pytest

from hope import config as config_lib
from hope.training import workdir


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
  config.train.log_every = 1
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


def test_workdir_with_a_field_that_is_new(tmp_path):
  workdir.check_workdir(tmp_path, {'a': {'b': 1}, 'old': 2})
  with pytest.raises(ValueError) as error:
    workdir.check_workdir(tmp_path, {'a': {'b': 1, 'c': 2}})
  assert "  a.c: '(absent)' -> 2\n  old: 2 -> '(absent)'" in str(error.value)


def test_workdir_with_a_damaged_configuration(tmp_path):
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json is damaged'):
    workdir.check_workdir(tmp_path, config_lib.base_config())


def test_resumable_fields_exist_and_do_not_count():
  config = config_lib.base_config()
  names = set(workdir._fields(workdir._as_json(config)))
  for field in workdir.RESUMABLE_FIELDS:
    assert any(name == field or name.startswith(field) for name in names)
  before = workdir.config_fingerprint(config)
  config.train.keep = 7
  config.sample.top_k = 1
  assert workdir.config_fingerprint(config) == before
  config.train.accumulate = 2
  assert workdir.config_fingerprint(config) != before
