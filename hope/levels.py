"""The levels of a model and its optimizer, ordered by update frequency.

Definitions 2-4 of arXiv:2512.24695: everything that learns is an associative
memory with a frequency, an objective and a context that it compresses; what
has one frequency is one level.

Choice: a memory's frequency is that of the state it is read at. The rule (A)
writes at every token, but only `memory` with `read='token'` is read in
between; everything else is read as it was at its chunk's start, so its
frequency is one per chunk.
"""

import re
from typing import NamedTuple

from flax import nnx
import jax
import ml_collections
import rich.box
import rich.console
import rich.table

from hope import optimizer
from hope.model import Hope

# Columns of a table that is not shown on a terminal.
_WIDTH = 100


class Level(NamedTuple):
  """A component and its place in the order.

  Attributes:
    component: name, for people.
    frequency: '1 update per token', '1/64 updates per token', '1 per step',
      '1/4 per step'; a step is one of training.
    objective: what its updates descend on.
    context: what it compresses.
    parameters: learned by training, in all layers; 0 for fast states and the
      optimizer's memories, which hold none of their own.
    passes_on: how its knowledge reaches another level.
  """

  component: str
  frequency: str
  objective: str
  context: str
  parameters: int
  passes_on: str


# Path of a parameter, '/' between its parts -> component of the slow weights.
# The first rule that matches the whole path counts.
_SLOW = (
  (r'embed/embedding', 'embedding (and output)'),
  (r'(.*/)?norm/scale', 'norms'),
  (r'blocks/mixer/conv/kernel', 'convolution'),
  (r'blocks/mixer/(k|v|q|eta|alpha|memory)/(up|down)', r'initial state of \1'),
  (r'blocks/cms/level_(\d+)/(up|down)', r'initial state of CMS level \1'),
  (r'blocks/mixer/(mix|query|qkv|output)/kernel', 'projections'),
  (r'blocks/cms/level_\d+/key_value/kernel', 'projections'),
  (r'blocks/mixer/beta/(kernel|bias)', 'gates and rates'),
  (r'blocks/mixer/(eta|alpha)_bias', 'gates and rates'),
  (r'blocks/mixer/(memory|projection)_rate', 'gates and rates'),
  (r'blocks/cms/level_\d+/gates/(kernel|bias)', 'gates and rates'),
  (r'blocks/cms/mix', 'gates and rates'),
)


def component(path: str, cms_mode: str) -> str:
  """The component of the slow weights that a parameter belongs to.

  Args:
    path: of the parameter, '/' between its parts.
    cms_mode: 'outer' or 'in_context'.

  Raises:
    ValueError: for a path that no rule matches.
  """
  if cms_mode == 'outer':
    match = re.match(r'blocks/cms/level_(\d+)/', path)
    if match:  # the whole block, its norm included, moves at its own period
      return f'CMS level {match[1]}'
  for rule, name in _SLOW:
    match = re.fullmatch(rule, path)
    if match:
      return match.expand(name)
  raise ValueError(
    f'The parameter {path} belongs to no component; add a rule to hope.levels.'
  )


def count_parameters(
  config: ml_collections.FrozenConfigDict,
) -> dict[str, int]:
  """Parameters of every component, in all layers; builds no array."""
  counts: dict[str, int] = {}
  for path, size in _parameters(config):
    name = component('/'.join(path), config.model.cms.mode)
    counts[name] = counts.get(name, 0) + size
  return counts


def _parameters(
  config: ml_collections.FrozenConfigDict,
) -> list[tuple[tuple[str, ...], int]]:
  """Path and size of every parameter; builds no array."""
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  return [
    (tuple(str(key.key) for key in keys), leaf.size)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]


def _per_token(chunk: int) -> str:
  return '1 update per token' if chunk == 1 else f'1/{chunk} updates per token'


def _per_step(period: int) -> str:
  return '1 per step' if period == 1 else f'1/{period} per step'


def _inner_objective(name: str, output: str, target: str) -> str:
  if name == 'l2':
    return f'1/2 |{output} - {target}|^2'
  return f'-<{output}, {target}>'


def _order(level: Level) -> tuple[bool, float]:
  """Sorts by frequency, fastest first: by token before by step."""
  match = re.match(r'1(?:/(\d+))?', level.frequency)
  period = int(match[1] or 1) if match else 1
  return level.frequency.endswith('step'), period


def _fast(config: ml_collections.FrozenConfigDict) -> list[Level]:
  """Levels whose state moves within a sequence."""
  model = config.model
  levels = []
  if model.mixer == 'attention':
    levels.append(
      Level(
        'keys and values of attention',
        _per_token(1),
        'none: kept as they are',
        f'last {model.attention.max_context:,} tokens',
        0,
        'read by each token',
      )
    )
  elif model.mixer == 'titans':
    levels += _titans(model.titans)
  else:
    raise ValueError(f'The levels of model.mixer={model.mixer!r} are missing.')
  if model.cms.mode == 'in_context':
    to_next = model.cms.variant == 'sequential'
    where = 'to the next level' if to_next else 'summed over levels'
    for j, period in enumerate(model.cms.periods):
      levels.append(
        Level(
          f'CMS level {j}',
          _per_token(period),
          _inner_objective(model.cms.objective, 'M(k)', 'v'),
          'its inputs so far',
          0,
          f'its output, {where}',
        )
      )
  return levels


def _titans(options) -> list[Level]:
  """The fast states of the memories of self-referential Titans."""
  if options.eta_max == 0 and options.anchor == 'initial':
    return []  # nothing is written and nothing decays: they are constant
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
  levels = []
  if options.self_modifying:
    for name, text in feeds.items():
      levels.append(
        Level(
          name,
          _per_token(options.projection_chunk_size),
          _inner_objective(options.objective, f'M_{name}(k)', f'M_{name}(v)'),
          'keys, values so far',
          0,
          text,
        )
      )
  target = 'M(v)' if options.self_target else 'v'
  levels.append(
    Level(
      'memory',
      _per_token(1 if options.read == 'token' else options.chunk_size),
      _inner_objective(options.objective, 'M(k)', target)
      + f', errors at {options.chunk_size}-token chunks',
      'keys, values so far',
      0,
      'its reads, to the block',
    )
  )
  return levels


def _slow(
  config: ml_collections.FrozenConfigDict, counts: dict[str, int]
) -> list[Level]:
  """Levels that are parameters, and the memories of the optimizer."""
  cms = config.model.cms
  levels = []
  for name, size in counts.items():
    period, passes_on = 1, 'its values'
    match = re.fullmatch(r'CMS level (\d+)', name)
    if match:
      period = cms.periods[int(match[1])]
      passes_on = 'its output, to the next level'
      if cms.variant == 'independent':
        passes_on = 'its output, summed over levels'
    elif name.startswith('initial state'):
      passes_on = 'sequences start from it'
      memories = ('k', 'v', 'q', 'eta', 'alpha')
      if (
        not config.model.titans.self_modifying
        and name.removeprefix('initial state of ') in memories
      ):
        passes_on = 'its values: no learning in context'
    levels.append(
      Level(
        name,
        _per_step(period),
        'next-token loss',
        'training data',
        size,
        passes_on,
      )
    )
  return levels + _optimizer(config)


# The memories of a rule, by its name in `hope.optimizer`: component,
# objective or what it averages, and updates of its level per update of the
# memory. `{x}` is the argument x of the rule.
_MEMORIES: dict[str, tuple[tuple[str, str, str], ...]] = {
  'adamw': (
    ('AdamW first moment', '{b1}-decayed mean of g', '1'),
    ('AdamW second moment', '{b2}-decayed mean of g^2', '1'),
  ),
  'muon': (('Muon momentum', '{beta}-decayed mean of g', '1'),),
  'm3': (
    ('M3 fast momentum', '{b1}-decayed mean of g', '1'),
    ('M3 slow momentum', '{b3}-decayed mean over windows of g', '{period}'),
    ('M3 second moment', '{b2}-decayed mean of g^2', '1'),
  ),
  'preconditioned_momentum': (
    ('momentum', '-<m, P g>, {decay} of m kept', '1'),
  ),
  'feature_momentum': (
    ('feature momentum', '-<m, phi(g)>, {decay} of m kept', '1'),
  ),
  'delta_momentum': (
    (
      'delta momentum',
      '-<m, P g> and {erase}/2 |m^T g|^2, {decay} of m kept',
      '1',
    ),
  ),
  'deep_momentum': (
    ('deep momentum', 'MLP of g to I ({objective}), {decay} kept', '1'),
  ),
  'associative_momentum': (
    ('associative momentum M', '{b1}-decayed mean of g', '1'),
    ('associative momentum H', '{b2}-decayed mean of {statistic} of g', '1'),
  ),
  'delta_gradient_descent': (),
}


def _optimizer(config: ml_collections.FrozenConfigDict) -> list[Level]:
  """The optimizer's memories, for each period and rule of the parameters."""
  sizes: dict[tuple[int, str], int] = {}
  for path, size in _parameters(config):
    key = optimizer.period(config, path), optimizer.kind(config, path)
    sizes[key] = sizes.get(key, 0) + size
  levels = []
  periods = sorted({period for period, _ in sizes})
  suffix = lambda period: '' if len(periods) == 1 else f' ({_per_step(period)})'
  for period in periods:
    size = sum(n for (p, _), n in sizes.items() if p == period)
    if period > 1:
      levels.append(
        Level(
          f'gradient accumulator{suffix(period)}',
          _per_step(1),
          'mean of gradients',
          f'{period} gradients of {size:,} parameters',
          0,
          'its mean, to the memories',
        )
      )
  for (period, name), size in sizes.items():
    arguments = optimizer.arguments(config, name)
    for component, objective, ratio in _MEMORIES[name]:
      if 'second moment' in component and not arguments.get(
        'second_moment', True
      ):
        continue
      levels.append(
        Level(
          component + suffix(period),
          _per_step(period * int(ratio.format(**arguments))),
          objective.format(**arguments),
          f'past gradients of {size:,} parameters',
          0,
          'the update it makes',
        )
      )
  return levels


def levels(config: ml_collections.FrozenConfigDict) -> list[Level]:
  """All levels, fastest first.

  Args:
    config: a resolved configuration (`hope.config.resolve`).

  Raises:
    ValueError: if a parameter of the model belongs to no component.
  """
  slow = _slow(config, count_parameters(config))
  return sorted(_fast(config) + slow, key=_order)


def table(config: ml_collections.FrozenConfigDict) -> str:
  """The levels as text that fits the terminal, or 100 columns without one.

  Colours are used on a terminal alone.
  """
  console = rich.console.Console(highlight=False)
  if not console.is_terminal:
    console = rich.console.Console(highlight=False, width=_WIDTH)
  grid = rich.table.Table(
    box=rich.box.SIMPLE_HEAD,
    show_footer=True,
    padding=(0, 1, 0, 0),
    pad_edge=False,
  )
  rows = levels(config)
  total = sum(row.parameters for row in rows)
  for name, footer in (
    ('component', 'total'),
    ('frequency', ''),
    ('objective', ''),
    ('context', ''),
    ('parameters', f'{total:,}'),
    ('passes on', ''),
  ):
    number = name == 'parameters'
    grid.add_column(
      name,
      footer,
      justify='right' if number else 'left',
      no_wrap=number,
      overflow='fold',
    )
  for row in rows:
    size = f'{row.parameters:,}' if row.parameters else '-'
    grid.add_row(*row[:4], size, row.passes_on)
  with console.capture() as capture:
    console.print(grid, markup=False)
  return capture.get()
