"""The Continuum Memory System: MLP blocks, each with a frequency of its own.

Eq. 70-74 of arXiv:2512.24695. Level l is x -> x + act(norm(x) @ up) @ down.

  outer       the blocks are parameters; the optimizer updates level l every
              periods[l] training steps with the gradients in between (Eq. 71).
  in_context  the blocks are fast weights whose initial state is a parameter;
              level l takes its step of rule (A) every periods[l] tokens, on
              keys and values from slow projections of its input.

Choice: in_context levels have one memory of the whole width, anchored to its
initial state and without momentum, read at the state of the chunk's start;
k = sqrt(d) W_k x / |W_k x|, the scale at which the block reads its input, and
v = W_v x / |W_v x|; eta and alpha are slow gates per token. eta is at most
1 / (chunk d), since |k|^2 = d and gradients are frozen over the chunk.
"""

import dataclasses
import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from hope.fields import field
from hope.layers.dense import dense_layer
from hope.layers.norm import RMSNorm, l2_normalize
from hope.layers.precision import at_least_float32
from hope.memory import finite, mlp, stream
from hope.parallel import placement
from hope.parts import (
  KEY_VALUE,
  Divided,
  InnerLosses,
  Leaf,
  Level,
  Part,
  Sizes,
  inner_objective,
  per_token,
)


@dataclasses.dataclass(frozen=True)
class CMSOptions:
  """Options of the levels."""

  mode: str = field(
    'outer',
    "'outer': blocks are parameters, level l updated every periods[l] training "
    "steps. 'in_context': blocks are fast weights, level l updated every "
    'periods[l] tokens.',
    choices=('outer', 'in_context'),
  )
  variant: str = field(
    'sequential',
    "'sequential' (Eq. 70, 73) or 'independent' (Eq. 74).",
    choices=('sequential', 'independent'),
  )
  periods: tuple[int, ...] = field(
    (1, 1, 1, 1),
    'One period per level, fastest first.',
    unit='training steps or tokens, by mode',
    minimum=1,
  )
  hidden_multiple: float | None = field(
    None,
    "Hidden width of a level as a multiple of the model's width. None: 1, or "
    "17/16 beside attention, which has no memories' parameters.",
    above=0,
    maximum=256,
  )
  objective: str = field(
    'l2',
    "Objective of the inner learning of 'in_context' levels.",
    choices=('l2', 'dot'),
  )


class LevelState(NamedTuple):
  """Fast state of an in-context level; () for an outer one.

  Attributes:
    memory: mlp.State, up [b, 1, d, f], down ([b, 1, 1, f, d],).
    position: int32 [] or, where documents have started, [b], tokens since the
      level's chunk began.
  """

  memory: mlp.State
  position: jax.Array


class OuterLevel(nnx.Module):
  """A block whose weights move only between training steps."""

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    norm_eps: float,
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.norm = RMSNorm(width, norm_eps)

    def dense(i: int, o: int) -> nnx.Linear:
      return dense_layer(i, o, dtype=dtype, rngs=rngs)

    self.up, self.down = dense(width, hidden), dense(hidden, width)

  def init_state(self, batch: int) -> tuple[()]:
    """Nothing: the block has no memory within a sequence."""
    del batch
    return ()

  def __call__(
    self,
    x: jax.Array,
    state: tuple[()] | None = None,
    starts: jax.Array | None = None,
  ):
    """Returns (act(norm(x) @ up) @ down, ()) for x [b, t, width].

    `starts`, bool [b, t], changes nothing: no state is kept.
    """
    del state, starts
    hidden = placement.constrain(self.up(self.norm(x)), 'hidden')
    return self.down(mlp.act(hidden)), ()


def _one_head(x: jax.Array) -> jax.Array:
  """[b, t, d] as [b, t, 1, d]."""
  return x[:, :, None]


class InContextLevel(nnx.Module):
  """A block whose weights learn every `period` tokens of the sequence."""

  def __init__(
    self,
    width: int,
    hidden: int,
    *,
    name: str,
    period: int,
    objective: str,
    norm_eps: float,
    dtype: jax.typing.DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.period, self.objective, self.dtype = period, objective, dtype
    self.name, self.measures = name, False
    self.norm = RMSNorm(width, norm_eps)
    self.key_value = dense_layer(width, 2 * width, dtype=dtype, rngs=rngs)
    # eta starts at half its bound, alpha at 0.9975.
    self.gates = dense_layer(
      width,
      2,
      use_bias=True,
      dtype=dtype,
      kernel_init=nnx.initializers.zeros,
      bias_init=lambda *_: jnp.array([0.0, 6.0]),
      rngs=rngs,
    )

    def normal(i: int, o: int) -> nnx.Param:
      return nnx.Param(jax.random.normal(rngs.params(), (i, o)) / i**0.5)

    self.up, self.down = normal(width, hidden), normal(hidden, width)

  def _kernels(self) -> mlp.Kernels:
    return mlp.Kernels(self.up[...][None], (self.down[...][None, None],))

  def init_state(self, batch: int) -> LevelState:
    """The deviations from the initial block: zero."""
    zeros = jax.tree.map(
      lambda x: jnp.zeros((batch, *x.shape)), self._kernels()
    )
    zeros = placement.constrain(zeros, 'level')
    return LevelState(mlp.State(zeros, zeros, None), jnp.int32(0))

  def __call__(
    self,
    x: jax.Array,
    state: LevelState | None = None,
    starts: jax.Array | None = None,
  ):
    """Returns (act(norm(x) @ up_t) @ down_t, state) for x [b, t, width].

    The block is the initial one where a document starts: `starts` is bool
    [b, t], as in `stream.run`.
    """
    width = x.shape[-1]
    position = None
    if state is None:
      state = self.init_state(x.shape[0])
    else:
      position = state.position
    x, spoiled = finite.isolate(x, starts)
    z = self.norm(x)
    k, v = jnp.split(at_least_float32(self.key_value(z)), 2, axis=-1)
    gates = jax.nn.sigmoid(at_least_float32(self.gates(z)))
    base = mlp.spread(self._kernels(), x.shape[0])

    def body(step: stream.Step):
      z, k, v, gates = step.x
      eta = step.counted(gates[..., :1] / (self.period * width))
      targets = (v[..., None, :, :],)
      new, trace, _ = mlp.learn(
        step.consts,
        step.start,
        step.now,
        step.trace,
        k=k,
        targets=targets,
        rates=mlp.Rates(
          up=eta,
          down=eta,
          decay=step.form.decays(gates[..., 1:], None, step.valid),
          erase=True,
          error_max=None,
          form=step.form,
        ),
        objective=self.objective,
        residual=False,
      )
      frozen = mlp.add(step.consts, step.start)
      (y,) = mlp.forward(frozen, z, residual=False)
      measured = ()
      if self.measures:
        measured = mlp.losses(frozen, k, targets, self.objective, False)
      return new, trace, (y[..., 0, :, :], measured)

    xs = at_least_float32(z), width**0.5 * l2_normalize(k), l2_normalize(v)
    xs = jax.tree.map(_one_head, (*xs, gates))
    memory, position, (y, measured) = stream.run(
      body,
      base,
      state.memory,
      position,
      placement.constrain(xs, 'level'),
      chunk=self.period,
      starts=starts,
    )
    if spoiled is not None:
      memory = finite.spoil(memory, spoiled[:, -1])
    if self.measures:
      losses = finite.spoil(measured[0][:, :, 0, 0], spoiled)
      self.inner_losses = InnerLosses({self.name: losses})
    y = finite.spoil(y[:, :, 0].astype(x.dtype), spoiled)
    return y, LevelState(memory, position)


class ContinuumMemory(nnx.Module):
  """All levels: `init_state(batch)`, `__call__(x, state) -> (x, state)`."""

  def __init__(
    self,
    width: int,
    options: CMSOptions,
    *,
    norm_eps: float = 1e-6,
    dtype: jax.typing.DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Builds the levels.

    Args:
      width: of the residual stream.
      options: of the levels, hidden_multiple filled in.
      norm_eps: of the levels' norms.
      dtype: of matmul operands.
      rngs: for parameters.

    Raises:
      ValueError: if hidden_multiple is None.
    """
    if options.hidden_multiple is None:
      raise ValueError('hidden_multiple=None: how wide shall a level be?')
    hidden = round(width * options.hidden_multiple)
    self.variant, self.num_levels = options.variant, len(options.periods)
    if options.variant == 'independent':
      self.mix = nnx.Param(jnp.zeros(len(options.periods)))
    for j, period in enumerate(options.periods):
      if options.mode == 'outer':
        level = OuterLevel(
          width, hidden, norm_eps=norm_eps, dtype=dtype, rngs=rngs
        )
      else:
        level = InContextLevel(
          width,
          hidden,
          name=f'cms_level_{j}',
          period=period,
          objective=options.objective,
          norm_eps=norm_eps,
          dtype=dtype,
          rngs=rngs,
        )
      setattr(self, f'level_{j}', level)

  def _levels(self):
    return [getattr(self, f'level_{j}') for j in range(self.num_levels)]

  def init_state(self, batch: int) -> tuple:
    """One state per level."""
    return tuple(level.init_state(batch) for level in self._levels())

  def __call__(
    self,
    x: jax.Array,
    state: tuple | None = None,
    starts: jax.Array | None = None,
  ):
    """Passes x [b, t, width] through the levels, residuals included.

    In-context levels begin anew where `starts`, bool [b, t], is True.
    `sequential` (Eq. 70, 73): each level reads what the one before it made.
    `independent` (Eq. 74): all read x; Choice: their outputs are summed with
    weights l softmax(mix) over the l levels, which start at one each.
    """
    state = state or (None,) * self.num_levels
    new = []
    if self.variant == 'sequential':
      for level, level_state in zip(self._levels(), state, strict=True):
        y, level_state = level(x, level_state, starts)
        x += y
        new.append(level_state)
      return x, tuple(new)
    weights = self.num_levels * jax.nn.softmax(self.mix[...])
    total = x
    for j, level in enumerate(self._levels()):
      y, level_state = level(x, state[j], starts)
      total += weights[j].astype(x.dtype) * y
      new.append(level_state)
    return total, tuple(new)


def _multiple(sizes: Sizes, options: CMSOptions) -> float:
  """Hidden width of a level as a multiple of the width."""
  if options.hidden_multiple is None:
    return sizes.hidden_multiple
  return options.hidden_multiple


def _hidden(sizes: Sizes, options: CMSOptions) -> int:
  return round(sizes.width * _multiple(sizes, options))


def _build(sizes: Sizes, options: CMSOptions, *, rngs: nnx.Rngs):
  multiple = _multiple(sizes, options)
  options = dataclasses.replace(options, hidden_multiple=multiple)
  return ContinuumMemory(
    sizes.width,
    options,
    norm_eps=sizes.norm_eps,
    dtype=sizes.dtype,
    rngs=rngs,
  )


def _passes_on(options: CMSOptions) -> str:
  if options.variant == 'sequential':
    return 'its output, to the next level'
  return 'its output, summed over levels'


def _outer_level(j: int, period: int, options: CMSOptions) -> list[Leaf]:
  """Parameters of an outer level: all move at its own period."""
  leaf = functools.partial(
    Leaf,
    component=f'CMS level {j}',
    period=period,
    passes_on=_passes_on(options),
  )
  return [
    leaf(f'level_{j}/norm/scale', P()),
    leaf(f'level_{j}/up/kernel', P('fsdp', 'tensor'), kind='linear'),
    leaf(f'level_{j}/down/kernel', P('tensor', 'fsdp'), kind='linear'),
  ]


def _in_context_level(j: int) -> list[Leaf]:
  """Parameters of an in-context level.

  Its kernels are used whole: what a token learns with a part of the hidden
  units would need an all-reduce per chunk.
  """
  initial = functools.partial(
    Leaf,
    component=f'initial state of CMS level {j}',
    kind='matrix',
    used_whole=True,
    passes_on='sequences start from it',
  )
  return [
    Leaf(f'level_{j}/norm/scale', P(), 'norms'),
    initial(f'level_{j}/up', P('fsdp', 'tensor')),
    initial(f'level_{j}/down', P('tensor', 'fsdp')),
    Leaf(
      f'level_{j}/key_value/kernel',
      P('fsdp', 'tensor'),
      'projections',
      kind='linear',
      split=KEY_VALUE,
      used_whole=True,
    ),
    Leaf(
      f'level_{j}/gates/kernel', P('fsdp'), 'gates and rates', kind='linear'
    ),
    Leaf(f'level_{j}/gates/bias', P(), 'gates and rates'),
  ]


def _parameters(options: CMSOptions) -> list[Leaf]:
  found = [Leaf('mix', P(), 'gates and rates')]
  for j, period in enumerate(options.periods):
    if options.mode == 'outer':
      found += _outer_level(j, period, options)
    else:
      found += _in_context_level(j)
  return found


def _levels(sizes: Sizes, options: CMSOptions) -> list[Level]:
  """Rows of the in-context levels; outer ones are parameters."""
  del sizes
  if options.mode == 'outer':
    return []
  return [
    Level(
      component=f'CMS level {j}',
      frequency=per_token(period),
      objective=inner_objective(options.objective, 'M(k)', 'v'),
      context='its inputs so far',
      parameters=0,
      passes_on=_passes_on(options),
    )
    for j, period in enumerate(options.periods)
  ]


def _check(sizes: Sizes, options: CMSOptions) -> None:
  if _hidden(sizes, options) < 1:
    raise ValueError(
      f'model.cms.hidden_multiple={options.hidden_multiple} of model.width='
      f'{sizes.width} is no hidden unit; give at least {1 / sizes.width:g}.'
    )


def _divided(sizes: Sizes, options: CMSOptions) -> list[Divided]:
  hidden = _hidden(sizes, options)
  return [Divided('the hidden width of a level', hidden, ('tensor',))]


def _least_parameters(sizes: Sizes, options: CMSOptions) -> int:
  return 2 * sizes.width * _hidden(sizes, options) * len(options.periods)


def _chunks(options: CMSOptions) -> tuple[int, ...]:
  return tuple(options.periods) if options.mode == 'in_context' else ()


PART = Part(
  options=CMSOptions,
  build=_build,
  parameters=_parameters,
  levels=_levels,
  check=_check,
  divided=_divided,
  least_parameters=_least_parameters,
  chunks=_chunks,
  with_hidden=lambda hidden, width: {'hidden_multiple': hidden / width},
)
