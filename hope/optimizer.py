"""The optimizer of a run: any rule of `optimizers`, chosen by its name."""

import ast
from collections.abc import Callable, Sequence
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import ml_collections
import optax

from hope.blocks import parameters
from hope.fields import check_argument, declared, field, nearest
from hope.parts import Leaf, find
import optimizers

Config = ml_collections.ConfigDict | ml_collections.FrozenConfigDict

# Rules by name. Only the last one contains the learning rate.
RULES: dict[str, Callable[..., Any]] = {
  'adamw': optax.scale_by_adam,
  'muon': optax.contrib.scale_by_muon,
  'm3': optimizers.scale_by_m3,
  'preconditioned_momentum': optimizers.scale_by_preconditioned_momentum,
  'feature_momentum': optimizers.scale_by_feature_momentum,
  'delta_momentum': optimizers.scale_by_delta_momentum,
  'deep_momentum': optimizers.scale_by_deep_momentum,
  'associative_momentum': optimizers.scale_by_associative_momentum,
  'delta_gradient_descent': optimizers.delta_gradient_descent,
}
# Rules that apply to matrices alone; all other parameters take AdamW.
OF_MATRICES = ('muon', 'm3', 'delta_gradient_descent')
# How Muon and M3 split a kernel of several projections into matrices; `split`
# in their options. 'head': each head of each projection is a matrix.
# 'projection': all heads of one projection are. 'whole': the kernel is.
# Choice: 'head', since no other head reads a head's outputs. If heads were
# orthogonalised together, the update of one would depend on the gradients of
# the others. Splitting makes the update of a kernel of three projections
# sqrt(3) times as long.
SPLITS = ('head', 'projection', 'whole')
_SPLIT = ('muon', 'm3')
# Arguments that this module sets itself, or that no text can express.
_GIVEN = ('learning_rate', 'axes', 'weight_dimension_numbers', 'mesh')


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """Options of the optimizer."""

  name: str = field(
    'adamw',
    "The rule. 'muon', 'm3' and 'delta_gradient_descent' are for matrices; "
    'other parameters take AdamW.',
    choices=tuple(RULES),
  )
  options: str = field('', "Arguments of the rule, as 'period=4,alpha=0.3'.")
  learning_rate: float = field(
    3e-3,
    'Peak learning rate, reached after warmup_steps, then cosine to '
    'final_fraction of it at train.steps.',
    above=0,
  )
  other_learning_rate: float | None = field(
    None,
    'Peak learning rate of parameters that are left to AdamW. None: the same.',
    above=0,
  )
  normalize_updates: bool = field(
    False,
    'Scale the updates of each level and rule to a global norm of 1 before the '
    'learning rate: a control that compares directions alone.',
  )
  warmup_steps: int = field(
    20,
    'Steps until the learning rate is at its peak; at most train.steps.',
    unit='updates',
    minimum=0,
  )
  final_fraction: float = field(
    0.1, 'Last learning rate as a share of the peak.', minimum=0
  )
  weight_decay: float = field(
    0.1,
    'Decay of matrices, the embedding and the convolution; '
    "'delta_gradient_descent' has its retention instead.",
    minimum=0,
  )
  b1: float = field(0.9, "Decay of AdamW's first moment.", minimum=0, below=1)
  b2: float = field(0.95, "Decay of AdamW's second moment.", minimum=0, below=1)
  eps: float = field(
    1e-8, "Added to the root of AdamW's second moment.", above=0
  )
  clip_norm: float = field(
    1.0, 'Gradients are scaled down to this global norm.', above=0
  )


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """Length of a run, and the parts of an update."""

  steps: int = field(
    200,
    'Length of the run. The learning rate reaches its last value there.',
    unit='updates',
    minimum=1,
  )
  accumulate: int = field(
    1, 'Micro-batches whose gradients are averaged into one update.', minimum=1
  )


def _path(keys) -> tuple[str, ...]:
  return tuple(str(getattr(k, 'key', k)) for k in keys)


def _of_path(function: Callable[[tuple[str, ...], Any], Any]):
  """A function of a tree, from one of a leaf's path and value."""
  return lambda tree: jax.tree_util.tree_map_with_path(
    lambda keys, x: function(_path(keys), x), tree
  )


# Rows of parameters, see `hope.parts.find`.
Table = Sequence[Leaf]
# The table of a single kernel, on which a rule is tried.
_KERNEL = (Leaf('kernel', PartitionSpec(), '', kind='linear'),)


def _leaf(table: Table, path: tuple[str, ...]) -> Leaf:
  return find(table, '/'.join(path))


def matrix_axes(
  params: Any, table: Table, num_heads: int = 1, split: str = 'whole'
) -> dict[str, Any]:
  """Axes of a model's parameters; None for those that are not matrices.

  Kernels are stacked over layers, those of memories over heads too.

  Args:
    params: nested dict.
    table: of the model's parameters.
    num_heads: of the mixers.
    split: how a kernel of several projections is split, one of SPLITS.
  """

  def axes(path, _):
    leaf = _leaf(table, path)
    if not leaf.is_matrix:
      return None
    if split == 'whole' or leaf.split is None:
      return optimizers.MatrixAxes(-2, -1)
    found = leaf.split
    chosen = found.of_head if split == 'head' else found.of_projection
    return optimizers.SplitAxes(
      -1,
      tuple(size or num_heads for size in found.sizes),
      optimizers.MatrixAxes(*chosen),
    )

  return _of_path(axes)(params)


def parse_options(name: str, text: str) -> dict[str, Any]:
  """Reads `optimizer.options` and tries the rule with them.

  Args:
    name: of the optimizer.
    text: comma-separated 'argument=value'; a value is a Python literal.

  Raises:
    ValueError: for an argument that the rule lacks, or a value that is none, of
      another type, not finite or out of its bounds.
  """
  options = _read(name, text)
  try:
    rule = _make(name, options, 0.1, table=_KERNEL)
    kernel = {'kernel': jax.ShapeDtypeStruct((2, 2), jnp.float32)}
    extra = {'inputs': kernel} if name == 'delta_gradient_descent' else {}
    state = jax.eval_shape(rule.init, kernel)
    jax.eval_shape(rule.update, kernel, state, kernel, **extra)
  except (TypeError, ValueError) as error:
    raise ValueError(f'optimizer.options={text!r}: {error}') from None
  return options


def _read(name: str, text: str) -> dict[str, Any]:
  """The options in a text; raises ValueError for one that the rule lacks."""
  allowed, known = defaults(name), declared(OptimizerOptions)
  options = {}
  try:
    # 'a=1, b=(2, 3)' is the argument list of a call.
    call = ast.parse(f'f({text})', mode='eval').body
    assert isinstance(call, ast.Call) and not call.args
    for keyword in call.keywords:
      assert keyword.arg is not None
      options[keyword.arg] = ast.literal_eval(keyword.value)
  except (SyntaxError, ValueError, AssertionError):
    raise ValueError(
      f'optimizer.options={text!r} cannot be read; write it as '
      "'argument=value,argument=value'."
    ) from None
  for argument, value in options.items():
    if argument not in allowed:
      raise ValueError(
        f'optimizer.options names {argument!r}, which {name} lacks; it has '
        f'{", ".join(allowed)}.{nearest(argument, allowed)}'
      )
    name_in = f'optimizer.options: {argument}'
    if argument in known:  # as 'b1'
      options[argument] = known[argument].check(name_in, value)
    else:
      options[argument] = check_argument(name_in, value, allowed[argument])
  return options


def defaults(name: str) -> dict[str, Any]:
  """The arguments of a rule that options can name, at their defaults."""
  rule = inspect.signature(RULES[name])
  found = {k: v.default for k, v in rule.parameters.items() if k not in _GIVEN}
  return found | ({'split': 'head'} if name in _SPLIT else {})


def _make(
  name: str,
  options: dict[str, Any],
  rate: optax.ScalarOrSchedule,
  *,
  table: Table,
  num_heads: int = 1,
  mesh: Mesh | None = None,
) -> optax.GradientTransformationExtraArgs:
  """A rule with some of its options; only DGD uses the learning rate.

  Raises:
    ValueError: if an option is out of its bounds, or if the rule computes
      eigendecompositions on several CPU devices, which wait for each other for
      ever on a machine of few cores (jax 0.10.2).
  """
  options = dict(options)
  split = options.pop('split', 'whole')
  if split not in SPLITS:
    raise ValueError(f'split={split!r} must be one of {SPLITS}.')
  # The rules of optax do not check theirs.
  optimizers.check(**options)
  if (
    options.get('statistic') == 'outer_product'
    and mesh is not None
    and mesh.size > 1
    and mesh.devices.flat[0].platform == 'cpu'
  ):
    raise ValueError(
      "optimizer.options: statistic='outer_product' runs on one CPU device, "
      f'and there are {mesh.size}; set JAX_NUM_CPU_DEVICES=1.'
    )
  axes = functools.partial(
    matrix_axes, table=table, num_heads=num_heads, split=split
  )
  if name == 'delta_gradient_descent':
    return RULES[name](rate, **options)
  if name == 'muon':
    stacked = optimizers.stacked_matrix_axes
    rule = RULES[name](weight_dimension_numbers=stacked, **options)
    return optimizers.on_matrices(rule, axes)
  if 'axes' in inspect.signature(RULES[name]).parameters:
    options['axes'] = axes
  if mesh is not None and mesh.size > 1 and name == 'm3':
    options['mesh'] = mesh
  return optax.with_extra_args_support(RULES[name](**options))


def arguments(config: Config, name: str) -> dict[str, Any]:
  """All arguments of a rule in a run, those at their defaults included."""
  o = config.optimizer
  found = defaults(name)
  if name == 'adamw':
    found |= {'b1': o.b1, 'b2': o.b2, 'eps': o.eps}
  return found | (_read(name, o.options) if name == o.name else {})


def learning_rate(config: Config) -> optax.Schedule:
  """Linear warm-up, then cosine to final_fraction of the peak."""
  o = config.optimizer
  return optax.warmup_cosine_decay_schedule(
    0.0 if o.warmup_steps else o.learning_rate,
    o.learning_rate,
    o.warmup_steps,
    max(config.train.steps, o.warmup_steps + 1),
    o.learning_rate * o.final_fraction,
  )


def needs_inputs(config: Config) -> bool:
  """Whether `update` takes second moments of the layers' inputs."""
  return config.optimizer.name == 'delta_gradient_descent'


def kind(config: Config, leaf: Leaf) -> str:
  """Name of the rule that a parameter takes."""
  name = config.optimizer.name
  if name not in OF_MATRICES:
    return name
  chosen = leaf.is_linear if needs_inputs(config) else leaf.is_matrix
  return name if chosen else 'adamw'


def make_rule(
  config: Config, name: str, steps: int = 1, mesh: Mesh | None = None
) -> optax.GradientTransformation:
  """A rule with decay and learning rate, for a level that moves every `steps`.

  The learning rate is that of the training step that the update is made at, the
  last of its period.
  """
  o, schedule = config.optimizer, learning_rate(config)
  ratio = 1.0
  if name != o.name and o.other_learning_rate is not None:
    ratio = o.other_learning_rate / o.learning_rate

  def rate(count):
    return ratio * schedule((count + 1) * steps - 1)

  table = parameters(config)
  rule = _make(
    name,
    arguments(config, name),
    rate,
    table=table,
    num_heads=config.model.num_heads,
    mesh=mesh,
  )
  if name == 'delta_gradient_descent':
    if not o.normalize_updates:
      return rule
    normalized = optax.normalize_by_update_norm()
    return optax.chain(rule, normalized, optax.scale_by_schedule(rate))
  parts: list[optax.GradientTransformation] = [rule]
  if o.normalize_updates:
    parts.append(optax.normalize_by_update_norm())
  decays = _of_path(lambda path, _: _leaf(table, path).decays)
  parts.append(optax.add_decayed_weights(o.weight_decay, decays))
  return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def make_optimizer(
  config: Config, mesh: Mesh | None = None
) -> optax.GradientTransformationExtraArgs:
  """The optimizer of a resolved configuration.

  Eq. 71: a parameter of period p, as those of an outer CMS level, averages the
  gradients of p steps and then makes one update.

  Args:
    config: resolved.
    mesh: whose devices share the matrices that M3 orthogonalises. None: every
      device orthogonalises all of them.
  """
  table = parameters(config)
  periods = sorted({leaf.period for leaf in table})
  # In a fixed order: that of a set differs between starts, and the compilation
  # cache finds a program by its text.
  names = [config.optimizer.name]
  if config.optimizer.name in OF_MATRICES:
    names.append('adamw')

  def level(steps: int):
    return optax.partition(
      {name: make_rule(config, name, steps, mesh) for name in names},
      _of_path(lambda path, _: kind(config, _leaf(table, path))),
    )

  rule = optimizers.multi_timescale(
    {steps: (steps, level(steps)) for steps in periods},
    _of_path(lambda path, _: _leaf(table, path).period),
  )
  return optax.chain(
    optax.clip_by_global_norm(config.optimizer.clip_norm), rule
  )
