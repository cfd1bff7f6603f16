"""The levels of a model and its optimizer, ordered by update frequency.

Definitions 2-4 of arXiv:2512.24695: everything that learns is an associative
memory with a frequency, an objective and a context that it compresses; what
has one frequency is one level.

Choice: a memory's frequency is that of the state it is read at. The rule (A)
writes at every token, but only `memory` with `read='token'` is also read at
every token. All others are read at the state of their chunk's start, so their
frequency is one per chunk.
"""

import re

from flax import nnx
import jax
import ml_collections
import rich.box
import rich.table

from hope import command_line, optimizer
from hope.blocks import parameters, parts
from hope.model import Hope
from hope.parts import Leaf, Level, find, per_step


def count_parameters(
  config: ml_collections.FrozenConfigDict,
) -> dict[str, int]:
  """Parameters of every component, in all layers; builds no array."""
  counts: dict[str, int] = {}
  for leaf, size in _parameters(config):
    counts[leaf.component] = counts.get(leaf.component, 0) + size
  return counts


def _parameters(
  config: ml_collections.FrozenConfigDict,
) -> list[tuple[Leaf, int]]:
  """Row and size of every parameter; builds no array."""
  table = parameters(config)
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  return [
    (find(table, '/'.join(str(key.key) for key in keys)), leaf.size)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]


def _order(level: Level) -> tuple[bool, float]:
  """Sorts by frequency, fastest first: by token before by step."""
  match = re.match(r'1(?:/(\d+))?', level.frequency)
  period = int(match[1] or 1) if match else 1
  return level.frequency.endswith('step'), period


def _fast(config: ml_collections.FrozenConfigDict) -> list[Level]:
  """Levels whose state moves within a sequence; equal blocks share theirs."""
  found = [
    level
    for sizes, part, options in parts(config)
    for level in part.levels(sizes, options)
  ]
  return list(dict.fromkeys(found))


def _slow(leaves: list[tuple[Leaf, int]]) -> list[Level]:
  """Levels that are parameters.

  Args:
    leaves: row and size of every parameter.
  """
  sizes: dict[tuple[str, int, str], int] = {}
  for leaf, size in leaves:
    row = leaf.component, leaf.period, leaf.passes_on
    sizes[row] = sizes.get(row, 0) + size
  return [
    Level(
      component=name,
      frequency=per_step(period),
      objective='next-token loss',
      context='training data',
      parameters=size,
      passes_on=passes_on,
    )
    for (name, period, passes_on), size in sizes.items()
  ]


# The memories of each rule of `hope.optimizer`: component, objective (or what
# it averages), and updates of the parameters per update of the memory. `{x}` is
# the argument x of the rule.
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


def _optimizer(
  config: ml_collections.FrozenConfigDict, leaves: list[tuple[Leaf, int]]
) -> list[Level]:
  """The optimizer's memories, for each period and rule of the parameters.

  Args:
    config: a resolved configuration.
    leaves: row and size of every parameter.
  """
  sizes: dict[tuple[int, str], int] = {}
  for leaf, size in leaves:
    key = leaf.period, optimizer.kind(config, leaf)
    sizes[key] = sizes.get(key, 0) + size
  levels = []
  periods = sorted({period for period, _ in sizes})
  suffixes = {
    period: '' if len(periods) == 1 else f' ({per_step(period)})'
    for period in periods
  }
  for period, suffix in suffixes.items():
    size = sum(n for (p, _), n in sizes.items() if p == period)
    if period > 1:
      levels.append(
        Level(
          component=f'gradient accumulator{suffix}',
          frequency=per_step(1),
          objective='mean of gradients',
          context=f'{period} gradients of {size:,} parameters',
          parameters=0,
          passes_on='its mean, to the memories',
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
          component=component + suffixes[period],
          frequency=per_step(period * int(ratio.format(**arguments))),
          objective=objective.format(**arguments),
          context=f'past gradients of {size:,} parameters',
          parameters=0,
          passes_on='the update it makes',
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
  leaves = _parameters(config)  # traces the model
  found = _fast(config) + _slow(leaves) + _optimizer(config, leaves)
  return sorted(found, key=_order)


def table(config: ml_collections.FrozenConfigDict) -> str:
  """The levels as text that fits the terminal, or 100 columns without one.

  Colours are used on a terminal alone.
  """
  console = command_line.console()
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
