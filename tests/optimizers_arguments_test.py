"""Bounds of the arguments, of every rule and in a run's configuration."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope import optimizer
import optimizers
from optimizers.arguments import ALLOWED

ALIASES = (
  'preconditioned_momentum',
  'feature_momentum',
  'delta_momentum',
  'deep_momentum',
  'associative_momentum',
  'm3',
  'delta_gradient_descent',
  'generalized_gradient_descent',
)
# No number of a run, whatever its name.
NEVER = (float('nan'), float('inf'), -1.0, 'text', True, [1.0], 1e300, None)
UNBOUNDED = ('axes', 'mesh', 'others', 'weight_decay_mask')


def make(name, **arguments):
  return getattr(optimizers, name)(**({'learning_rate': 0.1} | arguments))


def numbers(name):
  """Arguments of an alias whose default is a number."""
  found = inspect.signature(getattr(optimizers, name)).parameters.values()
  return [
    x.name
    for x in found
    if isinstance(x.default, (int, float)) and not isinstance(x.default, bool)
  ]


@pytest.mark.parametrize('name', ALIASES)
def test_what_no_number_can_be(name):
  """Refused when the rule is made, by its name."""
  for argument in numbers(name):
    for value in NEVER:
      with pytest.raises(ValueError, match=f'^{argument}=.* must be '):
        make(name, **{argument: value})
  for value in (float('nan'), float('inf'), 'text', None, [1.0]):
    with pytest.raises(ValueError, match='^learning_rate=.* must be '):
      make(name, learning_rate=value)


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    # An average of which nothing is added is 0 for ever.
    ('m3', {'b1': 1.0}, 'b1=1.0 must be a number of at least 0 and below 1'),
    ('m3', {'b2': 1.0}, 'b2=1.0'),
    ('m3', {'b2': 1 - 1e-12}, 'b2=0.999999999999 '),  # 1 in float32
    ('m3', {'period': 10**5000}, 'period=an integer of .* bits'),
    ('m3', {'b3': 1}, 'b3=1 '),
    ('m3', {'b1': 0.0, 'sum_gradients': True}, 'b1=0.0 must be .* above 0'),
    ('m3', {'b2': 1.5, 'sum_gradients': True}, 'b2=1.5 must be .* at most 1'),
    ('m3', {'adam_b1': 1.0}, 'adam_b1=1.0'),
    ('m3', {'period': 1.5}, 'period=1.5 must be a whole number from 1'),
    ('m3', {'period': 2**31}, 'period=2147483648'),
    ('m3', {'ns_steps': 10**9}, 'ns_steps=1000000000'),
    ('m3', {'ns_coefficients': (1.0, 2.0)}, 'must be .a, b, c. or one triple'),
    ('m3', {'ns_coefficients': (1.0, 2.0, np.nan)}, 'ns_coefficients'),
    ('m3', {'mu_dtype': 'banana'}, "mu_dtype='banana' must be a floating type"),
    ('m3', {'nu_dtype': 'int32'}, 'nu_dtype'),
    ('m3', {'nesterov': 1}, 'nesterov=1 must be True or False'),
    (
      'm3',
      {'others': optax.sgd(0.1), 'adam_learning_rate': 0.1},
      'adam_learning_rate .* for the default',
    ),
    ('associative_momentum', {'b1': 1.0}, 'b1=1.0'),
    (
      'associative_momentum',
      {'b2': 1.1},
      'b2=1.1 must be .* from 0 to 1',
    ),
    (
      'delta_momentum',
      {'decay': 1.1},
      'decay=1.1 must be .* from 0 to 1',
    ),
    (
      'delta_momentum',
      {'precondition': 1},
      'must be a function or None or',
    ),
    ('feature_momentum', {'feature': 'tanh'}, "feature='tanh' must be a func"),
    ('deep_momentum', {'depth': 10**6}, 'depth=1000000 must be a whole number'),
    ('delta_gradient_descent', {'retention': 1.1}, 'retention=1.1'),
    ('delta_gradient_descent', {'normalize': 0}, 'normalize=0 must be True'),
  ],
)
def test_bounds(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    make(name, **arguments)


def test_numbers_of_other_libraries_are_numbers():
  tx = make('m3', b1=np.float32(0.5), period=np.int64(3), alpha=jnp.array(0.1))
  tx.init({'w': jnp.ones((2, 2))})
  with pytest.raises(ValueError, match='b1='):
    make('m3', b1=jnp.array(2.0))
  # What is traced has no value to check.
  jax.jit(lambda b1: make('m3', b1=b1).init({'w': jnp.ones((2, 2))}))(0.5)


def test_injected_hyperparameters_are_checked():
  tx = optax.inject_hyperparams(optimizers.m3, static_args=('ns_steps',))(
    0.1, b1=2.0
  )
  with pytest.raises(ValueError, match='b1=.*2.* must be a number'):
    tx.init({'w': jnp.ones((2, 2))})


def test_sums_may_keep_all():
  """`sum_gradients` with b1 = 1: the plain sum, whose update is not 0."""
  w = jnp.eye(3)
  tx = optimizers.scale_by_m3(1.0, 1.0, 1.0, sum_gradients=True)
  updates, _ = tx.update(w, tx.init(w))
  assert np.abs(updates).max() > 0.5
  tx = optimizers.scale_by_associative_momentum(b2=1.0)
  updates, _ = tx.update(w, tx.init(w))
  np.testing.assert_allclose(updates, w, rtol=1e-5)


@pytest.mark.parametrize('name', ALIASES)
def test_every_argument_has_bounds(name):
  found = inspect.signature(getattr(optimizers, name)).parameters
  assert {x for x in found if x not in UNBOUNDED} <= set(ALLOWED)


@pytest.mark.parametrize('name', optimizer.RULES)
def test_every_option_of_a_run_is_checked(name):
  """Refused before anything is compiled, in the words of the option."""
  for argument in optimizer.defaults(name):
    for wrong in ("'text'", '-1.0', '[1.0]', '1e999'):
      text = f'{argument}={wrong}'
      with pytest.raises(
        ValueError, match=f'optimizer.options.*: .*{argument}'
      ):
        optimizer.parse_options(name, text)
