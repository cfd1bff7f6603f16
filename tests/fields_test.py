"""Every field is checked alone: type, finite, bounds, choices."""

import dataclasses
import json
import math

import ml_collections
import numpy as np
import pytest

from hope import config as config_lib
from hope.config import FIELDS
from hope.fields import Field, declared, field

NUMBERS = [path for path, known in FIELDS.items() if known.kind is float]


def resolved(path, value):
  """Resolves the defaults with one field set, whatever its type."""
  config = config_lib.base_config()
  *sections, name = path.split('.')
  section = config
  for part in sections:
    section = section[part]
  with config.unlocked(), section.ignore_type():
    section[name] = value
  return config_lib.resolve(config, 257)


def test_every_field_has_a_meaning_and_a_default_that_it_may_have():
  for path, known in FIELDS.items():
    assert known.doc, path
    assert known.kind in (bool, int, float, str, tuple), path
    known.check(path, known.default)


@pytest.mark.parametrize('path', NUMBERS)
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_number_is_finite(path, value):
  with pytest.raises(ValueError, match='must be a finite number') as error:
    resolved(path, value)
  assert str(error.value).startswith(f'{path}={value}')


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('model.cms.periods', (1.5,), r'=\(1.5,\) must be whole numbers'),
    ('model.cms.periods', (True,), r'=\(True,\) must be whole numbers'),
    ('model.cms.periods', '', "='' must be whole numbers"),
    ('model.cms.periods', 4, '=4 must be whole numbers'),
    ('model.cms.periods', (1,) * 65, r'\(195 letters\) has 65 numbers; give'),
    ('model.cms.hidden_multiple', 0.001, r'no hidden unit; give at least 0.0'),
    ('evals.tasks', (1,), r'=\(1,\) must be texts, as in'),
    ('evals.tasks', 'mqar', "='mqar' must be texts, as in"),
    ('evals.tasks', ('a\0b',), 'a letter that is not UTF-8 text'),
    ('evals.tasks', ('mqar',) * 65, 'has 65 texts; give 0 to 64'),
    ('model.attention.max_context', -5, '=-5 must be at least 1'),
    ('model.titans.conv_width', 10**30, 'must be at most 4,096'),
    ('compute.remat', 1, '=1 must be true or false'),
    ('train.steps', True, '=True must be a whole number'),
    ('train.steps', np.int64(3), r'=np.int64\(3\) must be a whole number'),
    ('train.steps', 2**31, 'must be at most 2,147,483,647'),
    ('train.steps', None, '=None must be a whole number'),
    ('model.width', 'x', "='x' must be a whole number, or None"),
    ('data.batch_size', 10**9, 'must be at most 16,777,216'),
    ('data.source', 'text:\0', 'not UTF-8'),
    ('data.source', 'text:\udc80', 'not UTF-8'),
    (
      'data.source',
      'x' * 5000,
      r'xxx\.\.\. \(5002 letters\) must have at most',
    ),
    ('optimizer.learning_rate', 1e39, 'must be at most 3.40282e'),
    # float32 has neither.
    ('optimizer.eps', 1e-50, 'must be positive'),
    ('optimizer.b1', 1 - 1e-12, 'at least 0 and below 1'),
    ('seed', -1, 'must not be negative'),
    ('seed', 2**32, 'must be at most 4,294,967,295'),
    ('optimizer.name', 'adam', 'one of adamw, .* Did you mean adamw?'),
    ('model', 3, r'model.attention.max_context, .* are missing'),
  ],
)
def test_a_value_that_a_field_cannot_have(path, value, message):
  with pytest.raises(ValueError, match=message) as error:
    resolved(path, value)
  assert str(error.value).startswith(path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    ('model.titans.target_max', None),
    ('optimizer.learning_rate', 1),
    ('optimizer.learning_rate', np.float64(0.1)),
    ('model.cms.periods', [1, 4]),
    ('sample.prompt', 'a line\nand another'),
    ('seed', 2**32 - 1),
  ],
)
def test_a_value_that_a_field_can_have(path, value):
  resolved(path, value)


def test_values_have_the_types_of_their_fields():
  """JSON has no tuples, and 2 for 2.0."""
  nested = json.loads(json.dumps(config_lib.base_config().to_dict()))
  nested['optimizer']['weight_decay'] = 2
  config = config_lib.resolve(ml_collections.ConfigDict(nested), 257)
  assert type(config.optimizer.weight_decay) is float
  assert config.model.cms.periods == (1, 1, 1, 1)
  assert config_lib.resolve(config, 257) == config


def test_a_field_that_there_is_none_of():
  config = config_lib.base_config()
  with config.unlocked():
    config.train.step = 3
  with pytest.raises(
    ValueError, match='train.step is not a .* mean train.steps?'
  ):
    config_lib.resolve(config, 257)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('adamw', 'b1=2.0', 'b1=2.0 must be .*at least 0 and below 1'),
    ('adamw', 'eps=1e999', 'eps=inf must be a finite number'),
    ('adamw', 'nesterov=1', 'nesterov=1 must be true or false'),
    ('adamw', 'nestrov=True', 'adamw lacks; .* Did you mean nesterov?'),
    ('muon', 'ns_coeffs=(1e999, 1.0, 1.0)', 'ns_coeffs=inf must be a finite'),
    ('muon', 'ns_steps=True', 'ns_steps=True must be a whole number'),
    ('m3', 'period=1.5', 'period=1.5 must be a whole number'),
    ('m3', 'alpha=None', 'alpha=None must be a number'),
    ('m3', 'alpha=-1e999', 'alpha=-inf must be a finite number'),
  ],
)
def test_options_of_a_rule_are_checked_alike(name, options, message):
  config = config_lib.base_config()
  config.optimizer.name, config.optimizer.options = name, options
  with pytest.raises(ValueError, match=f'^optimizer.options.* ?{message}'):
    config_lib.resolve(config, 257)


def test_an_integer_of_more_digits_than_python_prints():
  with pytest.raises(ValueError, match='seed=an integer of 16610 bits must be'):
    resolved('seed', 10**5000)


def test_bounds():
  bounded = Field(1.0, '', above=0.5, below=2)
  for value in (0.5, 2.0, -1.0):
    with pytest.raises(ValueError, match='x=.* must be '):
      bounded.check('x', value)
  with pytest.raises(ValueError, match='x=True must be a number.'):
    bounded.check('x', True)
  bounded.check('x', 1.9)


def test_a_field_has_the_type_of_its_annotation():
  @dataclasses.dataclass(frozen=True)
  class Options:
    size: int | None = field(None, 'Size.', minimum=1, unit='tokens')
    periods: tuple[int, ...] = field((1,), 'Periods.')
    names: tuple[str, ...] = field((), 'Names.')
    rate: float = field(0.5, 'Rate.', below=1)

  assert Options(size=3) == Options(3, (1,), (), 0.5)
  assert declared(Options) == {
    'size': Field(
      None, 'Size.', of=int, optional=True, minimum=1, unit='tokens'
    ),
    'periods': Field((1,), 'Periods.', of=tuple),
    'names': Field((), 'Names.', of=tuple, item=str),
    'rate': Field(0.5, 'Rate.', of=float, below=1),
  }
