"""The menu: every field, what it may be, and whether it makes another run."""

import re

from absl import flags
from conftest import ROOT
import pytest

from hope import command_line
from hope import config as config_lib
from hope.commands import train
from hope.config import FIELDS
from hope.fields import Field
from hope.run.workdir import is_identity

ANOTHER_RUN = 'another value makes another run'
FREE = 'may change between two starts of a run'
# How ml_collections loads an experiment file.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


def entries(text):
  """What is said of each field, by its path, and the words of its heading."""
  found, section, effect, path = {}, '', '', ''
  for line in text.splitlines():
    assert len(line) <= 100
    if heading := re.fullmatch(r'--config\.(.*)NAME: (.*)', line):
      section, effect = heading.groups()
    elif start := re.match(r'  (\w+) ', line):
      path = section + start[1]
      found[path] = effect, line.partition(start[1])[2]
    elif line:
      words, said = found[path]
      found[path] = words, f'{said} {line}'
  return {
    path: (effect, ' '.join(said.split()))
    for path, (effect, said) in found.items()
  }


def test_every_field_is_there():
  found = entries(config_lib.menu(config_lib.base_config()))
  assert list(found) == list(FIELDS)
  for path, (effect, said) in found.items():
    stated = FIELDS[path]
    assert ' '.join(stated.doc.split()) in said, path
    assert stated.allowed in said, path
    assert 'default:' not in said, path
    free = effect == FREE or said.endswith(FREE)
    assert free != is_identity(path), path
    assert effect in (FREE, ANOTHER_RUN)


def test_other_values_have_their_defaults_beside_them():
  config = config_lib.base_config()
  config.model.width = 64
  config.optimizer.name = 'muon'
  config.sample.prompt = 'a\nb'
  config.model.titans.retention = False
  config.train.steps = -3  # what is wrong is shown too
  found = entries(config_lib.menu(config))
  for path, value, default in (
    ('model.width', '64', 'None'),
    ('optimizer.name', 'muon', 'adamw'),
    ('sample.prompt', r"'a\nb'", "'def '"),
    ('model.titans.retention', 'false', 'true'),
    ('train.steps', '-3', '200'),
  ):
    said = found[path][1]
    assert said.startswith(value) and f'default: {default}' in said, path
  assert 'arguments of muon: ns_coeffs=' in found['optimizer.options'][1]


@pytest.mark.parametrize(
  ('stated', 'allowed'),
  [
    (Field(True, ''), 'true or false'),
    (Field('', ''), 'text'),
    (Field('a', '', choices=('a', 'b')), 'one of a, b'),
    (Field(1, '', unit='tokens', minimum=1), 'tokens, 1 or more'),
    (Field(None, '', of=int, optional=True), 'a whole number, or None'),
    (Field(0.5, '', minimum=0, below=1), 'a number, 0 or more, below 1'),
    (Field(0.5, '', above=0, maximum=9), 'a number, at most 9, above 0'),
    (Field(1, '', minimum=1, maximum=2**12), 'a whole number, 1 to 4,096'),
    (Field((1,), '', minimum=1), 'whole numbers, as in (1, 4), 1 or more'),
  ],
)
def test_what_a_field_may_be(stated, allowed):
  assert stated.allowed == allowed


def test_the_command_needs_no_workdir_and_opens_nothing(capsys, monkeypatch):
  argv = ['hope.main', f'--config={ROOT}/experiments/smoke.py', '--help-config']
  argv += ['--config.data.source=text:/none/*', '--config.train.steps=7']
  values = flags.FlagValues()
  with monkeypatch.context() as patch:
    patch.setattr('sys.argv', argv)
    train.define_flags(values)
    command_line.parse(values, argv)
  train.main(values)
  found = entries(capsys.readouterr().out)
  assert found['data.source'][1].startswith('text:/none/*')
  assert found['train.steps'][1].startswith('7 ')
