"""The matrix memory against published recurrences, whole and in pieces."""

import functools

import jax
import jax.numpy as jnp
from layer_cases import assert_same
import numpy as np
import pytest
import reference

from hope.memory import linear

BAR = 1e-12
T = 27
FEEDBACK = np.array([0.3, 0.9])
GAMMA = np.array([0.9, 0.97])  # of two heads

# Of a sequence of one head, the published states [t + 1, o, i].
PUBLISHED = {
  'linear_attention': lambda s, k, v, **_: reference.linear_attention(s, k, v),
  'retention': lambda s, k, v, gamma, **_: reference.retention(s, k, v, gamma),
  'delta_net': lambda s, k, v, beta, **_: reference.delta_net(s, k, v, beta),
  'gated_delta_net': lambda s, k, v, alpha, beta, **_: (
    reference.gated_delta_net(s, k, v, alpha, beta)
  ),
  'comba': lambda s, k, v, alpha, beta, feedback, **_: reference.comba(
    s, k, v, alpha, beta, feedback
  ),
}


def draw(tokens=T, seed=0):
  """q, k, v, alpha, beta [2, tokens, 2 heads, ...]; keys have norm 1."""
  rng = np.random.default_rng(seed)
  q, k = rng.normal(size=(2, 2, tokens, 2, 6))
  k /= np.linalg.norm(k, axis=-1, keepdims=True)
  alpha = rng.uniform(0.7, 1.0, (2, tokens, 2, 1))
  # Beyond 1 an eigenvalue of the transition is negative.
  beta = rng.uniform(0.0, 2.0, (2, tokens, 2, 1))
  v = rng.normal(size=(2, tokens, 2, 5))
  return {'q': q, 'k': k, 'v': v, 'alpha': alpha, 'beta': beta}


def arguments(name, data):
  """Those of `linear.remember` that make it the published recurrence."""
  shared = {x: data[x] for x in ('q', 'k', 'v')}
  rates = {
    'linear_attention': {},
    'retention': {'alpha': GAMMA[:, None]},
    'delta_net': {'beta': data['beta']},
    'gated_delta_net': {'alpha': data['alpha'], 'beta': data['beta']},
    'comba': {
      'alpha': data['alpha'],
      'beta': data['beta'],
      'feedback': FEEDBACK[:, None],
    },
  }
  return shared | rates[name], 'delta' in name or name == 'comba'


@functools.partial(jax.jit, static_argnames=('erase', 'chunk', 'kernel'))
def remember(state, position, inputs, starts=None, **options):
  found = linear.remember(state, position, **inputs, starts=starts, **options)
  assert found[-1] is None
  return found[:-1]


def fresh():
  return linear.init_state(2, 2, 6, 5, jnp.float64)


def expected(name, data, begin=0):
  """Outputs [2, t, 2, o] and last kernels [2, 2, i, o], token by token."""
  y, kernels = np.zeros_like(data['v']), np.zeros((2, 2, 6, 5))
  for b, n in np.ndindex(2, 2):
    one = {x: data[x][b, begin:, n] for x in data}
    states = PUBLISHED[name](
      np.zeros((5, 6)),
      one['k'],
      one['v'],
      alpha=one['alpha'][:, 0],
      beta=one['beta'][:, 0],
      gamma=GAMMA[n],
      feedback=FEEDBACK[n],
    )
    y[b, begin:, n] = np.einsum('toi,ti->to', states[1:], one['q'])
    kernels[b, n] = states[-1].T
  return y[:, begin:], kernels


@pytest.mark.parametrize(
  'name, chunk',
  [*((name, 8) for name in PUBLISHED), ('gated_delta_net', 1)]
  + [pytest.param(n, 64, marks=pytest.mark.slow) for n in PUBLISHED],
)
def test_is_the_published_recurrence(x64, name, chunk):
  inputs, erase = arguments(name, draw())
  y, state, _ = remember(fresh(), None, inputs, erase=erase, chunk=chunk)
  assert state.start is None
  assert_same((y, state.now), expected(name, draw()), BAR)


@pytest.mark.parametrize('name', PUBLISHED)
def test_predictions_are_reads_of_the_key_before_its_write(x64, name):
  inputs, erase = arguments(name, draw())
  plain = remember(fresh(), None, inputs, erase=erase, chunk=8)
  *found, predictions = jax.jit(
    lambda inputs: linear.remember(
      fresh(), None, **inputs, erase=erase, chunk=8, predicts=True
    )
  )(inputs)
  assert_same(found, list(plain), BAR)
  # Moved by a token, keys as queries read after a write what they predict.
  moved = jax.tree.map(np.copy, draw())
  moved['q'][:, :-1] = moved['k'][:, 1:]
  before, _ = expected(name, moved)
  assert_same(predictions[:, 1:], before[:, :-1], BAR)
  assert not predictions[:, 0].any()


@pytest.mark.parametrize('sizes', [(1,) * T, (5, 1, 21), (8, 8, 11)])
@pytest.mark.parametrize('name', ['retention', 'gated_delta_net'])
def test_pieces_are_the_whole(x64, name, sizes):
  inputs, erase = arguments(name, draw())
  per_token = lambda x: x.ndim == 4
  state, position, ys, done = fresh(), None, [], 0
  for size in sizes:
    here = {
      key: x[:, done : done + size] if per_token(x) else x
      for key, x in inputs.items()
    }
    y, state, position = remember(state, position, here, erase=erase, chunk=8)
    ys.append(y)
    done += size
  y = jnp.concatenate(ys, axis=1)
  assert_same((y, state.now), expected(name, draw()), BAR)


@pytest.mark.parametrize('kernel', ['xla', 'pallas'])
def test_documents_in_a_row(x64, kernel):
  """The second document of each row starts at token 16."""
  inputs, erase = arguments('gated_delta_net', draw())
  starts = np.zeros((2, T), bool)
  starts[:, [0, 16]] = True
  y, state, _ = remember(
    fresh(), None, inputs, starts, erase=erase, chunk=8, kernel=kernel
  )
  assert_same(
    (y[:, 16:], state.now), expected('gated_delta_net', draw(), 16), BAR
  )
  first = expected('gated_delta_net', draw())[0][:, :16]
  assert_same(y[:, :16], first, BAR)


def test_a_stream_starts_a_document_at_any_piece(x64):
  inputs, erase = arguments('gated_delta_net', draw())
  state, position, ys = fresh(), None, []
  for here in (slice(0, 5), slice(5, T)):
    starts = np.zeros((2, T), bool)[:, here]
    starts[:, 0] = True
    piece = {key: x[:, here] for key, x in inputs.items()}
    y, state, position = remember(
      state, position, piece, starts, erase=erase, chunk=8
    )
    ys.append(y)
  want = expected('gated_delta_net', draw(), 5)
  assert_same((ys[1], state.now), want, BAR)


@pytest.mark.parametrize(
  'name',
  [
    'gated_delta_net',
    *(
      pytest.param(n, marks=pytest.mark.slow)
      for n in ('retention', 'delta_net', 'comba')
    ),
  ],
)
def test_pallas_is_xla(x64, name):
  """Gradients too, over whole chunks and the tokens after them."""
  inputs, erase = arguments(name, draw(tokens=19))

  def total(kernel):
    def of(inputs):
      y, state, _ = remember(
        fresh(), None, inputs, erase=erase, chunk=8, kernel=kernel
      )
      waves = jnp.sin(jnp.arange(y.size)).reshape(y.shape)
      return jnp.sum(waves * y) + jnp.sum(state.now), (y, state.now)

    return jax.jit(jax.grad(of, has_aux=True))(inputs)

  assert_same(total('pallas'), total('xla'), 1e-10)


def test_alike_keys_in_float32():
  """One key for all tokens, written in full: the state is the last value."""
  k = jnp.broadcast_to(jnp.eye(6)[0], (1, 256, 1, 6))
  v = jax.random.normal(jax.random.key(0), (1, 256, 1, 5))
  state = linear.init_state(1, 1, 6, 5)
  y, state, *_ = linear.remember(state, None, k, k, v, erase=True)
  np.testing.assert_allclose(y, v, atol=1e-5)
  np.testing.assert_allclose(state.now[0, 0, 0], v[0, -1, 0], atol=1e-5)
