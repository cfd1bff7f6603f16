"""Self-referential Titans: against the oracle, in pieces, causal and alive.

The bars are never widened: 1e-10 against the oracle and 1e-6 against finite
differences in float64, 1e-4 for pieces of a stream in float32, and exact zeros
for what must not be seen. An error is the largest absolute difference over the
largest absolute expected value.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import reference

from hope import config as config_lib
from hope.layers.attention import CausalAttention
from hope.layers.cms import ContinuumMemory
from hope.layers.titans import SelfReferentialTitans, TitansOptions
from hope.memory import mlp, stream
from hope.model import Hope

BAR = 1e-10
GRADIENT_BAR = 1e-6
STREAM_BAR = 1e-4
MEMORIES = ('k', 'v', 'eta', 'alpha', 'memory')


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def relative(actual, expected):
  actual, expected = np.asarray(actual), np.asarray(expected)
  assert actual.shape == expected.shape
  assert np.isfinite(actual).all()
  scale = np.abs(expected).max()
  return np.abs(actual - expected).max() / (scale or 1.0)


def assert_same(actual, expected, bar):
  """Every leaf within `bar`; integers and statics exactly."""
  actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected, strict=True):
    if jnp.issubdtype(e.dtype, jnp.integer):
      np.testing.assert_array_equal(a, e)
    else:
      assert relative(a, e) <= bar


def randomize(module, dtype, seed=1):
  """Casts a module and moves its constants, so that each of them shows."""
  rng = np.random.default_rng(seed)

  def move(x):
    noise = 0.3 * rng.standard_normal(x.shape)
    return jnp.asarray(np.asarray(x) + noise, dtype)

  nnx.update(module, jax.tree.map(move, nnx.state(module)))
  return module


def titans(width=8, heads=2, dtype=jnp.float32, seed=0, **options):
  layer = SelfReferentialTitans(
    width, heads, TitansOptions(**options), dtype=dtype, rngs=nnx.Rngs(seed)
  )
  return randomize(layer, dtype)


def inputs(batch, tokens, width, dtype=np.float32, seed=2):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal((batch, tokens, width)), dtype)


# Nearly all of the time is compilation.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def call(module, jit=jit):
  """The module as one jitted function of (x, state)."""
  graph, params = nnx.split(module)
  run = jit(lambda params, x, state: nnx.merge(graph, params)(x, state))
  return functools.partial(run, params)


# ------------------------------------------------------------------ the oracle


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def oracle(layer, x):
  """The layer at chunks of one, from its parameters: (y, final kernels)."""
  get = lambda p: np.asarray(p[...], np.float64)
  options, n = layer.options, layer.num_heads
  x = np.asarray(x, np.float64)
  batch, tokens, width = x.shape

  mixed = x @ get(layer.mix.kernel) if options.mix == 'dense' else x
  kernel = get(layer.conv.kernel)
  convolved = np.zeros_like(mixed)
  for t in range(tokens):
    for lag in range(min(t + 1, len(kernel))):
      convolved[:, t] += kernel[-1 - lag] * mixed[:, t - lag]
  mixed = reference.silu(convolved)
  if options.mix == 'dense':
    x_q, x_k, x_v = np.split(mixed, 3, axis=-1)
  else:
    x_q, x_k, x_v = mixed @ get(layer.query.kernel), mixed, mixed

  def heads(z):
    z = z.reshape(batch, tokens, n, -1)
    return z / np.sqrt(np.sum(z * z, axis=-1, keepdims=True) + 1e-12)

  x_q, x_k, x_v = heads(x_q), heads(x_k), heads(x_v)
  beta = None
  if options.momentum:
    beta = 0.95 * sigmoid(x @ get(layer.beta.kernel) + get(layer.beta.bias))

  eta_max = options.eta_max
  if eta_max is None:
    eta_max = 1.0
  names = MEMORIES + (('q',) if options.q_memory else ())
  y = np.zeros((batch, tokens, n, width // n))
  final = {}
  for b in range(batch):
    for h in range(n):
      here = (slice(b, b + 1), slice(None), slice(h, h + 1))
      memories, rates = {}, {}
      for name in names:
        kernels = getattr(layer, name)
        memories[name] = (
          get(kernels.up)[h : h + 1],
          get(kernels.down)[h : h + 1],
        )
        rate = layer.memory_rate if name == 'memory' else layer.projection_rate
        rates[name] = tuple(eta_max * sigmoid(get(rate))[:, h : h + 1])
      # The step is spread over what momentum multiplies it by, 1 / (1 - beta).
      share = iter(np.ones(tokens) if beta is None else 1 - beta[b, :, h])
      eta_bias, alpha_bias = get(layer.eta_bias)[h], get(layer.alpha_bias)[h]

      def gate_eta(raw, share=share, bias=eta_bias):
        return sigmoid(raw + bias) * next(share)

      def gate_alpha(raw, bias=alpha_bias):
        return sigmoid(raw + bias) if options.retention else 1.0

      y[here], kernels = reference.self_referential_titans(
        memories,
        x_k[here],
        x_v[here],
        x_q[here],
        activation=reference.ACTIVATIONS['silu'],
        gate_eta=gate_eta,
        gate_alpha=gate_alpha,
        rates=rates,
        beta=None if beta is None else beta[here],
        objective=options.objective,
        anchor=options.anchor,
        erase=options.erase,
        epsilon=1e-12,
      )
      for name, pair in kernels.items():
        final[name, b, h] = [kernel[0, 0] for kernel in pair]

  y /= np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + 1e-6)
  y *= get(layer.norm.scale)
  return y.reshape(batch, tokens, -1) @ get(layer.output.kernel), final


def final_kernels(layer, state):
  """(up, down) by (name, sequence, head), as the oracle gives them."""
  anchored = layer.options.anchor == 'initial'
  wide = ['k', 'v'] + (['q'] if layer.options.q_memory else [])
  groups = [
    (wide, layer._wide(), state.projections.now[0]),
    (['eta', 'alpha'], layer._gates(), state.projections.now[1]),
    (['memory'], layer.memory.kernels(), state.memory.now),
  ]
  kernels = {}
  for names, base, now in groups:
    now = mlp.add(base if anchored else None, now)
    for index, name in enumerate(names):
      one = mlp.select(now, index)
      for b, h in np.ndindex(one.up.shape[:2]):
        kernels[name, b, h] = one.up[b, h], one.down[b, h, 0]
  return kernels


ORACLE_CASES = {
  'initial': {},
  'zero': {'anchor': 'zero'},
  'plain': {'momentum': False, 'erase': False, 'retention': False},
  'q_memory': {'q_memory': True, 'momentum': False, 'anchor': 'zero'},
  'dot': {'objective': 'dot', 'eta_max': 0.05},
  'dot_zero': {
    'objective': 'dot',
    'eta_max': 0.05,
    'anchor': 'zero',
    'erase': False,
  },
  'mix_none': {'mix': 'none', 'hidden_multiple': 2, 'retention': False},
}


@pytest.mark.parametrize('case', ORACLE_CASES)
def test_layer_is_the_oracle(case, x64):
  options = {'chunk_size': 1, 'projection_chunk_size': 1} | ORACLE_CASES[case]
  layer = titans(dtype=jnp.float64, **options)
  x = inputs(2, 10, 8, np.float64)
  y, state = call(layer)(x, None)
  assert y.dtype == jnp.float64
  expected, kernels = oracle(layer, x)
  assert relative(y, expected) <= BAR
  actual = final_kernels(layer, state)
  assert actual.keys() == kernels.keys()
  for name in kernels:
    for a, e in zip(actual[name], kernels[name], strict=True):
      assert relative(a, e) <= BAR, name


def test_reads_agree_at_chunks_of_one(x64):
  results = []
  for read in ('token', 'chunk'):
    layer = titans(
      dtype=jnp.float64, chunk_size=1, projection_chunk_size=1, read=read
    )
    results.append(call(layer)(inputs(2, 10, 8, np.float64), None))
  assert_same(*results, 1e-14)


def test_a_frozen_chunk_agrees_where_nothing_was_frozen(x64):
  x = inputs(1, 8, 8, np.float64)
  run = lambda chunk, **kw: np.asarray(
    call(
      titans(
        dtype=jnp.float64,
        chunk_size=chunk,
        projection_chunk_size=chunk,
        eta_max=0.3,
        **kw,
      )
    )(x, None)[0]
  )
  one, token, chunk = run(1), run(8), run(8, read='chunk')
  # A read before its token has seen one write at the second token, whose
  # gradient was taken at the initial state in either case.
  assert relative(token[:, :2], one[:, :2]) <= BAR
  assert relative(token[:, 2:], one[:, 2:]) > 1e-4
  assert relative(chunk[:, :1], one[:, :1]) <= BAR
  assert relative(chunk[:, 1:], one[:, 1:]) > 1e-4
  # A read at the chunk's start sees no write of its chunk.
  static = run(8, read='chunk', self_modifying=False)
  assert relative(chunk, static) <= BAR
  # The gradient of the dot product with a linear memory has no state in it.
  linear = {
    'objective': 'dot',
    'hidden_multiple': 0,
    'self_modifying': False,
    'self_target': False,
  }
  assert relative(run(8, **linear), run(1, **linear)) <= BAR


# ------------------------------------------------------------------- streaming


def titans_module(**options):
  options = {'chunk_size': 8, 'projection_chunk_size': 4} | options
  return titans(**options)


def cms_module(variant, **options):
  return randomize(
    ContinuumMemory(
      8,
      8,
      mode='in_context',
      variant=variant,
      periods=(2, 8),
      objective='l2',
      dtype=jnp.float32,
      rngs=nnx.Rngs(0),
      **options,
    ),
    jnp.float32,
  )


def attention_module(max_context=32):
  return CausalAttention(8, 2, max_context, rngs=nnx.Rngs(0))


def small_config(**fields):
  config = config_lib.base_config()
  config.model.width, config.model.num_heads = 16, 2
  config.model.num_layers = 2
  config.model.remat = False
  config.update_from_flattened_dict(fields)
  return config_lib.resolve(config, 64)


def model_module(**fields):
  fields = {
    'model.titans.chunk_size': 8,
    'model.titans.projection_chunk_size': 4,
    'model.cms.mode': 'in_context',
    'model.cms.periods': (2, 8),
    'model.vocab_size': 64,
    **fields,
  }
  return Hope(small_config(**fields), rngs=nnx.Rngs(0))


MODULES = {
  'titans': titans_module,
  'titans_zero': functools.partial(
    titans_module,
    chunk_size=4,
    projection_chunk_size=8,
    anchor='zero',
    read='chunk',
    q_memory=True,
    momentum=False,
  ),
  'titans_static': functools.partial(
    titans_module, self_modifying=False, mix='none', hidden_multiple=0
  ),
  'cms_sequential': functools.partial(cms_module, 'sequential'),
  'cms_independent': functools.partial(cms_module, 'independent'),
  'attention': functools.partial(attention_module, 5),
  'model': model_module,
}
# Of 24 tokens, at chunks of 4 and 8: each token by itself, cuts within chunks,
# and a mixture with a cut between chunks. Few lengths, for each is compiled.
SPLITS = ([1] * 24, [5, 14, 5], [1, 1, 1, 5, 14, 1, 1])


@pytest.mark.parametrize('name', MODULES)
def test_pieces_are_the_whole(name):
  module = MODULES[name]()
  if name.startswith('model'):
    x = jax.random.randint(jax.random.key(3), (2, 24), 0, 64)
  else:
    x = inputs(2, 24, 8)
  run = call(module)
  y, state = run(x, None)
  for split in SPLITS:
    assert sum(split) == 24
    pieces, piece_state, done = [], module.init_state(2), 0
    for size in split:
      piece, piece_state = run(x[:, done : done + size], piece_state)
      pieces.append(piece)
      done += size
    assert relative(jnp.concatenate(pieces, axis=1), y) <= STREAM_BAR
    assert_same(piece_state, state, STREAM_BAR)


def test_blocks_smaller_than_their_chunk(monkeypatch):
  """A chunk of 128 in blocks of 64, 32 and 128, whole and in pieces."""
  layer = titans(chunk_size=128, projection_chunk_size=128)
  x = inputs(1, 200, 8)
  assert stream.block_size(128) == 64
  results = []
  for block in (64, 32, 128):
    monkeypatch.setattr(stream, 'MAX_BLOCK', block)
    results.append(call(layer)(x, None))
  for result in results[1:]:
    assert_same(result, results[0], STREAM_BAR)
  monkeypatch.setattr(stream, 'MAX_BLOCK', 64)
  run = call(layer)
  first, state = run(x[:, :100], None)
  second, state = run(x[:, 100:], state)
  joined = jnp.concatenate([first, second], axis=1)
  assert_same((joined, state), results[0], STREAM_BAR)


# ------------------------------------------------------------------- causality


def sensitivity(function, x):
  """[t, b, t]: whether the output at t of the first sequence sees an input."""
  y, vjp = jax.vjp(function, x)
  tokens = y.shape[1]
  seeds = jnp.zeros((tokens, *y.shape))
  seeds = seeds.at[jnp.arange(tokens), 0, jnp.arange(tokens)].set(1.0)
  (gradients,) = jax.vmap(vjp)(seeds)
  return jnp.max(jnp.abs(gradients), axis=-1)


def assert_causal(seen):
  tokens = seen.shape[0]
  seen = np.asarray(seen)
  assert np.isfinite(seen).all()
  np.testing.assert_array_equal(seen[:, 1:], 0)
  later = np.triu(np.ones((tokens, tokens), bool), 1)
  np.testing.assert_array_equal(seen[:, 0][later], 0)
  assert (np.diag(seen[:, 0]) > 0).all()


@pytest.mark.parametrize('name', ['titans', 'titans_zero', 'cms_independent'])
def test_no_gradient_from_later_tokens(name):
  module = MODULES[name]()
  function = lambda x: module(x)[0]
  seen = jit(functools.partial(sensitivity, function))(inputs(2, 18, 8))
  assert_causal(seen)
  # Blocks of the CMS read at the start of their chunk, here of two tokens.
  assert (seen[-1, 0, :16] > 0).all()


def test_no_gradient_from_later_tokens_of_attention():
  module = attention_module(5)
  function = lambda x: module(x)[0]
  seen = jit(functools.partial(sensitivity, function))(inputs(2, 18, 8))
  assert_causal(seen)
  # It sees itself and the five tokens before it.
  np.testing.assert_array_equal(seen[-1, 0] > 0, np.arange(18) >= 12)


def embedding_sensitivity(model, tokens):
  """`sensitivity` of the logit of an unused symbol to distinct tokens.

  The embedding is tied to the output, so only a symbol that is nowhere in the
  input lets the gradient of the others' rows be that of the inputs alone.
  """
  graph, embedding, rest = nnx.split(
    model, lambda path, _: 'embed' in path, ...
  )

  def function(rows):
    table = jax.tree.map(lambda e: e.at[: rows.shape[0]].set(rows), embedding)
    logits, _ = nnx.merge(graph, table, rest)(tokens)
    return logits[..., -1]

  rows = jax.tree.leaves(embedding)[0][: tokens.size]
  return function, rows


def test_no_gradient_from_later_tokens_of_the_model():
  model = model_module()
  tokens = jnp.arange(36).reshape(2, 18)
  function, rows = embedding_sensitivity(model, tokens)
  seen = jit(lambda rows: sensitivity(lambda r: function(r)[..., None], rows))(
    rows
  )
  assert_causal(seen.reshape(18, 2, 18))


# ----------------------------------------------------------------------- alive


def deep_model(**fields):
  """Four layers of width 16 in float64, chunks of 8."""
  config = config_lib.base_config()
  config.model.width, config.model.num_heads = 16, 2
  config.model.num_layers, config.model.remat = 4, False
  config.model.titans.chunk_size = 8
  config.model.titans.projection_chunk_size = 8
  config.update_from_flattened_dict(fields)
  config = ml_collections.ConfigDict(config_lib.resolve(config, 32))
  config.model.dtype = 'float64'
  model = Hope(config, rngs=nnx.Rngs(0))
  to_double = lambda x: x.astype(jnp.float64)
  nnx.update(model, jax.tree.map(to_double, nnx.state(model)))
  return model


def probe_loss(model):
  """A loss in float64 of the blocks' outputs at tokens >= first of 24.

  Returns:
    (loss, params): loss a function of the blocks' parameters and first.
  """
  rng = np.random.default_rng(4)
  x = jnp.asarray(rng.standard_normal((2, 24, 16)))
  probe = jnp.asarray(rng.standard_normal((2, 24, 16)))
  graph, params = nnx.split(model.blocks)

  def loss(params, first):
    step = lambda x, p: (nnx.merge(graph, p)(x)[0], None)
    y, _ = jax.lax.scan(step, x, params)
    seen = (jnp.arange(24) >= first)[:, None]
    return jnp.mean(jnp.where(seen, probe * model.norm(y), 0))

  return loss, params


def test_every_initial_state_has_an_outer_gradient(x64):
  """Also when the loss sees no token of the first chunk."""
  loss, params = probe_loss(deep_model())
  loss, gradient = jit(loss), jit(jax.grad(loss))
  for first in (0, 8):
    gradients = gradient(params, first)
    check_gradients(lambda p, first=first: loss(p, first), params, gradients)


def check_gradients(loss, params, gradients):
  """Non-zero in every layer, and the central differences of `loss`."""
  rng = np.random.default_rng(5)
  for name in MEMORIES:
    for part in ('up', 'down'):
      gradient = np.asarray(gradients['mixer'][name][part][...])
      for layer in range(4):
        assert np.abs(gradient[layer]).max() > 0, (name, part, layer)
        direction = np.zeros_like(gradient)
        direction[layer] = rng.standard_normal(gradient[layer].shape)
        # Along the gradient too, lest the derivative be a small difference.
        size = np.linalg.norm(gradient[layer])
        direction[layer] += 4 * gradient[layer] / size
        direction /= np.linalg.norm(direction)

        def along(step, name=name, part=part, direction=direction):
          moved = jax.tree.map(lambda x: x, params)
          leaf = moved['mixer'][name][part]
          moved['mixer'][name][part] = leaf.replace(
            leaf[...] + step * direction
          )
          return float(loss(moved))

        # Central differences of fourth order.
        h = 2e-3
        slope = 8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))
        slope /= 12 * h
        expected = np.sum(gradient * direction)
        assert abs(slope - expected) <= GRADIENT_BAR * abs(expected), (
          name,
          part,
          layer,
          slope,
          expected,
        )


def test_generating_memories_are_learned_through_the_writes(x64):
  """What k, v, eta and alpha generate is only ever written."""
  loss, params = probe_loss(deep_model(**{'model.titans.eta_max': 0.0}))
  gradients = jit(jax.grad(loss))(params, 0)['mixer']
  for name in MEMORIES:
    for part in ('up', 'down'):
      gradient = np.asarray(gradients[name][part][...])
      if name == 'memory':
        assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()
      else:
        np.testing.assert_array_equal(gradient, 0)


def test_a_token_a_thousand_positions_back_is_seen():
  fields = {
    'model.num_layers': 1,
    'model.titans.chunk_size': 64,
    'model.titans.projection_chunk_size': 64,
    'model.cms.mode': 'outer',
    'model.cms.periods': (1,),
    'model.vocab_size': 1025,
  }
  model = model_module(**fields)
  tokens = jnp.arange(1024)[None]
  function, rows = embedding_sensitivity(model, tokens)
  gradient = jit(jax.grad(lambda rows: function(rows)[0, -1]))(rows)
  size = np.abs(gradient).max(axis=-1)
  assert np.isfinite(size).all()
  assert (size[:24] > 1e-6 * size.max()).all()


# ------------------------------------------------------------------- stability


@pytest.mark.parametrize('symbols', ['four', 'one'])
def test_long_streams_stay_bounded(symbols):
  """8,192 tokens at initialisation with every option at its default."""
  config = config_lib.base_config()
  config.model.num_layers, config.model.width = 1, 32
  config.model.remat = False
  model = Hope(config_lib.resolve(config, 8), rngs=nnx.Rngs(0))
  tokens = np.full((1, 8192), 3)
  if symbols == 'four':
    tokens = np.random.default_rng(6).integers(0, 4, (1, 8192))
  run, state = call(model, jax.jit), model.init_state(1)
  sizes, peaks = [], []
  for piece in np.split(tokens, 8, axis=1):
    logits, state = run(piece, state)
    floats = [x for x in jax.tree.leaves(state) if x.dtype == jnp.float32]
    assert all(np.isfinite(x).all() for x in floats)
    assert np.isfinite(logits).all()
    sizes.append(max(float(np.abs(x).max()) for x in floats))
    peaks.append(float(np.abs(logits).max()))
  # The initial kernels are of the size of a standard normal.
  assert max(sizes) < 20, sizes
  assert max(peaks) < 20, peaks
  assert max(sizes[4:]) < 2 * max(sizes[:4]), sizes
