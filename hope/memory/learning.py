"""How the memories of a group learn: targets, objective, step and momentum.

Deviation: a self-generated target M(v) is shortened to the norm target_max
where it is longer. M(v) moves with what is written for k, so that targets can
grow by a factor per token: after 90 outer steps at a learning rate of 6e-3 a
run had states of 1e4, then NaN. `target_max=None` is the letter of Eq. 84 of
arXiv:2512.24695.
Deviation: where the gradients of a chunk are taken at its start, the error of
each layer of a memory is shortened to the norm error_max where it is longer.
Such gradients overshoot where the tokens of a chunk share a key, the more the
larger a layer's input and, for the first layer, |down|: errors then double from
chunk to chunk (a run went from healthy states to NaN within one sequence). With
the bound they cannot. `error_max=None` is the letter of Eq. 88.
Choice: a rate eta has an upper bound, eta_max, that the paper does not give: 1,
but 1 / chunk for gradients of 'l2' that are taken at a chunk's start, since
they overshoot beyond it. By the delta rule the second layer has eta_max, and
the first one, whose gradients are frozen, no more than 1 / chunk. With
momentum, which sums a write 1 / (1 - beta) times, eta is multiplied by
1 - beta.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hope.memory import mlp, stream
from hope.memory.objectives import bound_norm

TARGETS = ('self', 'slow', 'mixed')
STEPS = ('proximal', 'relative')


@dataclasses.dataclass(frozen=True)
class Learning:
  """What the memories of a group learn, and from what.

  Attributes:
    chunk: tokens whose gradients and targets are taken at one state.
    objective: one of `hope.memory.objectives.NAMES`.
    target: 'self', M(v) (Eq. 84); 'slow', a value that no memory of the group
      has made; 'mixed', a learned mixture of both.
    step: of the second layers: 'proximal', eta / (1 + eta |u|^2) (Eq. 56), or
      'relative', eta / |u|^2, for which eta is the part of its error that a
      write corrects: above 1 it turns the error's sign.
    eta_max: upper bound of eta; None: as the head of this file says.
    momentum: whether writes have momentum.
    retention: whether memories forget.
    erase: whether a write erases along its key.
    target_max: largest norm of M(v) as a target; None: no bound.
    error_max: largest norm of a layer's error; None: no bound.
  """

  chunk: int
  objective: str
  target: str
  step: str
  eta_max: float | None
  momentum: bool
  retention: bool
  erase: bool
  target_max: float | None
  error_max: float | None

  def check(self, prefix: str) -> None:
    """Raises ValueError for what does not fit together.

    Args:
      prefix: of the options' names, for the message.
    """
    if self.objective == 'delta' and not self.erase:
      raise ValueError(
        f"{prefix}objective='delta' needs titans.erase=True; "
        "objective='dot' writes without erasing."
      )
    if self.step == 'relative' and self.objective != 'delta':
      raise ValueError(
        f"{prefix}step='relative' needs the error at the current state: "
        f"objective='delta', not {self.objective!r}."
      )
    if self.step == 'relative' and self.bounds()[1] > 2:
      raise ValueError(
        f"{prefix}eta_max={self.eta_max:g} lets writes with step='relative' "
        'expand what is stored; 2 is the most.'
      )

  def bounds(self) -> tuple[float, float]:
    """Upper bounds of eta, of first and of second layers."""
    if self.objective == 'delta':
      largest = 1.0 if self.eta_max is None else self.eta_max
      return min(largest, 1.0) / self.chunk, largest
    if self.eta_max is not None:
      return self.eta_max, self.eta_max
    largest = 1.0 if self.objective == 'dot' else 1.0 / self.chunk
    return largest, largest

  def rates(
    self,
    step: stream.Step,
    eta: jax.Array,
    alpha: jax.Array,
    beta: jax.Array | None,
    rate: tuple[jax.Array, jax.Array],
    read_after: bool = False,
  ) -> mlp.Rates:
    """The rates of rule (A) at a block's tokens.

    Args:
      step: the block.
      eta: [..., c, 1], in (0, 1), multiplied by its bound here.
      alpha: [..., c, 1], retention.
      beta: [..., c, 1], momentum factor; not read without momentum.
      rate: of the two layers, [..., 1, 1], multiplies eta.
      read_after: whether queries read after their token's own write.
    """
    if not self.retention:
      alpha = jnp.ones_like(alpha)
    beta = beta if self.momentum else None

    def of_layer(bound: float, rate: jax.Array) -> jax.Array:
      bounded = bound * eta
      if beta is not None:
        bounded *= 1 - beta
      return step.counted(bounded) * rate

    up, down = map(of_layer, self.bounds(), rate)
    return mlp.Rates(
      up=up,
      down=down,
      decay=step.form.decays(alpha, beta, step.valid, read_after),
      erase=self.erase,
      error_max=self.error_max,
      form=step.form,
      alpha=alpha,
      relative=self.step == 'relative',
    )

  def targets(
    self,
    kernels: mlp.Kernels,
    v: jax.Array,
    slow: tuple[jax.Array, ...],
    share: jax.Array | None = None,
  ) -> tuple[jax.Array, ...]:
    """The values that the memories of a group learn for their keys.

    Args:
      kernels: in force at the chunk's start.
      v: [..., c, d].
      slow: of each group, [..., m, c, o], slow targets; not read for 'self'.
      share: [..., 1, 1], of the self-generated one, in 'mixed' alone.

    Returns:
      Of each group, [..., m, c, o].
    """
    if self.target == 'slow':
      return slow
    own, bound = mlp.forward(kernels, v), self.target_max
    if bound is not None:
      own = tuple(bound_norm(x, bound) for x in own)
    if share is None:
      return own
    share = share[..., None, :, :]
    return tuple(
      share * x + (1 - share) * y for x, y in zip(own, slow, strict=True)
    )
