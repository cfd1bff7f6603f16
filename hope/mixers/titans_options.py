"""Options of self-referential Titans, and the settings that have a name."""

import dataclasses
from typing import Any

from hope.fields import field
from hope.memory import learning, objectives
from hope.memory.learning import Learning


@dataclasses.dataclass(frozen=True)
class TitansOptions:
  """Options of the layer."""

  chunk_size: int = field(
    64,
    'Length of a chunk of `memory`: gradients and targets of its tokens are '
    'taken at the state at its start. It or projection_chunk_size must divide '
    'the other.',
    unit='tokens',
    minimum=1,
  )
  projection_chunk_size: int = field(
    64,
    'Length of a chunk of the memories that generate k, v, eta, alpha (q), '
    'whose options start with projection_. Where self_modifying is False they '
    'do not learn, and these do nothing.',
    unit='tokens',
    minimum=1,
  )
  hidden_multiple: int = field(
    1,
    "Hidden width of a memory as a multiple of its head's width; 0 makes every "
    'memory linear.',
    minimum=0,
    maximum=64,
  )
  objective: str = field(
    'delta',
    "What `memory` descends on: 'l2', 'dot', or 'delta': l2 by the delta rule, "
    'whose last layer follows the gradient at its current state.',
    choices=objectives.NAMES,
  )
  projection_objective: str | None = field(
    None,
    'The same for the memories that generate. None: as `memory`.',
    choices=objectives.NAMES,
  )
  target: str = field(
    'slow',
    "What `memory` learns for a key: 'self', its own value M(v) (Eq. 84); "
    "'slow', v itself; or 'mixed', a learned mixture of both.",
    choices=learning.TARGETS,
  )
  projection_target: str = field(
    'self',
    "The same for the memories that generate; 'slow' is here what a memory's "
    'initial state makes of v.',
    choices=learning.TARGETS,
  )
  step: str = field(
    'proximal',
    "Step of `memory`'s last layer: 'proximal', eta / (1 + eta |u|^2), or, "
    "with objective=delta, 'relative', eta / |u|^2: eta is then the part of an "
    'error that a write corrects, and turns its sign above 1.',
    choices=learning.STEPS,
  )
  projection_step: str | None = field(
    None,
    'The same for the memories that generate. None: as `memory` if they have '
    "its objective, else 'proximal'.",
    choices=learning.STEPS,
  )
  retention: bool = field(True, 'Whether memories forget: a part of rule (A).')
  momentum: bool | None = field(
    None,
    "Whether `memory`'s writes have momentum: a part of rule (A). None: they "
    'have, but not with objective=delta, which momentum may let grow without '
    'bound.',
  )
  projection_momentum: bool | None = field(
    None, 'The same for the memories that generate. None: as `memory`.'
  )
  erase: bool = field(
    True,
    'Whether a write erases along its key: a part of rule (A); objective=delta '
    'needs it.',
  )
  anchor: str = field(
    'initial',
    "What retention and erase pull towards: 'initial' (the learned initial "
    "state) or 'zero' (Eq. 88 to the letter).",
    choices=('initial', 'zero'),
  )
  read: str = field(
    'token',
    "State that a read sees: 'token' (before its token's write), 'after' "
    "(after that), or 'chunk' (at the start of its chunk).",
    choices=('token', 'after', 'chunk'),
  )
  projections: str = field(
    'memories',
    "What makes k, v, eta and alpha: 'memories' (Eq. 83), or 'slow' "
    'projections of the input, which need self_modifying=False.',
    choices=('memories', 'slow'),
  )
  self_modifying: bool = field(
    True, 'Whether the k, v, eta and alpha memories learn within the sequence.'
  )
  target_max: float | None = field(
    2.0, 'Largest norm of a self-generated target. None: no bound.', above=0
  )
  error_max: float | None = field(
    2.0, "Largest norm of a layer's error in a memory. None: no bound.", above=0
  )
  q_memory: bool = field(
    False, 'Whether q is a memory too, rather than a slow projection.'
  )
  mix: str = field(
    'dense',
    "'dense': slow projections mix the whole width into each head before the "
    "memories; 'none': a head sees its slice of the width.",
    choices=('dense', 'none'),
  )
  eta_max: float | None = field(
    None,
    "Upper bound of `memory`'s inner learning rate eta. None: 1, but for "
    'objective=l2 1 / chunk_size. With objective=delta it is of the last '
    'layer, and the first has no more than 1 / chunk_size. 0: no learning.',
    minimum=0,
  )
  projection_eta_max: float | None = field(
    None,
    'The same for the memories that generate. None: as `memory` if they have '
    'its objective, else the default.',
    minimum=0,
  )
  rate: float | None = field(
    None,
    "Part of eta that `memory`'s layers start with; learned. None: sigmoid(2), "
    '0.88.',
    above=0,
    below=1,
  )
  projection_rate: float | None = field(
    None,
    'The same of the memories that generate. None: sigmoid(-2), 0.12.',
    above=0,
    below=1,
  )
  output_norm: bool = field(
    True, "Whether a head's output is normalised (RMSNorm)."
  )
  output_gate: bool = field(
    True, "Whether a head's output is multiplied by silu(x W + c), 1 at first."
  )
  conv_width: int = field(
    4,
    'Tokens that the causal depthwise convolution sees.',
    unit='tokens',
    minimum=1,
    maximum=2**12,
  )

  def of_memory(self) -> Learning:
    """How `memory` learns."""
    return Learning(
      chunk=self.chunk_size,
      objective=self.objective,
      target=self.target,
      step=self.step,
      eta_max=self.eta_max,
      momentum=self._momentum(self.momentum, self.objective),
      retention=self.retention,
      erase=self.erase,
      target_max=self.target_max,
      error_max=self.error_max,
    )

  def of_projections(self) -> Learning:
    """How the memories that generate learn."""
    objective, eta_max = self.projection_objective, self.projection_eta_max
    step, momentum = self.projection_step, self.projection_momentum
    if objective is None:
      objective = self.objective
    if momentum is None:
      momentum = self.momentum
    if objective == self.objective:
      eta_max = self.eta_max if eta_max is None else eta_max
      step = self.step if step is None else step
    return dataclasses.replace(
      self.of_memory(),
      chunk=self.projection_chunk_size,
      objective=objective,
      target=self.projection_target,
      step=step or 'proximal',
      eta_max=eta_max,
      momentum=self._momentum(momentum, objective),
    )

  @staticmethod
  def _momentum(given: bool | None, objective: str) -> bool:
    return objective != 'delta' if given is None else given

  def learning(self) -> list[Learning]:
    """How the memories that learn do: `memory`, and those that generate."""
    others = [self.of_projections()] if self.self_modifying else []
    return [self.of_memory(), *others]

  def has_momentum(self) -> bool:
    """Whether any memory has momentum."""
    return any(learning.momentum for learning in self.learning())


# Eq. 83-91 of the paper with the momentum of its Table 6. What the paper does
# not give, such as the ranges of rates, is as in the head of
# `hope.mixers.titans`.
PAPER = {
  'chunk_size': 1,
  'projection_chunk_size': 1,
  'hidden_multiple': 1,
  'objective': 'l2',
  'projection_objective': None,
  'target': 'self',
  'projection_target': 'self',
  'step': 'proximal',
  'projection_step': None,
  'retention': True,
  'momentum': True,
  'projection_momentum': None,
  'erase': True,
  'anchor': 'zero',
  'read': 'token',
  'self_modifying': True,
  'target_max': None,
  'error_max': None,
  'q_memory': False,
  'eta_max': None,
  'projection_eta_max': None,
  'output_gate': False,
}

# One memory with slow projections, read after the token's write, as published.
_ALONE: dict[str, Any] = {
  'projections': 'slow',
  'self_modifying': False,
  'target': 'slow',
  'erase': False,
  'read': 'after',
}
# Titans' long-term memory, Eq. 12-15 of arXiv:2501.00663: M_0 decays with the
# rest.
LMM = _ALONE | {
  'objective': 'l2',
  'retention': True,
  'momentum': True,
  'anchor': 'zero',
}
# Deep linear attention (arXiv:2505.23735): a memory of two layers descends on
# -<M(k), v>, and nothing is forgotten.
DLA = _ALONE | {
  'objective': 'dot',
  'retention': False,
  'momentum': False,
  'anchor': 'initial',
}


@dataclasses.dataclass(frozen=True)
class MemoryOptions:
  """Options of a layer that has the memory of the setting 'lmm', and attention.

  Those of attention beside persistent tokens are the layer's own.
  """

  chunk_size: int = field(
    64,
    'Length of a chunk of the memory, whose gradients are taken at the state '
    'at its start.',
    unit='tokens',
    minimum=1,
  )
  hidden_multiple: int = field(
    1,
    "Hidden width of the memory as a multiple of its head's width; 0 makes it "
    'linear.',
    minimum=0,
    maximum=64,
  )
  num_persistent: int = field(
    4,
    'Learned keys and values of each head that all tokens attend to.',
    minimum=0,
    maximum=2**17,
  )

  def of_memory(self) -> TitansOptions:
    """Those of the memory by itself."""
    return TitansOptions(
      **LMM,
      chunk_size=self.chunk_size,
      projection_chunk_size=self.chunk_size,
      hidden_multiple=self.hidden_multiple,
    )
