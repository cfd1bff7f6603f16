"""Runs of AdamW, Muon and M3 on a task that changes, made once and kept."""

from collections.abc import Callable, Iterable
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import optimizer_race as race
from experiments import optimizer_tasks as tasks
import optimizers

FIRST_TUNING_SEED = 100  # those below are reported
# Places at which a curve of a task that never changes is kept.
PLACES = 100
_WARM_UP = 20


class Setting(NamedTuple):
  """A rule and what is tuned of it.

  Attributes:
    rule: 'adamw', 'muon' or 'm3'.
    rate: learning rate.
    b1: decay of the momentum, or of M3's fast memory.
    b2: decay of AdamW's second moment, or of M3's.
    nesterov: whether the momentum looks ahead.
    second_moment: whether M3 divides by the root of V.
    alpha: weight of M3's slow memory.
    b3: decay of M3's slow memory, per window.
    period: steps of such a window.
  """

  rule: str
  rate: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  nesterov: bool = False
  second_moment: bool = False
  alpha: float = 0.5
  b3: float = 0.95
  period: int = 8

  def key(self) -> str:
    """The setting in words, without its rate."""
    text = f'{self.rule} b1={self.b1}'
    if self.nesterov:
      text += ' nesterov'
    if self.rule == 'adamw' or self.second_moment:
      text += f' b2={self.b2}'
    if self.rule == 'm3':
      text += f' alpha={self.alpha} b3={self.b3} period={self.period}'
    return text


# What is compiled anew for each value; the other fields are traced.
_STATIC = ('rule', 'nesterov', 'second_moment', 'period')
TRACED = ('rate', 'b1', 'b2', 'alpha', 'b3')


def transformation(s: Setting, others: Setting) -> Any:
  """The optimizer of a run: hidden matrices by s, all else by `others`.

  Args:
    s: its numbers may be traced.
    others: AdamW's.
  """
  adamw = lambda a: optax.chain(
    optax.scale_by_adam(b1=a.b1, b2=a.b2), optax.scale(-a.rate)
  )
  if s.rule == 'adamw':
    rule = adamw(s)
  else:
    # Muon is M3 without V and with alpha=0, so that one program serves both.
    matrix = optimizers.scale_by_m3(
      s.b1,
      s.b2,
      s.b3,
      s.alpha,
      s.period,
      nesterov=s.nesterov,
      second_moment=s.second_moment,
      scale_by_shape=True,
      axes=race.matrix_axes,
    )
    rule = optax.partition(
      {
        'matrix': optax.chain(matrix, optax.scale(-s.rate)),
        'other': adamw(others),
      },
      race.labels('matrix', 'other'),
    )
  warm_up = lambda count: jnp.minimum(1.0, (count + 1) / _WARM_UP)
  return optax.chain(
    optax.clip_by_global_norm(1.0), rule, optax.scale_by_schedule(warm_up)
  )


def trainer(
  task: tasks.Changing,
  steps: int,
  change: int,
  static: Setting,
  others: Setting,
  recurring: int = 0,
) -> Callable[..., jax.Array]:
  """Returns run(params, keys, numbers) -> losses [runs, steps].

  Args:
    task: what is learned.
    steps: of a run; a multiple of `change`.
    change: steps between permutations.
    static: whose fields of `_STATIC` count.
    others: AdamW's, for all but hidden matrices.
    recurring: how many permutations take turns; 0: each is new.
  """
  count = len(jax.tree.leaves(task.data)[0])

  def run(params, key, numbers):
    tx = transformation(static._replace(**numbers), others)
    key, permutations = jax.random.split(key)

    def phase(carry, inputs):
      keys, key = inputs
      permutation = jax.random.permutation(key, task.symbols)

      def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (task.batch,), 0, count)
        batch = jax.tree.map(lambda x: x[rows], task.data)
        value, grads = jax.value_and_grad(task.loss)(params, batch, permutation)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

      return jax.lax.scan(step, carry, keys)

    phases = steps // change
    keys = jax.random.split(key, (phases, change))
    turns = np.arange(phases) % (recurring or phases)
    permutations = jax.random.split(permutations, phases)[turns]
    _, values = jax.lax.scan(
      phase, (params, tx.init(params)), (keys, permutations)
    )
    return values.reshape(steps)

  return jax.jit(jax.vmap(run))


class Runs:
  """All runs of a task, made once and kept in a file.

  Attributes:
    losses: mean loss over the steps, by setting, rate and seed.
    curves: of every setting, rate and seed that is reported, losses [change] by
      the place in a phase, mean over the phases after the first; where nothing
      changes, means of 100 parts of the run.
  """

  def __init__(
    self,
    file: pathlib.Path,
    task: tasks.Changing,
    steps: int,
    change: int,
    most: int,
    recurring: int = 0,
  ):
    self.file, self.task, self.most = file, task, most
    self.recurring = recurring
    self.steps, self.change = steps, change or steps
    kept = json.loads(file.read_text()) if file.exists() else {}
    self.losses = kept.get('losses', {})
    self.curves = kept.get('curves', {})

  def get(self, s: Setting, seed: int) -> float:
    """Mean loss of a run; infinite if it diverged."""
    value = self.losses[s.key()][f'{s.rate:.4g}'][str(seed)]
    return float('inf') if value is None else value

  def curves_of(self, s: Setting, seeds: Iterable[int]) -> list[list[float]]:
    """The curves of a setting."""
    kept = self.curves[s.key()][f'{s.rate:.4g}']
    return [kept[str(seed)] for seed in seeds]

  def make(
    self, wanted: Iterable[tuple[Setting, int]], others: Setting
  ) -> None:
    """Runs what is not there yet, as many at once as `most` says."""
    missing: dict[Any, list] = {}
    for s, seed in wanted:
      seen = self.losses.get(s.key(), {}).get(f'{s.rate:.4g}', {})
      if str(seed) not in seen:
        static = tuple(getattr(s, name) for name in _STATIC)
        missing.setdefault(static, []).append((s, seed))
    for group in missing.values():
      static = group[0][0]
      run = trainer(
        self.task, self.steps, self.change, static, others, self.recurring
      )
      for j in range(0, len(group), self.most):
        self._make(run, group[j : j + self.most])

  def _make(self, run, part) -> None:
    begin = time.time()
    params = jax.tree.map(
      lambda *x: jnp.stack(x), *[self.task.init(seed) for _, seed in part]
    )
    numbers = {
      name: jnp.array([getattr(s, name) for s, _ in part], jnp.float32)
      for name in TRACED
    }
    keys = jnp.stack([jax.random.key(seed) for _, seed in part])
    losses = np.asarray(run(params, keys, numbers))
    for (s, seed), x in zip(part, losses, strict=False):
      mean = float(x.mean())
      place = self.losses.setdefault(s.key(), {})
      place.setdefault(f'{s.rate:.4g}', {})[str(seed)] = (
        round(mean, 5) if np.isfinite(mean) else None
      )
      if seed < FIRST_TUNING_SEED:
        if self.change < self.steps:
          curve = x.reshape(-1, self.change)[1:].mean(0)
        else:
          curve = x.reshape(PLACES, -1).mean(1)
        curves = self.curves.setdefault(s.key(), {})
        curves.setdefault(f'{s.rate:.4g}', {})[str(seed)] = [
          round(float(v), 4) for v in curve
        ]
    kept = {'losses': self.losses, 'curves': self.curves}
    self.file.write_text(json.dumps(kept))
    taken = f'{len(part)} runs in {time.time() - begin:.0f} s'
    print(f'{part[0][0].key()} ...: {taken}', flush=True)
