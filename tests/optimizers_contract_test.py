"""What optax promises of a transformation, for every optimizer."""

from conftest import run_program
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
from optimizer_cases import CASES, Case, gradients, run
import pytest

every = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def tree(dtype=jnp.float32):
  """Leaves of every rank."""
  shapes = {'matrix': (4, 3), 'stack': (2, 3, 4), 'vector': (5,), 'scalar': ()}
  rng = np.random.default_rng(7)
  return {
    k: jnp.asarray(rng.standard_normal(s), dtype) for k, s in shapes.items()
  }


def types(pytree):
  return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), pytree)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      np.asarray(x, np.float32), np.asarray(y, np.float32), rtol, atol
    ),
    a,
    b,
  )


@every
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shapes_and_types_are_stable(case: Case, dtype):
  params = tree(dtype)
  tx = case.make(0.1)
  out, state = run(tx, params, gradients(params, 3), **case.extra(params))
  assert types(out[-1]) == types(params)
  assert types(state) == types(tx.init(params))
  assert types(jax.eval_shape(tx.init, params)) == types(state)
  for x in jax.tree.leaves((out, state)):
    assert np.isfinite(np.asarray(x, np.float32)).all()


@pytest.mark.parametrize('name', [k for k, v in CASES.items() if v.memory])
def test_state_is_as_large_as_its_docstring_says(name):
  case = CASES[name]
  assert case.memory is not None
  state = jax.eval_shape(case.make(0.1).init, {'w': jnp.zeros((20, 30))})
  sizes = [x.size for x in jax.tree.leaves(state) if x.ndim]
  assert sum(sizes) == case.memory(20, 30)


@every
def test_scan_and_plain_calls_agree_with_jit(case: Case):
  params = tree()
  sequence, extra, tx = gradients(params, 4), case.extra(params), case.make(0.1)
  expected, _ = run(tx, params, sequence, **extra)

  def step(state, g):
    updates, state = tx.update(g, state, params, **extra)
    return state, updates

  stacked = jax.tree.map(lambda *x: jnp.stack(x), *sequence)
  _, out = jax.jit(lambda s, g: lax.scan(step, s, g))(tx.init(params), stacked)
  state = tx.init(params)
  for j, g in enumerate(sequence):
    state, updates = step(state, g)
    assert_close(updates, expected[j])
    assert_close(jax.tree.map(lambda x, j=j: x[j], out), expected[j])


@every
def test_vmap(case: Case):
  params, tx = tree(), case.make(0.1)
  both = jax.tree.map(lambda x: jnp.stack([x, 2 * x + 1]), params)
  extra = case.extra(params)
  step = jax.jit(lambda p: tx.update(p, tx.init(p), p, **extra)[0])
  out = jax.jit(jax.vmap(step))(both)
  for j in range(2):
    one = jax.tree.map(lambda x, j=j: x[j], both)
    assert_close(jax.tree.map(lambda x, j=j: x[j], out), step(one))


@every
def test_schedules_and_injected_learning_rates(case: Case):
  params = tree()
  sequence, extra = gradients(params, 3), case.extra(params)
  expected, _ = run(case.make(0.1), params, sequence, **extra)
  scheduled, _ = run(case.make(lambda _: 0.1), params, sequence, **extra)
  assert_close(scheduled, expected)
  if case is CASES['multi_timescale']:
    return  # Its factory here is the test's own.
  tx = injected(case)(learning_rate=0.1)
  _, state = run(tx, params, sequence, **extra)
  state.hyperparams['learning_rate'] = jnp.float32(0)
  updates, _ = tx.update(sequence[0], state, params, **extra)
  assert all(not np.asarray(x).any() for x in jax.tree.leaves(updates))


def injected(case: Case):
  return optax.inject_hyperparams(case.make, static_args=case.static)


@pytest.mark.parametrize('weight_decay', [None, 0.3])
@pytest.mark.parametrize('name', [k for k in CASES if k != 'multi_timescale'])
def test_injection_changes_neither_updates_nor_state(name, weight_decay):
  case, params = CASES[name], tree()
  options = {'learning_rate': 0.1}
  if weight_decay is not None:
    if not case.decays:
      return
    options['weight_decay'] = weight_decay
  sequence, extra = gradients(params, 2), case.extra(params)
  expected, state = run(case.make(**options), params, sequence, **extra)
  out, other = run(injected(case)(**options), params, sequence, **extra)
  assert_close(out, expected)
  assert jax.tree.structure(other.inner_state) == jax.tree.structure(state)
  assert_close(other.inner_state, state)


@every
def test_unexpected_arguments_are_passed_over(case: Case):
  """And a second step of another value is not compiled again."""
  params, tx = tree(), case.make(0.1)
  traced = []

  @jax.jit
  def step(params, state, value):
    traced.append(1)
    updates, state = tx.update(
      params, state, params, of_another_rule=value, **case.extra(params)
    )
    return optax.apply_updates(params, updates), state

  params, state = step(params, tx.init(params), 1.0)
  step(params, state, 2.0)
  assert len(traced) == 1


@every
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64'])
def test_the_state_is_stable_in_branches(case: Case, dtype, x64):
  """Old and new state are of one type, which `lax.cond` insists on."""
  params = {'w': jnp.ones((3, 2), dtype), 'b': jnp.ones((3,), dtype)}
  tx, extra = case.make(0.1), case.extra(params)

  def step(params, state, flag):
    updates, state = lax.cond(
      flag,
      lambda: tx.update(params, state, params, **extra),
      lambda: (params, state),
    )
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  after = jax.eval_shape(step, params, state, True)
  assert types(after) == types((params, state))


@every
def test_multi_steps(case: Case):
  params = tree()
  sequence, extra = gradients(params, 4), case.extra(params)
  tx = optax.MultiSteps(case.make(0.1), 2)
  out, _ = run(tx, params, sequence, **extra)
  means = [
    jax.tree.map(lambda x, y: (x + y) / 2, *sequence[j : j + 2]) for j in (0, 2)
  ]
  expected, _ = run(case.make(0.1), params, means, **extra)
  assert_close([out[1], out[3]], expected)
  assert all(not np.asarray(x).any() for x in jax.tree.leaves(out[0]))


@every
def test_partition_and_masks(case: Case):
  params = tree()
  sequence, extra = gradients(params, 2), case.extra(params)
  expected, _ = run(case.make(0.1), params, sequence, **extra)
  mine = {'matrix': True, 'stack': False, 'vector': True, 'scalar': False}
  labels = {k: 'mine' if v else 'other' for k, v in mine.items()}
  split, _ = run(
    optax.partition({'mine': case.make(0.1), 'other': optax.sgd(1.0)}, labels),
    params,
    sequence,
    **extra,
  )
  masked, _ = run(optax.masked(case.make(0.1), mine), params, sequence, **extra)
  for j, g in enumerate(sequence):
    for name, is_mine in mine.items():
      wanted = expected[j][name]
      assert_close(split[j][name], wanted if is_mine else -g[name])
      assert_close(masked[j][name], wanted if is_mine else g[name])


@every
def test_empty_tree(case: Case):
  tx = case.make(0.1)
  extra = {'inputs': {}} if case.inputs else {}
  updates, _ = tx.update({}, tx.init({}), {}, **extra)
  assert updates == {}


@every
def test_without_params(case: Case):
  params, tx = tree(), case.make(0.1)
  extra = case.extra(params)
  if case.inputs:
    with pytest.raises(ValueError, match='needs params'):
      tx.update(params, tx.init(params), **extra)
    return
  assert_close(
    tx.update(params, tx.init(params))[0],
    tx.update(params, tx.init(params), params)[0],
  )


@every
def test_map_params_finds_the_state_of_parameters(case: Case):
  params, tx = tree(), case.make(0.1)
  state = tx.init(params)
  marked = optax.tree.map_params(
    tx, lambda x: 'param', state, transform_non_params=lambda x: 'other'
  )
  for keys, x in jax.tree_util.tree_leaves_with_path(marked):
    of_param = any(f"'{name}'" in jax.tree_util.keystr(keys) for name in params)
    assert x == ('param' if of_param else 'other'), keys


def quadratic(curvature):
  return lambda tree: sum(
    0.5 * jnp.sum(curvature(x) * jnp.square(x)) for x in jax.tree.leaves(tree)
  )


@every
@pytest.mark.parametrize('kind', ['square', 'ill-conditioned'])
def test_descent(case: Case, kind):
  """|w|^2 / 2, and curvatures from 1e-3 to 1 along the last axis."""
  signs, starts = jax.tree.map(jnp.sign, tree()), jnp.array([0.01, 1.0, 100.0])
  curvature = lambda x: 1.0
  if kind == 'ill-conditioned':
    curvature = lambda x: jnp.logspace(-3, 0, x.shape[-1] if x.ndim else 1)
  loss, tx = quadratic(curvature), case.make(1e-3)
  extra = case.extra(signs)

  def step(carry, _):
    params, state = carry
    value, g = jax.value_and_grad(loss)(params)
    updates, state = tx.update(g, state, params, **extra)
    return (optax.apply_updates(params, updates), state), value

  def descend(start):
    params = jax.tree.map(lambda x: start * x, signs)
    return lax.scan(step, (params, tx.init(params)), None, 1000)

  (after, state), values = jax.jit(jax.vmap(descend))(starts)
  assert np.isfinite(values).all()
  for x in jax.tree.leaves((after, state)):
    assert np.isfinite(x).all()
  for name, x in after.items():
    for j, start in enumerate(starts):
      assert loss(x[j]) < loss(start * signs[name]), (name, start)


# As optax's checks of contributed optimizers: the learning rates that solve.
SOLVES = {
  'preconditioned_momentum': 0.02,
  'feature_momentum': 0.05,
  'delta_momentum': 0.02,
  'nonlinear_output': 0.02,
  'deep_momentum': 0.1,
  'associative_momentum': 0.1,
  'outer_products': 0.1,
  'm3': 0.1,
  'm3_with_the_helpers_of_muon': 0.1,
  'delta_gradient_descent': 0.3,
  'generalized_gradient_descent': 0.3,
  'multi_timescale': 0.1,
}


def squares(final):
  return lambda w: sum(jnp.sum(jnp.square(w[k] - x)) for k, x in final.items())


TARGETS = {
  'parabola': {'w': jnp.array([1.0, -1.0, 1.0])},
  'matrix': {'w': jnp.array([[3.0, -2.0], [1.0, 4.0]])},
  'mixed': {
    'v': jnp.array([1.0, -1.0, 2.0]),
    'w': jnp.array([[1.0, 0.0], [-1.0, 1.0]]),
  },
  'rosenbrock': {'w': jnp.ones(2)},
}


@pytest.mark.parametrize('name', SOLVES)
@pytest.mark.parametrize(
  'target',
  [
    pytest.param(x, marks=[] if x == 'mixed' else [pytest.mark.slow])
    for x in TARGETS
  ],
)
def test_solves(name, target):
  case, final = CASES[name], TARGETS[target]
  start = jax.tree.map(jnp.zeros_like, final)
  loss, rate, steps = squares(final), SOLVES[name], 2_000
  if target == 'parabola':
    start = {'w': jnp.array([-1.0, 10.0, 1.0])}
  if target == 'rosenbrock':
    loss = lambda tree: (
      (1 - tree['w'][0]) ** 2 + 100 * (tree['w'][1] - tree['w'][0] ** 2) ** 2
    )
    rate, steps = rate / 100, 100_000
  if name == 'multi_timescale':
    if target != 'mixed':
      return  # It needs leaves of two kinds.
    steps = 8_000  # Its slow level has a rate of its own.
  tx = case.make(optax.cosine_decay_schedule(rate, steps))
  # Without inputs: with some, what it minimises is another function.
  extra = {'inputs': {k: None for k in start}} if case.inputs else {}

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params), state, params, **extra)
    return (optax.apply_updates(params, updates), state), None

  (after, _), _ = jax.jit(
    lambda p: lax.scan(step, (p, tx.init(p)), None, steps)
  )(start)
  for key, x in final.items():
    np.testing.assert_allclose(after[key], x, atol=3e-2)


@every
def test_init_of_shapes_alone(case: Case):
  """`init` of ShapeDtypeStruct, as of arrays."""
  params = tree()
  shapes = jax.eval_shape(lambda: params)
  assert types(case.make(0.1).init(shapes)) == types(
    case.make(0.1).init(params)
  )


MESH_PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
sys.path.insert(0, 'tests')
from optimizer_cases import CASES, gradients, run
explicit = sys.argv[1] == 'explicit'
kind = AxisType.Explicit if explicit else AxisType.Auto
mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(kind,) * 2)
params = {'matrix': jnp.ones((8, 6)), 'stack': jnp.ones((2, 4, 8)),
          'vector': jnp.ones(8), 'scalar': jnp.ones(())}
specs = {'matrix': P('data', 'fsdp'), 'stack': P(None, 'fsdp', 'data'),
         'vector': P('data'), 'scalar': P()}
sequence = gradients(params, 3)
errors, unlike = {}, {}
typed = lambda tree: [str(jax.typeof(x)) for x in jax.tree.leaves(tree)]
for name, case in CASES.items():
  alone, state = run(case.make(0.1), params, sequence, **case.extra(params))
  with jax.set_mesh(mesh):
    put = lambda tree: {
      k: jax.device_put(v, NamedSharding(mesh, specs[k]))
      for k, v in tree.items()
    }
    shared, other = run(
      case.make(0.1), put(params), [put(g) for g in sequence],
      **case.extra(params))
    # The types that a state starts with, shardings included, and those that it
    # has after a step; both in jit and out of it. In float16, as of optax.
    for dtype in (jnp.float32, jnp.float16) if explicit else ():
      p = jax.tree.map(lambda x: x.astype(dtype), put(params))
      tx, more = case.make(0.1), case.extra(p)
      starts = jax.make_jaxpr(tx.init)(p).out_avals
      after = jax.make_jaxpr(
        lambda g, s: tx.update(g, s, p, **more)[1])(p, tx.init(p)).out_avals
      if not typed(tx.init(p)) == [*map(str, starts)] == [*map(str, after)]:
        unlike[name] = [typed(tx.init(p)), [*map(str, starts)],
                        [*map(str, after)]]
    if name == 'associative_momentum':
      p = put(params)
      assert typed(case.make(0.1).init(p)[0].root) == typed(p)
  largest = lambda a, b: float(np.abs(np.asarray(a) - b).max(initial=0))
  difference = jax.tree.map(largest, (alone, state), (shared, other))
  errors[name] = max(jax.tree.leaves(difference))
print(json.dumps([errors, unlike]))
"""


@pytest.mark.parametrize('kind', ['auto', 'explicit'])
def test_sharded_state_is_the_unsharded_one(kind):
  errors, unlike = run_program(MESH_PROGRAM, kind, devices=8)
  assert not unlike
  assert set(errors) == set(CASES)
  assert max(errors.values()) < 2e-5, errors
