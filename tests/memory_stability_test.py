"""Which settings of the inner learning cannot expand what is stored.

By the delta rule, with D what the rule moves, u the features of a token, r what
its target differs from the base, and e = eta' |u|^2,

  D_t = alpha_t (D_{t-1} - e_t n_t (n_t D_{t-1})) + e_t n_t r_t / |u_t|,
  n_t = u_t / |u_t|.

So two states that see the same features and targets come no further apart for e
in [0, 2]: the matrix in front of D_{t-1} has eigenvalues alpha and
alpha (1 - e). And for e in [0, 1], by convexity,

  |D_t|^2 <= alpha_t^2 |D_{t-1}|^2 + e_t |r_t|^2 / |u_t|^2.

That is a statement about one layer: of a memory whose first layer does not
move, with slow targets and without momentum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope.memory import mlp, rule

ROUNDING = 1e-12


def keys_of(kind, rng, tokens, width):
  """Keys [tokens, width], some of them chosen to do harm."""
  keys = rng.normal(size=(tokens, width))
  if kind == 'equal':
    keys[:] = keys[0]
  elif kind == 'opposite':
    keys[:] = keys[0] * (-1.0) ** np.arange(tokens)[:, None]
  elif kind == 'nearly equal':
    keys = keys[0] + 1e-6 * keys
  elif kind == 'of all sizes':
    keys *= 10.0 ** rng.uniform(-4, 4, size=(tokens, 1))
  return keys


def memory_of(rng, hidden, width, output):
  """Two states of a memory and its base, as kernels of one group."""
  inputs = hidden or width
  up = rng.normal(size=(width, hidden)) if hidden else None
  zero = None if up is None else np.zeros_like(up)
  downs = [rng.normal(size=(1, inputs, output)) for _ in range(3)]
  base = mlp.Kernels(up, (downs[0],))
  return base, *(mlp.Kernels(zero, (d,)) for d in downs[1:])


def learn(base, state, keys, targets, *, eta, alpha, objective, relative, form):
  """The state after the tokens; the first layer does not move."""
  rates = mlp.Rates(
    up=jnp.zeros_like(eta),
    down=eta,
    decay=form.decays(alpha, None),
    erase=True,
    error_max=None,
    form=form,
    alpha=alpha,
    relative=relative,
  )
  now, _, _ = mlp.learn(
    base,
    state,
    state,
    None,
    k=keys,
    targets=(targets[None],),
    rates=rates,
    objective=objective,
    residual=False,
  )
  return jax.tree.map(np.asarray, now)


def after(*args, chunk, **fields):
  """The second layer [f, o] after `learn` in chunks of `chunk` tokens."""
  base, state, keys, targets = args
  for t in range(0, len(keys), chunk):
    part = slice(t, t + chunk)
    of_chunk = {
      name: x[part] if isinstance(x, np.ndarray) else x
      for name, x in fields.items()
    }
    form = rule.TOKEN if chunk == 1 else rule.XLA
    state = learn(base, state, keys[part], targets[part], **of_chunk, form=form)
  return state.down[0][0]


KEYS = ('random', 'equal', 'opposite', 'nearly equal', 'of all sizes')
# Steps up to the largest that are proven: eta of any size, or a part of 2.
STEPS = {'proximal': (False, 1e6), 'relative': (True, 2.0)}


@pytest.mark.parametrize('hidden', [0, 6])
@pytest.mark.parametrize('chunk', [1, 16])
@pytest.mark.parametrize('step', STEPS)
@pytest.mark.parametrize('kind', KEYS)
def test_the_delta_rule_brings_states_no_further_apart(
  x64, kind, step, chunk, hidden
):
  relative, largest = STEPS[step]
  rng, tokens = np.random.default_rng(0), 32
  base, *states = memory_of(rng, hidden, 4, 3)
  keys = keys_of(kind, rng, tokens, 4)
  targets = rng.normal(size=(tokens, 3))
  eta = largest * rng.uniform(size=(tokens, 1)) ** 4
  eta[::3] = largest
  alpha = rng.uniform(0.9, 1, size=(tokens, 1))
  ends = [
    after(
      base,
      state,
      keys,
      targets,
      eta=eta,
      alpha=alpha,
      objective='delta',
      relative=relative,
      chunk=chunk,
    )
    for state in states
  ]
  first = np.linalg.norm(states[0].down[0][0] - states[1].down[0][0])
  last = np.linalg.norm(ends[0] - ends[1])
  assert last <= np.prod(alpha) * first * (1 + ROUNDING)
  assert np.isfinite(ends).all()


@pytest.mark.parametrize('chunk', [1, 16])
@pytest.mark.parametrize('kind', KEYS[:-1])
def test_what_the_delta_rule_stores_is_bounded(x64, kind, chunk):
  rng, tokens = np.random.default_rng(0), 64
  alpha = rng.uniform(0.5, 1, size=(tokens, 1))
  base, state, _ = memory_of(rng, 0, 4, 3)
  zero = base._replace(down=(np.zeros_like(base.down[0]),))
  keys = keys_of(kind, rng, tokens, 4)
  targets = rng.normal(size=(tokens, 3))
  rate = rng.uniform(size=(tokens, 1))
  end = after(
    zero,
    state,
    keys,
    targets,
    eta=rate,
    alpha=alpha,
    objective='delta',
    relative=True,
    chunk=chunk,
  )
  added = rate * np.sum(targets**2, axis=1, keepdims=True)
  added /= np.sum(keys**2, axis=1, keepdims=True)
  bound = np.sum(state.down[0] ** 2)
  for t in range(tokens):
    bound = alpha[t] ** 2 * bound + added[t]
  assert np.sum(end**2) <= bound * (1 + ROUNDING)


@pytest.mark.parametrize(
  'objective, eta, apart',
  [
    # Frozen gradients overshoot: what is stored for a key changes its sign, and
    # for two keys that are near each other the sign of one undoes the other's.
    ('l2', 1e6, True),
    ('l2', 1 / 64, False),
  ],
)
def test_frozen_gradients_expand_beyond_their_bound(x64, objective, eta, apart):
  """Of a chunk of 64 tokens, of which half have one key and half another."""
  tokens, base = 64, mlp.Kernels(None, (np.zeros((1, 2, 2)),))
  states = [base, base._replace(down=(np.eye(2)[None],))]
  keys = np.repeat(np.array([[1.0, 0.0], [0.8, 0.6]]), tokens // 2, axis=0)
  ends = [
    after(
      base,
      state,
      keys,
      np.zeros((tokens, 2)),
      eta=np.full((tokens, 1), eta),
      alpha=np.ones((tokens, 1)),
      objective=objective,
      relative=False,
      chunk=tokens,
    )
    for state in states
  ]
  # The states differ by the identity, of norm 1.
  last = np.linalg.norm(ends[0] - ends[1], 2)
  assert (last > 1.1) == apart
  assert apart or last <= 1 + ROUNDING


@pytest.mark.parametrize('through_trace, grows', [(True, True), (False, False)])
def test_momentum_has_no_such_bound(x64, through_trace, grows):
  """Two keys by turns: what momentum feeds back is late (rule (B))."""
  keys = np.repeat(np.eye(2), (8, 80), axis=0)
  keys = np.concatenate([keys] * 6)
  tokens, beta = len(keys), 0.95
  eta = np.full(tokens, 1 - beta)
  kernel, *_ = jax.jit(
    lambda kernel: rule.token_update(
      kernel,
      jnp.zeros((2, 1)),
      keys,
      np.zeros((tokens, 1)),
      eta=eta / (1 + eta),
      alpha=np.ones(tokens),
      beta=np.full(tokens, beta),
      trace_erases=through_trace,
    )
  )(jnp.ones((2, 1)))
  assert (np.abs(kernel).max() > 100) == grows
