"""The optimizers in projects of other styles, as their README shows."""

import pathlib
import re

import equinox as eqx
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optimizers

README = pathlib.Path(optimizers.__file__).with_name('README.md')


def programs() -> dict[str, str]:
  """The programs of the README's section, by the words before them."""
  section = README.read_text().split("## In other people's projects")[1]
  section = section.split('\n## ')[0]
  found = re.findall(r'\n([^\n]+):\n\n```python\n(.*?)```', section, re.DOTALL)
  return {re.split('[,;]', words)[0]: program for words, program in found}


@pytest.mark.parametrize('name', programs())
def test_the_readme_as_it_stands(name):
  namespace = {}
  exec(compile(programs()[name], name, 'exec'), namespace)
  losses = np.asarray(namespace['losses'])
  assert len(losses) == 20
  assert losses[-1] < 0.8 * losses[0]


def test_the_readme_has_a_program_of_every_style():
  assert len(programs()) == 4


class Layer(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.layers = nnx.List(nnx.Linear(4, 4, rngs=rngs) for _ in range(2))

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return x


def nnx_update(tx, **extra):
  """(parameters before, after) of one step of nnx.Optimizer, as dicts."""
  model = Layer()
  before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((3, 4))) ** 2))(model)
  optimizer.update(model, grads, **extra)
  after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  return before, after, nnx.to_pure_dict(grads)


def assert_close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b
  )


MATRIX = {'kernel': optimizers.MatrixAxes(0, 1), 'bias': None}


@pytest.mark.parametrize(
  'axes',
  [
    {'layers': [MATRIX, {'kernel': None, 'bias': None}]},
    {'layers': {0: MATRIX, 1: None}},
    lambda tree: {'layers': [MATRIX, None]},
  ],
  ids=['list', 'dict', 'function'],
)
def test_nnx_axes_are_nested_dicts(axes):
  """As for a plain dict of the same paths."""
  tx = optimizers.m3(0.1, axes=axes)
  before, after, grads = nnx_update(tx)
  updates, _ = tx.update(grads, tx.init(before), before)
  assert_close(after, optax.apply_updates(before, updates))


def test_nnx_inputs_are_nested_dicts():
  tx = optimizers.delta_gradient_descent(0.1)
  layer = {'kernel': jnp.eye(4), 'bias': None}
  before, after, grads = nnx_update(tx, inputs={'layers': {0: layer, 1: None}})
  updates, _ = tx.update(
    grads, tx.init(before), before, inputs={'layers': {0: layer, 1: None}}
  )
  assert_close(after, optax.apply_updates(before, updates))
  plain = before['layers'][1]['kernel'] - 0.1 * grads['layers'][1]['kernel']
  np.testing.assert_allclose(after['layers'][1]['kernel'], plain, rtol=1e-5)


def test_nnx_paths_end_at_the_parameter():
  tx = optimizers.multi_timescale(
    {'kernels': (1, optax.sgd(0.1)), 'biases': (2, optax.sgd(0.1))},
    optimizers.label_by_path(
      {'^layers/[01]/kernel$': 'kernels', 'bias$': 'biases'}
    ),
  )
  before, after, _ = nnx_update(tx)
  for old, new in zip(
    before['layers'].values(), after['layers'].values(), strict=True
  ):
    assert (old['kernel'] != new['kernel']).any()
    assert (old['bias'] == new['bias']).all()


def test_nnx_masks_and_labels_are_nested_dicts():
  mask = {'layers': {0: {'kernel': True, 'bias': False}, 1: False}}
  tx = optax.chain(
    optax.stateless_with_tree_map(lambda g, p: jnp.zeros_like(g)),
    optimizers.m3(0.1, weight_decay=0.5, weight_decay_mask=mask),
  )
  before, after, _ = nnx_update(tx)
  changed = jax.tree.map(lambda x, y: bool((x != y).any()), before, after)
  assert changed['layers'][0]['kernel']
  assert not changed['layers'][1]['kernel']
  labels = {'layers': {0: 'fast', 1: 'slow'}}
  tx = optimizers.multi_timescale(
    {'fast': (1, optax.sgd(0.1)), 'slow': (2, optax.sgd(0.1))}, labels
  )
  before, after, _ = nnx_update(tx)
  changed = jax.tree.map(lambda x, y: bool((x != y).any()), before, after)
  assert changed['layers'][0] == {'kernel': True, 'bias': True}
  assert changed['layers'][1] == {'kernel': False, 'bias': False}


class Field(eqx.Module):
  """A module with a leaf that is no array, and one that is called value."""

  value: jax.Array
  kernel: jax.Array
  activation: object = jax.nn.relu

  def __call__(self, x):
    return x


def test_none_is_no_leaf():
  module = eqx.filter(Field(jnp.ones((3, 2)), jnp.ones((2, 2))), eqx.is_array)
  assert module.activation is None
  matrix = optimizers.MatrixAxes(0, 1)
  for axes in (
    None,
    optimizers.MatrixAxes(0, 1),
    {
      'value': optimizers.MatrixAxes(0, 1),
      'kernel': optimizers.MatrixAxes(1, 0),
    },
    # A tree of a type that can be called is no function.
    jax.tree.map(lambda _: matrix, module),
  ):
    tx = optimizers.scale_by_m3(axes=axes)
    updates, _ = tx.update(module, tx.init(module))
    assert updates.activation is None
    np.testing.assert_allclose(
      updates.value, optimizers.newton_schulz(module.value), rtol=1e-5
    )


def test_a_field_called_value_keeps_its_name():
  module = eqx.filter(Field(jnp.ones((3, 2)), jnp.ones((2, 2))), eqx.is_array)
  labels = optimizers.label_by_path({'^value$': 1, '^kernel$': 2})(module)
  assert (labels.value, labels.kernel) == (1, 2)


def test_messages_name_the_paths():
  params = {'a': {'kernel': jnp.ones((3, 2))}, 'b': jnp.ones(2)}
  cases = [
    ({'a': {'kernel': None}}, "axes says nothing of 'b'; it has 'a/kernel'"),
    (
      {'a': None, 'b': None, 'c': optimizers.MatrixAxes(0, 1)},
      "axes names 'c', where no leaf is; the leaves are 'a/kernel', 'b'",
    ),
    ({'a': optimizers.MatrixAxes(0, 1), 'b': 1}, "axes has 1 for 'b'"),
    (
      {'a': optimizers.MatrixAxes(0, 3), 'b': None},
      "'a/kernel': .*names an axis that shape \\(3, 2\\) lacks",
    ),
  ]
  for axes, message in cases:
    with pytest.raises(ValueError, match=message):
      optimizers.m3(0.1, axes=axes).init(params)
  with pytest.raises(ValueError, match="The paths are 'a/kernel', 'b'"):
    optimizers.label_by_path({'kernel$': 1})(params)
  tx = optimizers.delta_gradient_descent(0.1)
  with pytest.raises(ValueError, match="inputs says nothing of 'b'"):
    tx.update(params, tx.init(params), params, inputs={'a': None})
