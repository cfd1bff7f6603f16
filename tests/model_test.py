"""Hope and Hope-Attention as a whole, and the checks of a configuration."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from hope import blocks
from hope import config as config_lib
from hope.config import FIELDS
from hope.feedforward.cms import CMSOptions
from hope.mixers.attention import AttentionOptions
from hope.mixers.titans import TitansOptions
from hope.model import PRESETS, Hope

# Nearly all of the time is compilation.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
NAMED = [name for name in PRESETS if name != 'tiny']


def resolved(vocab_size=16, **fields):
  config = config_lib.base_config()
  config.update_from_flattened_dict(
    {
      'model.num_layers': 2,
      'model.width': 16,
      'model.num_heads': 2,
      'model.titans.chunk_size': 4,
      'model.titans.projection_chunk_size': 4,
      'model.cms.periods': (1, 4),
      **fields,
    }
  )
  return config_lib.resolve(config, vocab_size)


def make(**fields):
  return Hope(resolved(**fields), rngs=nnx.Rngs(0))


def tokens(batch=2, length=8):
  return jax.random.randint(jax.random.key(1), (batch, length), 0, 16)


# --------------------------------------------------------------------- presets


@pytest.mark.parametrize('mixer', ['titans', 'attention', 'delta', 'rwkv7'])
@pytest.mark.parametrize('name', NAMED)
def test_a_preset_has_the_parameters_of_its_name(name, mixer):
  config = config_lib.base_config()
  config.model.preset, config.model.pattern = name, f'{mixer}+cms'
  config = config_lib.resolve(config, 32000)
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  count = sum(int(np.prod(leaf.shape)) for leaf in leaves)
  wanted = float(name[:-1]) * {'m': 1e6, 'b': 1e9}[name[-1]]
  assert abs(count / wanted - 1) <= 0.03, f'{count:,}'


def hidden(model):
  """Hidden width of the first CMS level, from the sizes to be divided."""
  config = config_lib.base_config()
  config.model.update(model.to_dict())
  (width,) = (x.size for x in blocks.divided(config) if 'level' in x.name)
  return width


@pytest.mark.parametrize(
  'pattern', ['titans+cms', 'attention+cms, titans+cms(periods=(1,))']
)
def test_the_parameters_counted_before_anything_is_built(pattern):
  """A bound from below, and not far from it; of a level left to its mixer."""
  config = resolved(**{'model.pattern': pattern, 'model.width': 64})
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  assert count / 4 < blocks.least_parameters(config) < count


def test_a_setting_states_options_and_a_pattern_may_change_them():
  fields = {
    'model.pattern': 'titans(paper, chunk_size=2)+cms, titans+cms',
    'model.num_layers': 2,
    'model.titans.conv_width': 3,
  }
  paper, other = (
    block.mixer.options for block in blocks.pattern(resolved(**fields))
  )
  assert paper.anchor == 'zero' and paper.error_max is None
  assert (paper.chunk_size, paper.projection_chunk_size) == (2, 1)
  assert paper.conv_width == other.conv_width == 3
  assert other == TitansOptions(
    conv_width=3, chunk_size=4, projection_chunk_size=4
  )


def test_presets_give_the_sizes_left_at_none():
  config = config_lib.base_config()
  config.model.preset = '760m'
  config.model.num_layers = 3
  model = config_lib.resolve(config, 300).model
  assert (model.num_layers, model.width, model.num_heads) == (3, 1536, 16)
  assert model.vocab_size == 300
  assert hidden(model) == 1536 * 7 // 8  # the rest are the gate's
  config.model.titans.output_gate = False
  assert hidden(config_lib.resolve(config, 300).model) == 1536
  config.model.pattern = 'attention+cms'
  assert hidden(config_lib.resolve(config, 300).model) == 1536 * 17 // 16
  # The caller's configuration is left as it was.
  assert config.model.width is None and config.model.vocab_size is None


def test_options_of_the_layer_are_those_of_the_configuration():
  model = config_lib.base_config().model
  assert dataclasses.asdict(AttentionOptions()) == model.attention.to_dict()
  assert dataclasses.asdict(CMSOptions()) == model.cms.to_dict()
  assert dataclasses.asdict(TitansOptions()) == model.titans.to_dict()


# ----------------------------------------------------------------------- types


@pytest.mark.parametrize('mixer', ['titans', 'attention'])
def test_bfloat16_keeps_states_and_parameters_in_float32(mixer):
  fields = {'model.pattern': f'{mixer}+cms', 'model.cms.mode': 'in_context'}
  model = make(**fields, **{'model.dtype': 'bfloat16'})
  graph, params = nnx.split(model)

  @functools.partial(jit, static_argnums=0)
  def run(graph, params, state):
    return nnx.merge(graph, params)(tokens(), state)

  initial = model.init_state(2)
  logits, state = run(graph, params, initial)
  assert logits.dtype == jnp.float32 and np.isfinite(logits).all()
  for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)):
    assert leaf.dtype == jnp.float32
  shapes = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
  assert shapes(initial) == shapes(state)
  for leaf in jax.tree.leaves(state):
    assert leaf.dtype in (jnp.float32, jnp.int32)
  # It computes the same thing, to the precision of its operands.
  graph, params = nnx.split(make(**fields))
  expected, _ = run(graph, params, initial)
  assert 0 < np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


# ----------------------------------------------------------------------- remat


@pytest.mark.parametrize(
  'mixer', ['delta', pytest.param('titans', marks=pytest.mark.slow)]
)
def test_remat_changes_nothing(mixer):
  results = []
  for remat in (True, False):
    fields = {'model.pattern': f'{mixer}+cms', 'compute.remat': remat}
    graph, params = nnx.split(make(**fields))

    def loss(params, graph=graph):
      logits, state = nnx.merge(graph, params)(tokens())
      return jnp.mean(jnp.square(logits)), (logits, state)

    step = jit(jax.value_and_grad(loss, has_aux=True))
    (_, output), gradients = step(params)
    results.append(jax.tree.leaves((output, gradients)))
  assert len(results[0]) == len(results[1])
  for a, b in zip(*results, strict=True):
    scale = np.abs(b).max() or 1.0
    assert np.abs(a - b).max() <= 1e-5 * scale


# -------------------------------------------------------------- linear memories


def test_linear_memories():
  model = make(
    **{
      'model.titans.hidden_multiple': 0,
      'model.titans.q_memory': True,
    }
  )
  mixer = model.blocks[0].mixer
  assert not hasattr(mixer.memory, 'up')
  assert mixer.memory.down.shape == (2, 2, 8, 8)
  assert mixer.eta.down.shape == (2, 2, 8, 1)
  graph, params = nnx.split(model)

  def loss(params):
    logits, state = nnx.merge(graph, params)(tokens(length=12))
    return jnp.mean(jnp.square(logits[:, 4:])), state

  gradients, state = jit(jax.grad(loss, has_aux=True))(params)
  assert state[0][0].memory.now.up is None
  for name in ('k', 'v', 'q', 'eta', 'alpha', 'memory'):
    gradient = np.asarray(gradients.blocks[0].mixer[name].down[...])
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all(), name


# ---------------------------------------------------------------------- errors

ERRORS = [
  ({'model.preset': 'huge'}, r"model\.preset='huge' is unknown; .*tiny"),
  ({'model.vocab_size': 8}, r'model\.vocab_size=8 is below the 16 tokens'),
  ({'model.num_heads': 3}, r'num_heads=3 does not divide model\.width=16; try'),
  (
    {'model.titans.chunk_size': 6},
    r'chunk_size=6 and titans\.projection_chunk_size=4: one must divide',
  ),
  (
    {'model.titans.hidden_multiple': -1},
    r'hidden_multiple=-1 must not be negative',
  ),
  (
    {'model.pattern': 'titans(papers)+cms'},
    r"titans has no setting 'papers'; it has paper, lmm, dla\. Did you mean p",
  ),
  (
    {'model.pattern': 'attention(paper)+cms'},
    r"attention has no setting 'paper'; it has none\.",
  ),
  ({'model.pattern': 'titans(8)+cms'}, 'cannot be read; write blocks'),
  (
    {'model.titans.objective': 'delta', 'model.titans.erase': False},
    r"titans\.objective='delta' needs titans\.erase=True",
  ),
  (
    {'model.titans.step': 'relative', 'model.titans.objective': 'l2'},
    r"titans\.step='relative' needs .* objective='delta', not 'l2'",
  ),
  (
    {
      'model.titans.objective': 'delta',
      'model.titans.step': 'relative',
      'model.titans.eta_max': 3.0,
    },
    r'titans\.eta_max=3 lets writes .* expand what is stored; 2 is the most',
  ),
  ({'model.titans.eta_max': -0.5}, r'eta_max=-0\.5 must not be negative'),
  ({'model.titans.target_max': 0.0}, r'target_max=0\.0 must be positive'),
  ({'model.titans.error_max': -1.0}, r'error_max=-1\.0 must be positive'),
  ({'model.cms.periods': ()}, r'cms\.periods=\(\) has 0 numbers; give 1 to 64'),
  ({'model.cms.periods': (4, 0)}, r'cms\.periods=\(4, 0\) must be at least 1'),
  (
    {'data.batch_size': 8, 'train.accumulate': 3},
    r'train\.accumulate=3 does not divide data\.batch_size=8',
  ),
  (
    {'optimizer.warmup_steps': 300},
    r'warmup_steps=300 must lie between 0 and train\.steps=200',
  ),
  ({'optimizer.warmup_steps': -1}, r'warmup_steps=-1 must not be negative'),
  ({'optimizer.learning_rate': 0.0}, r'learning_rate=0\.0 must be positive'),
]


@pytest.mark.parametrize('fields, message', ERRORS)
def test_resolve_refuses(fields, message):
  with pytest.raises(ValueError, match=message):
    resolved(**fields)


@pytest.mark.parametrize(
  'path', [path for path, field in FIELDS.items() if field.choices]
)
def test_resolve_refuses_an_unknown_choice(path):
  allowed = ', '.join(FIELDS[path].choices)
  with pytest.raises(ValueError, match="='nothing' is unknown") as error:
    resolved(**{path: 'nothing'})
  assert path in str(error.value) and allowed in str(error.value)


@pytest.mark.parametrize(
  'path', [path for path, field in FIELDS.items() if field.minimum == 1]
)
def test_resolve_refuses_less_than_one(path):
  value = (0,) if FIELDS[path].kind is tuple else 0
  with pytest.raises(ValueError, match='must be at least 1') as error:
    resolved(**{path: value})
  assert str(error.value).startswith(path)


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('optimizer.clip_norm', 0.0, 'must be positive'),
    ('optimizer.other_learning_rate', -1.0, 'must be positive'),
    ('optimizer.b2', 1.0, 'at least 0 and below 1'),
    ('optimizer.final_fraction', -0.1, 'must not be negative'),
    ('model.cms.hidden_multiple', 0.0, 'must be positive'),
    ('sample.top_k', -1, 'must not be negative'),
  ],
)
def test_resolve_refuses_numbers_out_of_range(path, value, message):
  with pytest.raises(ValueError, match=f'{path.split(".", 1)[1]}.*{message}'):
    resolved(**{path: value})


def test_heads_of_attention_are_even():
  fields = {'model.pattern': 'attention+cms', 'model.width': 66}
  with pytest.raises(ValueError, match='must be even'):
    resolved(**fields, **{'model.num_heads': 22})


def test_logits_of_bfloat16_are_not_rounded():
  model = make(**{'model.dtype': 'bfloat16', 'model.pattern': 'attention+cms'})
  logits, _ = model(tokens())
  assert (logits != logits.astype(jnp.bfloat16)).mean() > 0.9


def test_parse_arg():
  values = config_lib.parse_arg('a=2,c=true', a=1, b=0.5, c=False, d='x')
  assert isinstance(values, ml_collections.ConfigDict)
  assert values.to_dict() == {'a': 2, 'b': 0.5, 'c': True, 'd': 'x'}
  with pytest.raises(ValueError, match="'e' is not an argument.*a, b"):
    config_lib.parse_arg('e=1', a=1, b=2)
  with pytest.raises(ValueError, match='a must be of type int'):
    config_lib.parse_arg('a=x', a=1)
  with pytest.raises(ValueError, match='c must be of type bool'):
    config_lib.parse_arg('c=1', c=True)
