"""The matrix memory with a decay per channel against RWKV-7 in NumPy."""

import functools

import jax
import jax.numpy as jnp
from layer_cases import GRADIENT_BAR, assert_same, jit, relative
import numpy as np
import pytest
import reference

from hope.memory import diagonal, linear
from hope.memory.diagonal import Tokens

BAR = 1e-12
T, HEADS, I, O = 27, 2, 6, 5
# The largest log decay of RWKV-7, by the token and channel.
STRONGEST = -np.exp(-0.5)


def draw(tokens=T, *, heads=HEADS, i=I, o=O, strongest=STRONGEST, seed=0):
  """Tokens of [2, tokens, heads, ...], in float64."""
  rng = np.random.default_rng(seed)
  shape = (2, tokens, heads)
  queries, removed, keys = rng.normal(size=(3, *shape, i))
  removed /= np.linalg.norm(removed, axis=-1, keepdims=True)
  return Tokens(
    queries=queries,
    log_decay=strongest * rng.uniform(size=(*shape, i)),
    removed=removed,
    rate=rng.uniform(size=(*shape, i)),
    keys=keys,
    values=rng.normal(size=(*shape, o)),
  )


def expected(x, begin=0):
  """Reads, predictions and last kernels of `remember`, token by token."""
  b, t, n, i = x.keys.shape
  o = x.values.shape[-1]
  y, predictions = np.zeros((2, b, t - begin, n, o))
  kernels = np.zeros((b, n, i, o))
  for at in np.ndindex(b, n):
    one = Tokens(*(a[at[0], begin:, at[1]] for a in x))
    states = reference.rwkv7(
      np.zeros((o, i)),
      np.exp(one.log_decay),
      one.removed,
      one.rate,
      one.keys,
      one.values,
    )
    here = (at[0], slice(None), at[1])
    y[here] = np.einsum('toi,ti->to', states[1:], one.queries)
    predictions[here] = np.einsum('toi,ti->to', states[:-1], one.removed)
    kernels[at] = states[-1].T
  return y, predictions, kernels


def fresh(x, dtype=jnp.float64):
  b, _, n, i = x.keys.shape
  return linear.init_state(b, n, i, x.values.shape[-1], dtype)


@functools.partial(jit, static_argnames=('chunk', 'predicts'))
def remember(state, position, x, starts=None, chunk=8, predicts=False):
  return diagonal.remember(
    state, position, x, starts=starts, chunk=chunk, predicts=predicts
  )


@pytest.mark.parametrize('chunk', [1, 8, 24, 64])
def test_is_the_published_recurrence(x64, chunk):
  x = draw()
  y, state, _, predictions = remember(
    fresh(x), None, x, chunk=chunk, predicts=True
  )
  assert_same((y, predictions, state.now), expected(x), BAR)


@pytest.mark.parametrize('tokens', [1, 2, 8, 9, 16, 23, 64])
@pytest.mark.parametrize('strongest', [STRONGEST, -30.0, 0.0])
def test_a_chunk_is_token_by_token(x64, tokens, strongest):
  """Also where next to nothing is left after two tokens, or all is kept."""
  x = draw(tokens, strongest=strongest)
  x = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 2), x)
  kernel = np.random.default_rng(1).normal(size=(2, HEADS, I, O))
  slow = jit(diagonal.token_update)(kernel, x)
  assert_same(jit(diagonal.chunk_update)(kernel, x), slow, BAR)


@pytest.mark.parametrize('strongest', [STRONGEST, -200.0])
def test_gradients_of_a_chunk_are_those_of_tokens(x64, strongest):
  x = draw(24, strongest=strongest)
  x = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 2), x)
  kernel = np.random.default_rng(1).normal(size=(2, HEADS, I, O))

  def gradients(form):
    def total(kernel, x):
      return sum(jnp.sum(jnp.sin(y)) for y in form(kernel, x))

    return jit(jax.grad(total, (0, 1)))(kernel, x)

  found = gradients(diagonal.chunk_update)
  assert_same(found, gradients(diagonal.token_update), 1e-10)


@pytest.mark.parametrize('name', Tokens._fields)
def test_gradients_are_finite_differences(x64, name):
  x = draw(19)
  way = np.random.default_rng(2).normal(size=getattr(x, name).shape)

  def total(step):
    moved = x._replace(**{name: getattr(x, name) + step * way})
    y, state, *_ = diagonal.remember(fresh(x), None, moved, chunk=8)
    return jnp.sum(jnp.sin(y)) + jnp.sum(state.now)

  run = jit(jax.value_and_grad(total))
  _, gradient = run(0.0)
  difference = (run(1e-5)[0] - run(-1e-5)[0]) / 2e-5
  assert abs(gradient - difference) <= GRADIENT_BAR * abs(difference)


@pytest.mark.parametrize('sizes', [(1,) * T, (5, 1, 21), (8, 8, 11)])
def test_pieces_are_the_whole(x64, sizes):
  x = draw()
  state, position, ys, done = fresh(x), None, [], 0
  for size in sizes:
    here = jax.tree.map(lambda a, d=done, s=size: a[:, d : d + s], x)
    y, state, position, _ = remember(state, position, here)
    ys.append(y)
    done += size
  y, _, kernels = expected(x)
  assert_same((jnp.concatenate(ys, axis=1), state.now), (y, kernels), BAR)


def test_documents_in_a_row(x64):
  """The second document of each row starts at token 16."""
  x = draw()
  starts = np.zeros((2, T), bool)
  starts[:, [0, 16]] = True
  y, state, *_ = remember(fresh(x), None, x, starts)
  second, _, kernels = expected(x, 16)
  assert_same((y[:, 16:], state.now), (second, kernels), BAR)
  assert_same(y[:, :16], expected(x)[0][:, :16], BAR)


@pytest.mark.parametrize('kind', ['strongest', 'mixed', 'alike'])
def test_4096_tokens_in_float32(kind):
  """All channels at the strongest decay, or half of them kept; one key."""
  x = draw(4096, heads=1, i=8, o=4)
  x = Tokens(*(a[:1] for a in x))
  decay = np.full(x.log_decay.shape, STRONGEST)
  if kind == 'mixed':
    decay[..., ::2] = -1e-4
  if kind == 'alike':
    decay[:] = -1e-3
    x = x._replace(
      removed=np.broadcast_to(x.removed[:, :1], x.removed.shape),
      rate=np.ones_like(x.rate),
    )
  x = x._replace(log_decay=decay)
  x = Tokens(*(np.asarray(a, np.float32) for a in x))
  y, state, *_ = remember(fresh(x, jnp.float32), None, x, chunk=64)
  exact = Tokens(*(np.asarray(a, np.float64) for a in x))
  reads, _, kernels = expected(exact)
  assert relative(y, reads) <= 1e-5
  assert relative(state.now, kernels) <= 1e-5


def test_gradients_at_the_strongest_decay_in_float32(x64):
  """The decays' own too: no quotient overflows, and no gradient cancels."""
  x = draw(128, heads=1, i=8, o=4)
  x = x._replace(log_decay=np.full(x.log_decay.shape, STRONGEST))

  def total(x):
    y, *_ = diagonal.remember(fresh(x, x.keys.dtype), None, x)
    return jnp.sum(jnp.sin(y))

  gradients = jit(jax.grad(total))
  exact = gradients(x)
  found = gradients(jax.tree.map(lambda a: np.asarray(a, np.float32), x))
  assert_same(found, exact, 1e-4)
