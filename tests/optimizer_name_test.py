"""The optimizer of a run: chosen by name, levels at their own periods."""

import os
import subprocess
import sys

from conftest import ROOT
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hope import blocks, optimizer
from hope import config as config_lib
from hope.parallel.mesh import one_device
from hope.parts import find
from hope.training import moments
from hope.training import step as step_lib
import optimizers


def tiny(**optimizer_fields):
  config = config_lib.base_config()
  config.model.num_layers = 2
  config.model.width = 16
  config.model.cms.periods = (1, 2)
  for name in ('chunk_size', 'projection_chunk_size'):
    config.model.titans[name] = 8
  config.data.seq_len = 16
  config.data.batch_size = 4
  config.optimizer.warmup_steps = 0
  config.optimizer.update(optimizer_fields)
  return config


def one_batch(config):
  shape = (config.data.batch_size, config.data.seq_len + 1)
  x = np.random.default_rng(0).integers(16, size=shape, dtype=np.int32)
  weights = np.ones((shape[0], shape[1] - 1), np.float32)
  return {'inputs': x[:, :-1], 'targets': x[:, 1:], 'weights': weights}


def parameters():
  """Some of those of a model of one layer, with their paths."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  mixer = {
    'mix': {'kernel': draw(1, 4, 6)},
    'conv': {'kernel': draw(1, 3, 4)},
    'memory': {'up': draw(1, 2, 4, 4)},
  }
  cms = {'level_1': {'up': {'kernel': draw(1, 4, 4)}}}
  return {
    'blocks': {0: {'mixer': mixer, 'feedforward': cms}},
    'embed': {'embedding': draw(5, 4)},
  }


QUICK = ('m3', 'delta_gradient_descent')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(x, marks=[] if x in QUICK else [pytest.mark.slow])
    for x in optimizer.RULES
  ],
)
def test_a_run_can_choose_it(name):
  """The loss of one batch falls, and the state keeps its types."""
  raw = tiny(name=name, learning_rate=3e-3)
  raw.model.pattern = 'attention+cms'
  raw.train.accumulate = 2
  config = config_lib.resolve(raw, 16)
  graph, abstract = step_lib.abstract_state(config, one_device())
  state = step_lib.init_state(config, abstract)
  before = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  update = step_lib.train_step(graph, config, abstract)
  batch = one_batch(config)
  losses = []
  for _ in range(8):
    state, metrics = update(state, batch)
    losses.append(float(metrics['loss']))
  assert state.healthy
  assert losses[-1] < losses[0]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == before


def test_options_reach_the_rule():
  raw = tiny(name='m3', options='period=3, sum_gradients=True')
  config = config_lib.resolve(raw, 16)
  assert optimizer.parse_options('m3', config.optimizer.options) == {
    'period': 3,
    'sum_gradients': True,
  }
  updates, params = [], parameters()
  for options in ('', 'alpha=0.0'):
    config = config_lib.resolve(tiny(name='m3', options=options), 16)
    tx = optimizer.make_optimizer(config)
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(10):
      out, state = update(params, state, params)
    updates.append(out['blocks'][0]['mixer']['mix']['kernel'])
  assert np.abs(updates[0] - updates[1]).max() > 1e-4


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'name': 'adam'}, "optimizer.name='adam' is unknown; choose one of adamw"),
    ({'options': 'period=4'}, "names 'period', which adamw lacks; it has b1"),
    ({'options': 'b1'}, 'cannot be read'),
    ({'options': 'b1=x'}, 'cannot be read'),
    ({'name': 'm3', 'options': 'axes=1'}, "names 'axes', which m3 lacks"),
  ],
)
def test_errors(fields, message):
  with pytest.raises(ValueError, match=message):
    config_lib.resolve(tiny(**fields), 16)


def test_a_configuration_of_an_older_version_is_refused():
  raw = tiny()
  with raw.unlocked():
    del raw.optimizer.options
  with pytest.raises(ValueError, match='optimizer.options is missing'):
    config_lib.resolve(raw, 16)


def test_matrices_and_others():
  config = config_lib.resolve(tiny(name='muon', other_learning_rate=1e-4), 16)
  params = parameters()
  table = blocks.parameters(config)
  kinds = jax.tree_util.tree_map_with_path(
    lambda keys, _: optimizer.kind(
      config, find(table, '/'.join(str(k.key) for k in keys))
    ),
    params,
  )
  mixer = kinds['blocks'][0]['mixer']
  assert mixer['mix']['kernel'] == mixer['memory']['up'] == 'muon'
  assert mixer['conv']['kernel'] == kinds['embed']['embedding'] == 'adamw'
  tx = optimizer.make_optimizer(config)
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  # The first step of Adam is the learning rate; 0.1 of it decays the weights.
  embedding = params['embed']['embedding']
  np.testing.assert_allclose(
    updates['embed']['embedding'], -1e-4 * (1 + 0.1 * embedding), rtol=1e-3
  )


@pytest.mark.parametrize('layer', ['mix', 'qkv'])
@pytest.mark.parametrize('name', ['muon', 'm3'])
@pytest.mark.parametrize('split', ['head', 'projection', 'whole'])
def test_kernels_of_several_projections_are_split(name, split, layer):
  """The first step is Newton-Schulz of each part as the mixers cut it out."""
  heads, width = 2, 8
  options = [] if split == 'head' else [f"split='{split}'"]
  raw = tiny(name=name, options=','.join(options), weight_decay=0.0)
  raw.model.num_heads, raw.model.width = heads, width
  raw.model.pattern = {'mix': 'titans+cms', 'qkv': 'attention+cms'}[layer]
  config = config_lib.resolve(raw, 16)
  rng = np.random.default_rng(0)
  kernel = jnp.asarray(rng.standard_normal((1, width, 3 * width)), jnp.float32)
  params = {'blocks': {0: {'mixer': {layer: {'kernel': kernel}}}}}
  tx = optimizer.make_rule(config, name)
  updates, state = jax.jit(tx.update)(params, tx.init(params), params)
  update = -updates['blocks'][0]['mixer'][layer]['kernel']
  update /= config.optimizer.learning_rate
  assert {x.shape for x in jax.tree.leaves(state) if x.ndim > 1} == {
    kernel.shape
  }
  parts, expected = (x.reshape(width, heads, 3, -1) for x in (update, kernel))
  matrices = {
    'head': lambda x: x.transpose(1, 2, 0, 3),
    'projection': lambda x: x.transpose(2, 0, 1, 3).reshape(3, width, width),
    'whole': lambda x: x.reshape(1, width, 3 * width),
  }[split]
  np.testing.assert_allclose(
    matrices(parts),
    optimizers.newton_schulz(matrices(expected)),
    atol=1e-5,
  )


def test_normalized_updates_have_one_norm():
  for name in ('adamw', 'delta_momentum'):
    raw = tiny(name=name, normalize_updates=True, weight_decay=0.0)
    config, params = config_lib.resolve(raw, 16), parameters()
    tx = optimizer.make_optimizer(config)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(
      optax.tree.norm(updates), config.optimizer.learning_rate, rtol=1e-3
    )


def test_updates_that_need_inputs_are_normalized_too():
  raw = tiny(name='delta_gradient_descent', normalize_updates=True)
  config = config_lib.resolve(raw, 16)
  params = {'embed': {'embedding': jnp.ones((3, 2))}}
  tx = optimizer.make_rule(config, 'delta_gradient_descent')
  inputs = {'embed': {'embedding': jnp.eye(3)}}
  updates, _ = tx.update(params, tx.init(params), params, inputs=inputs)
  np.testing.assert_allclose(
    optax.tree.norm(updates), config.optimizer.learning_rate, rtol=1e-3
  )


def test_a_slow_level_takes_the_rate_of_the_step_that_it_moves_at():
  raw = tiny(learning_rate=1.0, warmup_steps=8, weight_decay=0.0)
  config = config_lib.resolve(raw, 16)
  params = {'embed': {'embedding': jnp.ones((3, 2))}}
  rates = []
  for period in (1, 4):
    tx = optimizers.every(period, optimizer.make_rule(config, 'adamw', period))
    state = tx.init(params)
    for _ in range(8):
      updates, state = tx.update(params, state, params)
    # Adam's update is the rate where the gradient is always the same.
    rates.append(float(-updates['embed']['embedding'][0, 0]))
  np.testing.assert_allclose(rates, 7 / 8, rtol=1e-3)


class Net(nnx.Module):
  """Two Linear layers, one of them read twice, and one that is no Linear."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(5, 4, rngs=rngs)
    self.first = nnx.Linear(4, 4, rngs=rngs)
    self.last = nnx.Linear(4, 3, use_bias=False, rngs=rngs)

  def __call__(self, tokens):
    x = self.first(jnp.tanh(self.first(self.embed(tokens))))
    return self.last(x)


def test_captured_moments_are_those_of_the_inputs():
  model = Net(nnx.Rngs(0))
  seen, batch = {}, jnp.array([[0, 1, 2], [3, 4, 0]])
  embedded = model.embed(batch)
  middle = jnp.tanh(model.first(embedded))
  seen['first'] = np.concatenate([embedded, middle]).reshape(-1, 4)
  seen['last'] = np.asarray(model.first(middle)).reshape(-1, 4)
  plain = nnx.to_pure_dict(nnx.grad(lambda m: jnp.sum(m(batch) ** 2))(model))
  graph, params = nnx.split(model)
  params = nnx.to_pure_dict(params)
  loss = lambda model: (jnp.sum(model(batch) ** 2), None)
  _, grads, sums = jax.jit(
    lambda params: moments.gradients(loss, graph, params, captured=True)
  )(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), grads, plain
  )
  found = moments.moments(grads, sums)
  for name, u in seen.items():
    np.testing.assert_allclose(
      found[name]['kernel'], u.T @ u / len(u), rtol=1e-5, atol=1e-7
    )
  assert found['embed']['embedding'] is None
  assert found['first']['bias'] is None


def test_levels_move_at_their_periods():
  config = config_lib.base_config()
  config.model.cms.periods = (1, 3)
  config.optimizer.warmup_steps = 0
  config = config_lib.resolve(config, 16)
  kernel = {'up': {'kernel': jnp.ones((2, 2))}}
  params = {
    'embed': {'embedding': jnp.ones((3, 2))},
    'blocks': {0: {'feedforward': {'level_0': kernel, 'level_1': kernel}}},
  }
  tx = optimizer.make_optimizer(config)
  state, moved = tx.init(params), {'embed': [], 'level_0': [], 'level_1': []}
  for t in range(7):
    updates, state = tx.update(params, state, params)
    levels = {'embed': updates['embed'], **updates['blocks'][0]['feedforward']}
    for name, tree in levels.items():
      if any(np.any(x) for x in jax.tree.leaves(tree)):
        moved[name].append(t)
  assert moved['embed'] == moved['level_0'] == list(range(7))
  assert moved['level_1'] == [2, 5]


_LOWER = """
import hashlib
import jax
import jax.numpy as jnp
from hope import config as config_lib
from hope.optimizer import make_optimizer

config = config_lib.base_config()
config.optimizer.name = 'm3'
tx = make_optimizer(config_lib.resolve(config, 257))
mixer = {'mix': {'kernel': jnp.ones((2, 8, 24))}}
params = {'blocks': {0: {'mixer': mixer}}, 'norm': {'scale': jnp.ones(8)}}
update = jax.jit(tx.update).lower(params, tx.init(params), params)
print(hashlib.sha256(update.as_text().encode()).hexdigest())
"""


def test_the_compiled_update_is_found_again():
  """Its text does not depend on the order of a set, as 0 and 3 give it."""
  texts = {
    subprocess.run(
      [sys.executable, '-c', _LOWER],
      env=os.environ | {'PYTHONHASHSEED': seed},
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ('0', '3')
  }
  assert len(texts) == 1


def test_eigendecompositions_on_several_cpu_devices_are_refused():
  config = tiny(
    name='associative_momentum', options="statistic='outer_product'"
  )
  config = config_lib.resolve(config, 16)
  mesh = jax.sharding.Mesh(np.repeat(one_device().devices, 2), ('data',))
  with pytest.raises(ValueError, match='JAX_NUM_CPU_DEVICES=1'):
    optimizer.make_optimizer(config, mesh)
  optimizer.make_optimizer(config, one_device())
