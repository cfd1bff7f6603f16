"""What the rest of the system asks of a mixer or a feed-forward.

A file of `hope/mixers` or `hope/feedforward` holds a module, its options, and a
`Part`, which a line of `MIXERS` or `FEEDFORWARD` names. Nothing else in the
project knows it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re
from typing import Any, NamedTuple, Protocol

from flax import nnx
import jax
from jax.sharding import PartitionSpec as P

# Kinds of parameters, as the optimizer and matmuls tell them apart:
#   linear     kernel of an nnx.Linear: a matrix (the last two axes)
#   matrix     another matrix, such as the initial state of a memory
#   embedding  a table of rows
#   filter     a depthwise convolution
#   vector     a scale, a bias, a rate
# All but vectors have weight decay. Linear kernels and embeddings are cast to
# the dtype of matmuls.
KINDS = ('linear', 'matrix', 'embedding', 'filter', 'vector')


class Split(NamedTuple):
  """The matrices in a kernel of several projections, for Muon and M3.

  Attributes:
    sizes: shape that the outputs are reshaped to; 0: the number of heads.
    of_head: axes (inputs, outputs) of the matrix of one head of one projection.
    of_projection: the same, of the matrix of all heads of one projection.
  """

  sizes: tuple[int, ...]
  of_head: tuple[Any, Any]
  of_projection: tuple[Any, Any]


# Outputs [heads, projections, width of a head].
BY_HEAD = Split((0, 3, -1), (-4, -1), (-4, (-3, -1)))
# Outputs [heads, width of a head].
ONE_PROJECTION = Split((0, -1), (-3, -1), (-3, (-2, -1)))
# Outputs [2, width].
KEY_VALUE = Split((2, -1), (-3, -1), (-3, -1))


@dataclasses.dataclass(frozen=True)
class Leaf:
  r"""One kind of parameter.

  Attributes:
    pattern: regular expression of its path, with '/' between the names; the
      path starts at the part's module, in the table of a whole model
      (`hope.blocks.parameters`) at the model.
    spec: how the array of one layer is stored on the mesh.
    component: its row in the table of levels; \1 is the pattern's first group.
    kind: one of KINDS.
    split: of a kernel of several projections; None: it is one matrix.
    used_whole: stored split over `tensor`, but gathered before use.
    period: training steps between its updates.
    passes_on: how its knowledge reaches other levels, for people.
  """

  pattern: str
  spec: P
  component: str
  _: dataclasses.KW_ONLY
  kind: str = 'vector'
  split: Split | None = None
  used_whole: bool = False
  period: int = 1
  passes_on: str = 'its values'

  @property
  def is_matrix(self) -> bool:
    """Whether optimizers of matrices, as Muon and M3, apply to it."""
    return self.kind in ('linear', 'matrix')

  @property
  def is_linear(self) -> bool:
    """Whether it is the kernel of a Linear layer, whose inputs are known."""
    return self.kind == 'linear'

  @property
  def decays(self) -> bool:
    """Whether weight decay applies to it."""
    return self.kind != 'vector'

  @property
  def in_products(self) -> bool:
    """Whether it is cast to the dtype of matmuls."""
    return self.kind in ('linear', 'embedding')

  def below(self, prefix: str) -> 'Leaf':
    """The same row, with the path of its module in front of its pattern."""
    return dataclasses.replace(self, pattern=f'{prefix}/(?:{self.pattern})')


class Level(NamedTuple):
  """A component and its place in the order of levels.

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


def per_token(chunk: int) -> str:
  """The frequency of a state that is read as it was at its chunk's start."""
  return '1 update per token' if chunk == 1 else f'1/{chunk} updates per token'


def per_step(period: int) -> str:
  """The frequency of a parameter that moves every `period` training steps."""
  return '1 per step' if period == 1 else f'1/{period} per step'


def inner_objective(name: str, output: str, target: str) -> str:
  """An inner objective ('l2', 'delta' or 'dot') as a formula."""
  if name in ('l2', 'delta'):
    rule = ' by the delta rule' if name == 'delta' else ''
    return f'1/2 |{output} - {target}|^2{rule}'
  return f'-<{output}, {target}>'


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What every part of a model is built with.

  Attributes:
    width: of the residual stream.
    num_heads: of mixers.
    seq_len: tokens of a training sequence.
    dtype: of matmul operands.
    kernel: what runs the memories, one of `hope.memory.stream.KERNELS`.
    norm_eps: of the norms at the entrance of mixers and feed-forwards.
    hidden_multiple: default hidden width of a feed-forward, as a multiple of
      the width.
  """

  width: int
  num_heads: int
  seq_len: int
  dtype: Any
  kernel: str
  norm_eps: float = 1e-6
  hidden_multiple: float = 1.0


class InnerLosses(nnx.Intermediate):
  """What a module's memories measured in a call: arrays [b, t] by name.

  A module with memories that learn has an attribute `measures`, False when it
  is built. Where it is True, a call leaves these as the attribute
  `inner_losses`: each memory's objective at the pair that it learns from each
  token, at the state at its chunk's start (of a memory that no chunk freezes:
  before its token's write), mean over heads. An array named
  'NAME/change' is the relative change of what the memory NAME generates against
  what its initial state would.
  """


class Module(Protocol):
  """A mixer or feed-forward: an nnx.Module of these methods."""

  def init_state(self, batch: int) -> Any:
    """The fast state before the first token of `batch` streams."""

  def __call__(
    self, x: jax.Array, state: Any, starts: jax.Array | None
  ) -> tuple[jax.Array, Any]:
    """Maps x [b, t, width]; returns (y [b, t, width], state).

    `starts`, bool [b, t], is True at the first token of a document; None:
    nowhere.
    """


class Divided(NamedTuple):
  """A size that axes of the mesh must divide.

  Attributes:
    name: of the size, for error messages.
    size: that is sharded.
    axes: of the mesh; the product of their sizes must divide `size`.
  """

  name: str
  size: int
  axes: tuple[str, ...]


def divided_heads(sizes: Sizes, options: Any) -> list[Divided]:
  """`Part.divided` of a mixer whose memories are split by their width."""
  del options
  head = sizes.width // sizes.num_heads
  return [Divided('the width of a head', head, ('fsdp',))]


@dataclasses.dataclass(frozen=True)
class Part:
  """A kind of mixer or feed-forward.

  Attributes:
    options: dataclass of its options, the fields of its section of a
      configuration.
    build: (sizes, options, *, rngs) -> Module.
    parameters: options -> its parameters.
    levels: (sizes, options) -> rows of its fast states in the table of levels.
    check: (sizes, options) -> None; raises ValueError for options that do not
      fit the sizes or each other.
    divided: (sizes, options) -> sizes that a mesh must divide.
    least_parameters: (sizes, options) -> a lower bound on its parameters, from
      which runs that cannot fit in memory are refused.
    chunks: options -> chunk sizes of its memories, in tokens.
    metrics: state -> what a run logs: arrays [layers] by name.
    settings: options by the name of a setting, which a pattern may say first
      in the parentheses after the part's name, as in 'titans(paper)+cms'.
    hidden_multiple: of a mixer: options -> `Sizes.hidden_multiple` of the
      feed-forward beside it, with which blocks have about 12.5 width^2
      parameters.
    with_hidden: of a feed-forward: (hidden, width) -> fields of its section
      that give it this hidden width.
  """

  options: type
  build: Callable[..., nnx.Module]
  parameters: Callable[[Any], Sequence[Leaf]]
  levels: Callable[[Sizes, Any], Sequence[Level]] = lambda sizes, options: ()
  check: Callable[[Sizes, Any], None] = lambda sizes, options: None
  divided: Callable[[Sizes, Any], Sequence[Divided]] = lambda sizes, options: ()
  least_parameters: Callable[[Sizes, Any], int] = lambda sizes, options: 0
  chunks: Callable[[Any], Sequence[int]] = lambda options: ()
  metrics: Callable[[Any], dict[str, jax.Array]] = lambda state: {}
  settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict, compare=False
  )
  hidden_multiple: Callable[[Any], float] = lambda options: 1.0
  with_hidden: Callable[[int, int], dict[str, Any]] = lambda hidden, width: {}


def find(table: Sequence[Leaf], path: str) -> Leaf:
  r"""The row of the parameter at a path, \1 in its component filled in.

  Args:
    table: of the module or model; the first row whose pattern matches counts.
    path: with '/' between the names.

  Raises:
    ValueError: if no row matches.
  """
  for leaf in table:
    if match := re.fullmatch(leaf.pattern, path):
      return dataclasses.replace(leaf, component=match.expand(leaf.component))
  raise ValueError(
    f'No row of its part describes the parameter {path}: add one to the '
    '`parameters` of its mixer or feed-forward.'
  )
