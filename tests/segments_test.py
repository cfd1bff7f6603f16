"""A document computes the same in any row and at any place as it does alone."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
from layer_cases import (
  BAR,
  FROZEN,
  STREAM_BAR,
  assert_same,
  inputs,
  jit,
  model_module,
  randomize,
  relative,
  small_config,
  titans,
)
import ml_collections
import numpy as np
import pytest

from hope.evaluation import heldout
from hope.feedforward.cms import CMSOptions, ContinuumMemory
from hope.layers.convolution import CausalConvolution
from hope.memory import segments, stream
from hope.memory.segments import since_start
from hope.mixers.attention import AttentionOptions, CausalAttention
from hope.model import Hope
from hope.parallel import mesh as mesh_lib
from hope.training import step as step_lib

# ------------------------------------------------------------------- positions


def test_since_start():
  rng = np.random.default_rng(0)
  starts = rng.random((5, 12)) < 0.3
  position = rng.integers(0, 9, 5)
  expected = np.zeros((5, 12), int)
  for row, before in enumerate(position):
    since = before - 1
    for t in range(12):
      since = 0 if starts[row, t] else since + 1
      expected[row, t] = since
  actual = since_start(jnp.asarray(starts), jnp.asarray(position))
  np.testing.assert_array_equal(actual, expected)


def test_alignment():
  assert stream.alignment([]) == 1
  assert stream.alignment([16, 64]) == 64
  assert stream.alignment([128, 24, 1]) == 192  # blocks of 64, 24 and 1


# ---------------------------------------------------------------- training rows

DOCUMENTS = (5, 11)  # tokens; one within a chunk of 8, one beyond it


def place(align):
  """Where the documents of two rows start, and the tokens of a row.

  The first row has them in this order, the second in the other.
  """
  aligned = [-(-n // align) * align for n in DOCUMENTS]
  return ((0, aligned[0]), (aligned[1], 0)), sum(aligned)


def lay(documents, align, padding):
  """Two rows of the documents' values, and `starts`."""
  places, _ = place(align)
  rows = np.array(padding)
  starts = np.zeros(rows.shape[:2], bool)
  for row, where in enumerate(places):
    for document, start in zip(documents, where, strict=True):
      rows[row, start : start + document.shape[1]] = document[row]
      starts[row, start] = True
  return jnp.asarray(rows), jnp.asarray(starts)


def take(rows, align):
  """The documents [2, n, ...] of two rows."""
  (first, second), _ = place(align)
  return [
    jnp.stack([rows[0, i : i + n], rows[1, j : j + n]])
    for i, j, n in zip(first, second, DOCUMENTS, strict=True)
  ]


def assert_rows_are_their_documents(module, documents, padding, align):
  """Outputs and gradients of all parameters, in float64."""
  graph, params = nnx.split(module)
  rows, starts = lay(documents, align, padding)

  def packed(params):
    return take(nnx.merge(graph, params)(rows, starts=starts)[0], align)

  def alone(params):
    return [nnx.merge(graph, params)(x)[0] for x in documents]

  def total(function, params):
    ys = function(params)
    waves = [
      jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)) for y in ys
    ]
    return sum(waves), ys

  results = [
    jit(jax.grad(functools.partial(total, function), has_aux=True))(params)
    for function in (packed, alone)
  ]
  assert_same(*results, BAR)


def cms(variant, mode='in_context'):
  module = ContinuumMemory(
    8,
    CMSOptions(mode, variant, periods=(2, 8), hidden_multiple=1.0),
    dtype=jnp.float64,
    rngs=nnx.Rngs(0),
  )
  return randomize(module, jnp.float64)


def attention():
  layer = CausalAttention(
    8, 2, AttentionOptions(7), dtype=jnp.float64, rngs=nnx.Rngs(0)
  )
  return randomize(layer, jnp.float64)


def layer(**options):
  options = {'chunk_size': 8, 'projection_chunk_size': 4} | options
  return titans(dtype=jnp.float64, **options)


@pytest.mark.parametrize('starts', [None, np.eye(2, 3, dtype=bool)])
def test_places_are_int32_in_double_precision_too(starts, x64):
  """As the states that hold them are: a scan over layers refuses others."""
  place = segments.positions(jnp.zeros(2, jnp.int32), 3, starts)
  assert place.dtype == jnp.int32


# (module, alignment)
LAYERS = {
  'titans': (layer, 8),
  'frozen': (functools.partial(layer, **FROZEN), 8),
  'zero': (
    functools.partial(layer, anchor='zero', q_memory=True, **FROZEN),
    8,
  ),
  'plain': (
    functools.partial(
      layer, momentum=False, erase=False, read='chunk', **FROZEN
    ),
    8,
  ),
  'mixed': (
    functools.partial(layer, target='mixed', projection_target='slow'),
    8,
  ),
  'swapped': (
    functools.partial(
      layer,
      chunk_size=4,
      projection_chunk_size=8,
      anchor='zero',
      momentum=False,
      objective='dot',
      eta_max=0.05,
    ),
    8,
  ),
  'static': (
    functools.partial(
      layer,
      chunk_size=4,
      self_modifying=False,
      mix='none',
      hidden_multiple=0,
      target='slow',
    ),
    4,
  ),
  'tokens': (
    functools.partial(layer, chunk_size=1, projection_chunk_size=1),
    1,
  ),
  'chunk_64': (
    functools.partial(layer, chunk_size=64, projection_chunk_size=16),
    64,
  ),
  'cms_sequential': (functools.partial(cms, 'sequential'), 8),
  'cms_independent': (functools.partial(cms, 'independent'), 8),
  'cms_outer': (functools.partial(cms, 'sequential', 'outer'), 1),
  'attention': (attention, 1),
}
# The contract test of parts has the others in a small form.
QUICK = ('cms_outer', 'attention')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow,))
    for name in LAYERS
  ],
)
def test_rows_are_their_documents(name, x64):
  make, align = LAYERS[name]
  documents = [inputs(2, n, 8, np.float64, seed=n) for n in DOCUMENTS]
  padding = inputs(2, place(align)[1], 8, np.float64, seed=9)
  assert_rows_are_their_documents(make(), documents, padding, align)


@pytest.mark.slow
@pytest.mark.parametrize('anchor', ['initial', 'zero'])
def test_chunks_of_several_blocks(anchor, x64, monkeypatch):
  """Chunks of 8 in blocks of 4: the second starts within a chunk of the row."""
  monkeypatch.setattr(stream, 'MAX_BLOCK', 4)
  documents = [inputs(2, n, 8, np.float64, seed=n) for n in DOCUMENTS]
  module = layer(projection_chunk_size=8, anchor=anchor)
  padding = inputs(2, place(4)[1], 8, np.float64, seed=9)
  assert place(4)[0] == ((0, 8), (12, 0))
  assert_rows_are_their_documents(module, documents, padding, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'model.titans.anchor': 'zero', 'model.cms.variant': 'independent'},
    {'model.pattern': 'attention+cms'},
    {'model.cms.mode': 'outer', 'compute.remat': True},
  ],
)
def test_rows_of_the_model_are_their_documents(fields, x64):
  fields = {
    'model.titans.chunk_size': 8,
    'model.titans.projection_chunk_size': 4,
    'model.cms.mode': 'in_context',
    'model.cms.periods': (2, 8),
    **fields,
  }
  config = ml_collections.ConfigDict(small_config(**fields))
  config.model.dtype = 'float64'
  model = randomize(Hope(config, rngs=nnx.Rngs(0)), jnp.float64)
  rng = np.random.default_rng(0)
  documents = [rng.integers(0, 64, (2, n)) for n in DOCUMENTS]
  padding = rng.integers(0, 64, (2, place(8)[1]))
  assert_rows_are_their_documents(model, documents, padding, 8)


def test_of_other_documents_not_even_nan_is_seen():
  """In the convolution, as an example of what is masked by `where`."""
  conv = CausalConvolution(3, 4, rngs=nnx.Rngs(0))
  x = inputs(1, 6, 3)
  starts = jnp.arange(6)[None] == 2
  y, state = conv(x.at[:, :2].set(jnp.nan), conv.init_state(1), starts)
  alone, alone_state = conv(x[:, 2:], conv.init_state(1))
  assert_same((y[:, 2:], state), (alone, alone_state), 1e-6)


# --------------------------------------------------------------------- streams

STREAMED = {
  'titans': functools.partial(
    titans, chunk_size=8, projection_chunk_size=4, anchor='zero', **FROZEN
  ),
  'static': functools.partial(
    titans, chunk_size=8, self_modifying=False, momentum=False
  ),
  'attention': functools.partial(
    CausalAttention, 8, 2, AttentionOptions(5), rngs=nnx.Rngs(0)
  ),
  'model': model_module,
}
SPLITS = ([1] * 24, [9, 9] + [1] * 6, [1] * 8 + [9] + [1] * 7)


def streamer(module):
  graph, params = nnx.split(module)
  run = jit(lambda p, x, state, starts: nnx.merge(graph, p)(x, state, starts))
  return functools.partial(run, params)


def values(name, tokens, seed=3):
  if name == 'model':
    return jax.random.randint(jax.random.key(seed), (2, tokens), 0, 64)
  return inputs(2, tokens, 8, seed=seed)


@pytest.mark.parametrize(
  'name',
  [
    'static',
    'attention',
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('titans', 'model')),
  ],
)
def test_pieces_are_the_whole(name):
  module = STREAMED[name]()
  run, x = streamer(module), values(name, 24)
  starts = np.zeros((2, 24), bool)
  starts[0, [8, 16]] = starts[1, [0, 8]] = True
  whole = run(x, None, starts)
  for split in SPLITS:
    pieces, state, done = [], module.init_state(2), 0
    for size in split:
      here = slice(done, done + size)
      piece, state = run(x[:, here], state, starts[:, here])
      pieces.append(piece)
      done += size
    assert_same((jnp.concatenate(pieces, 1), state), whole, STREAM_BAR)


@pytest.mark.parametrize(
  'name',
  [
    'attention',
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('titans', 'model')),
  ],
)
def test_streams_start_documents_anywhere(name):
  """Token by token, and where the pieces of a row start with its documents.

  The first row's second document starts at token 5, the second's at token 7;
  then both go on in one piece, each at its own place in its chunk.
  """
  module = STREAMED[name]()
  run, x = streamer(module), values(name, 24)
  starts = np.zeros((2, 24), bool)
  starts[0, 5] = starts[1, 7] = True
  state, pieces, done = module.init_state(2), [], 0
  for size in [1] * 5 + [1] * 10 + [9]:
    here = slice(done, done + size)
    piece, state = run(x[:, here], state, starts[:, here])
    pieces.append(piece)
    done += size
  y = jnp.concatenate(pieces, axis=1)
  for row, start in enumerate((5, 7)):
    alone, _ = run(x[:, start:], None, np.zeros((2, 24 - start), bool))
    assert relative(y[row, start:], alone[row]) <= STREAM_BAR


@pytest.mark.slow
def test_a_piece_that_starts_a_document_in_one_row():
  """The second row's document goes on, from within a chunk."""
  run, x = streamer(STREAMED['titans']()), values('titans', 20)
  nowhere = np.zeros((2, 20), bool)
  _, state = run(x[:, :11], None, nowhere[:, :11])
  starts = nowhere[:, 11:].copy()
  starts[0, 0] = True
  y, _ = run(x[:, 11:], state, starts)
  whole, _ = run(x, None, nowhere)
  alone, _ = run(x[:, 11:], None, nowhere[:, 11:])
  assert relative(y[1], whole[1, 11:]) <= STREAM_BAR
  assert relative(y[0], alone[0]) <= STREAM_BAR
  # And without starts, from positions of each row.
  again, _ = run(x[:, 11:], state, None)
  assert relative(again[1], y[1]) <= STREAM_BAR


def test_a_document_within_a_block_gives_nan_in_its_row():
  module = STREAMED['titans']()
  run, x = streamer(module), values('titans', 24)
  starts = np.zeros((2, 24), bool)
  starts[0, 8] = starts[1, 12] = True
  for state in (None, module.init_state(2)):
    y, _ = run(x, state, starts)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


@pytest.mark.slow
def test_decoding_in_a_scan():
  model = model_module()
  graph, params = nnx.split(model)
  tokens = values('model', 6)
  starts = np.zeros((2, 6), bool)
  starts[1, 3] = True

  def step(state, x):
    token, start = x
    logits, state = nnx.merge(graph, params)(
      token[:, None], state, start[:, None]
    )
    return state, logits[:, 0]

  scan = jit(lambda state: jax.lax.scan(step, state, (tokens.T, starts.T)))
  _, logits = scan(model.init_state(2, documents=True))
  run = streamer(model)
  nowhere = np.zeros((2, 6), bool)
  assert relative(logits[:, 0], run(tokens, None, nowhere)[0][0]) <= STREAM_BAR
  alone, _ = run(tokens[:, 3:], None, nowhere[:, 3:])
  assert relative(logits[3:, 1], alone[1]) <= STREAM_BAR


# ------------------------------------------------------------------------ loss


def batch_of_documents(mixer, accumulate=1):
  """A configuration, and two rows of three documents of 8 tokens each."""
  config = small_config(
    **{
      'model.pattern': f'{mixer}+cms',
      'model.titans.chunk_size': 4,
      'model.titans.projection_chunk_size': 4,
      'data.seq_len': 24,
      'data.batch_size': 2,
      'data.segments': True,
      'train.accumulate': accumulate,
    }
  )
  rng = np.random.default_rng(0)
  return config, {
    'inputs': rng.integers(0, 64, (2, 24)),
    'targets': rng.integers(0, 64, (2, 24)),
    'weights': rng.random((2, 24), np.float32),
    'starts': np.tile(np.arange(24) % 8 == 0, (2, 1)),
  }


def rows_of_documents(batch):
  """Six rows of one document each."""
  return {k: x.reshape(6, 8) for k, x in batch.items() if k != 'starts'}


def test_loss_of_rows_is_that_of_their_documents():
  config, batch = batch_of_documents('attention')
  mesh = mesh_lib.one_device()
  graph, params = step_lib.build_model(config)
  step = step_lib.eval_step(graph, mesh)
  together = step(params, batch)
  alone = step(params, rows_of_documents(batch))
  assert relative(together.loss, alone.loss) <= 1e-6
  assert together.accuracy == alone.accuracy
  assert not together.inner_losses
  del batch['starts']
  crossed = step(params, batch)
  assert relative(crossed.loss, alone.loss) > 1e-5


def test_inner_losses_of_rows_are_those_of_their_documents():
  config, batch = batch_of_documents('titans')
  graph, params = step_lib.build_model(config)
  step = step_lib.eval_step(graph, mesh_lib.one_device())
  together = step(params, batch)
  alone = step(params, rows_of_documents(batch))
  layers = range(config.model.num_layers)
  assert together.inner_losses.keys() == {
    f'{memory}/inner_loss/layer_{i}'
    for memory in ('memory', 'k', 'v', 'eta', 'alpha')
    for i in layers
  } | {
    f'{memory}/change/layer_{i}'
    for memory in ('k', 'v', 'eta', 'alpha')
    for i in layers
  }
  np.testing.assert_array_equal(together.tokens[:8], 6)
  np.testing.assert_array_equal(together.tokens[8:], 0)
  # A change compares two outputs that are nearly equal: its rounding is theirs.
  atol = {
    name: 1e-6 if '/change/' in name else 0 for name in together.inner_losses
  }
  for name, values in together.inner_losses.items():
    np.testing.assert_allclose(
      values[:8],
      alone.inner_losses[name],
      rtol=1e-5,
      atol=atol[name],
      err_msg=name,
    )
  # Two batches of the same have the same means; no document has a ninth token.
  _, inner = heldout.evaluate(step, params, [batch, batch], None)
  for name, mean in inner.means().items():
    expected = np.sum(alone.inner_losses[name]) / 48
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=atol[name])
    assert np.isnan(inner.by_position[name][8:]).all()
    kept = inner.to_dict()['by_position'][name]
    assert None not in kept[:8] and set(kept[8:]) == {None}


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_step_on_rows_is_that_on_their_documents(accumulate):
  results = []
  for parts in (accumulate, 1):
    config, batch = batch_of_documents('titans', parts)
    if results:
      batch = rows_of_documents(batch)
    graph, abstract = step_lib.abstract_state(config, mesh_lib.one_device())
    state = step_lib.init_state(config, abstract)
    _, metrics = step_lib.train_step(graph, config, abstract)(state, batch)
    results.append([metrics[k] for k in ('loss', 'gradient_norm')])
  assert_same(*results, 1e-5)
