"""What the rest of the system asks of self-referential Titans."""

import functools

from flax import nnx
from jax.sharding import PartitionSpec as P

from hope.memory import stream
from hope.memory.learning import Learning
from hope.mixers.titans import SelfReferentialTitans
from hope.mixers.titans_metrics import metrics
from hope.mixers.titans_options import DLA, LMM, PAPER, TitansOptions
from hope.parts import (
  BY_HEAD,
  ONE_PROJECTION,
  Leaf,
  Level,
  Part,
  Sizes,
  divided_heads,
  inner_objective,
  per_token,
)


def _build(sizes: Sizes, options: TitansOptions, *, rngs: nnx.Rngs):
  return SelfReferentialTitans(
    sizes.width,
    sizes.num_heads,
    options,
    dtype=sizes.dtype,
    kernel=sizes.kernel,
    rngs=rngs,
  )


def _parameters(options: TitansOptions) -> list[Leaf]:
  initial = functools.partial(
    Leaf,
    spec=P('tensor', 'fsdp'),
    component=r'initial state of \1',
    kind='matrix',
  )
  in_context = 'sequences start from it'
  generates = in_context
  if not options.self_modifying:
    generates = 'its values: no learning in context'
  return [
    Leaf('norm/scale', P(), 'norms'),
    Leaf(
      'mix/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=BY_HEAD,
    ),
    Leaf(
      'query/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=ONE_PROJECTION,
    ),
    Leaf(
      'gate/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=ONE_PROJECTION,
    ),
    Leaf('output/kernel', P('tensor', 'fsdp'), 'projections', kind='linear'),
    Leaf('conv/kernel', P(None, 'tensor'), 'convolution', kind='filter'),
    initial('(k|v|q|eta|alpha)/(up|down)', passes_on=generates),
    initial('(memory)/(up|down)', passes_on=in_context),
    Leaf(
      '(beta|slow_eta|slow_alpha)/kernel',
      P('fsdp', 'tensor'),
      'gates and rates',
      kind='linear',
    ),
    Leaf('beta/bias|eta_bias|alpha_bias', P('tensor'), 'gates and rates'),
    Leaf('(memory|projection)_rate', P(None, 'tensor'), 'gates and rates'),
    Leaf('(memory|projection)_share', P('tensor'), 'gates and rates'),
  ]


def _is_static(options: TitansOptions, how: Learning) -> bool:
  """Whether nothing is written, and nothing decays."""
  return how.bounds() == (0, 0) and options.anchor == 'initial'


def _levels(sizes: Sizes, options: TitansOptions) -> list[Level]:
  """Rows of the memories; none if nothing is written and nothing decays."""
  del sizes
  feeds = {
    'k': 'makes keys',
    'v': 'makes values',
    'eta': 'makes learning rates',
    'alpha': 'makes retention',
    'q': 'makes queries',
  }
  if not options.q_memory:
    del feeds['q']
  if not options.retention:
    del feeds['alpha']
  context, how = 'keys, values so far', options.of_projections()
  if not options.self_modifying or _is_static(options, how):
    feeds = {}
  target = {
    'self': 'M{0}(v)',
    'slow': 'M{0},0(v)',
    'mixed': '(s M{0}(v) + (1 - s) M{0},0(v))',
  }[how.target]
  levels = [
    Level(
      component=name,
      frequency=per_token(how.chunk),
      objective=inner_objective(
        how.objective, f'M_{name}(k)', target.format(f'_{name}')
      ),
      context=context,
      parameters=0,
      passes_on=text,
    )
    for name, text in feeds.items()
  ]
  how, read = options.of_memory(), options.read
  if _is_static(options, how):
    return levels
  targets = {'self': 'M(v)', 'slow': 'v', 'mixed': '(s M(v) + (1 - s) v)'}
  objective = inner_objective(how.objective, 'M(k)', targets[how.target])
  errors = 'errors of the first layer' if how.objective == 'delta' else 'errors'
  memory = Level(
    component='memory',
    frequency=per_token(how.chunk if read == 'chunk' else 1),
    objective=f'{objective}, {errors} at {how.chunk}-token chunks',
    context=context,
    parameters=0,
    passes_on='its reads, to the block',
  )
  return [*levels, memory]


def _check(sizes: Sizes, options: TitansOptions) -> None:
  small, large = sorted((options.chunk_size, options.projection_chunk_size))
  if large % small:
    raise ValueError(
      f'titans.chunk_size={options.chunk_size} and '
      f'titans.projection_chunk_size={options.projection_chunk_size}: one must '
      f'divide the other; try {large} for both.'
    )
  for chunk in (options.chunk_size, options.projection_chunk_size):
    stream.check_kernel(sizes.kernel, chunk)
  if options.projections == 'slow' and (
    options.self_modifying or options.q_memory
  ):
    raise ValueError(
      "titans.projections='slow' leaves no memories that make k, v, eta, alpha "
      'or q: set titans.self_modifying=False and titans.q_memory=False.'
    )
  prefixes = ('titans.', 'titans.projection_')
  for how, prefix in zip(options.learning(), prefixes, strict=False):
    how.check(prefix)
  stream.check_whole(sizes.kernel, sizes.seq_len, large)


def _chunks(options: TitansOptions) -> list[int]:
  if options.self_modifying:
    return [options.chunk_size, options.projection_chunk_size]
  return [options.chunk_size]


PART = Part(
  options=TitansOptions,
  build=_build,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  divided=divided_heads,
  chunks=_chunks,
  metrics=metrics,
  settings={'paper': PAPER, 'lmm': LMM, 'dla': DLA},
  # A gate has the parameters of an eighth of the feed-forward.
  hidden_multiple=lambda options: 7 / 8 if options.output_gate else 1.0,
)
