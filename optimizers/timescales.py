"""Levels that learn at their own periods (Eq. 71 of arXiv:2512.24695)."""

from collections.abc import Callable, Hashable, Mapping
import re
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

ACCUMULATE = ('gradients', 'updates')


class AccumulateUpdatesState(NamedTuple):
  """State of a level that sums its updates.

  Attributes:
    step: int32 scalar, steps since the last release.
    total: the sum of the updates since then, shaped like the parameters.
    inner: state of the inner transformation.
  """

  step: jax.Array
  total: optax.Updates
  inner: Any


def _accumulate_updates(
  period: int, inner: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
  """Sums the inner transformation's updates, released every `period` steps."""

  def init_fn(params):
    return AccumulateUpdatesState(
      jnp.zeros([], jnp.int32),
      optax.tree.zeros_like(params),
      inner.init(params),
    )

  def update_fn(updates, state, params=None, **extra_args):
    updates, inner_state = inner.update(
      updates, state.inner, params, **extra_args
    )
    step = (state.step + 1) % period
    total = jax.tree.map(
      lambda t, u: (t + u).astype(t.dtype), state.total, updates
    )
    zeros = optax.tree.zeros_like(total)
    released, kept = lax.cond(
      step == 0, lambda: (total, zeros), lambda: (zeros, total)
    )
    return (
      optax.tree.cast_like(released, updates),
      AccumulateUpdatesState(step, kept, inner_state),
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def every(
  period: int,
  inner: optax.GradientTransformation,
  accumulate: str = 'gradients',
) -> optax.GradientTransformationExtraArgs:
  r"""One level: changes its parameters every `period` steps, else not at all.

  With `accumulate='gradients'` the inner transformation sees, once a period,
  the mean gradient of the period (this is `optax.MultiSteps`); in between it
  does not run. With `'updates'`, which is Eq. 71 as printed, it runs at every
  step and the sum of its updates is released:

  .. math::
    \theta_{i+1} = \theta_i + \sum_{t = i - C + 1}^{i} u_t
    \text{ if } (i + 1) \bmod C = 0 \text{, else } \theta_i

  Args:
    period: C, in steps.
    inner: of the level, its learning rate included. A schedule counts the steps
      that `inner` runs.
    accumulate: 'gradients' or 'updates'.

  Returns:
    A transformation that passes extra arguments on. With period 1 it is
    `inner`, else it keeps one more tree of the size of the parameters.

  Raises:
    ValueError: if period is below 1 or accumulate is unknown.
  """
  if accumulate not in ACCUMULATE:
    raise ValueError(
      f'accumulate={accumulate!r} is unknown; choose one of {ACCUMULATE}.'
    )
  if period < 1:
    raise ValueError(f'period={period} must be at least 1.')
  inner = optax.with_extra_args_support(inner)
  if period == 1:
    return inner
  if accumulate == 'updates':
    return _accumulate_updates(period, inner)
  steps = optax.MultiSteps(inner, every_k_schedule=period)
  update: Any = steps.update
  return optax.GradientTransformationExtraArgs(steps.init, update)


def label_by_path(
  rules: Mapping[str, Hashable], separator: str = '/'
) -> Callable[[optax.Params], Any]:
  """Labels for leaves by the first pattern that is found in their path.

  Args:
    rules: from regular expressions, searched for in a path like
      'blocks/cms/level_0/up/kernel', to labels.
    separator: between the keys of a path.

  Returns:
    A function from a tree to a tree of labels like it. It raises ValueError,
    naming the path, where no pattern is found.
  """

  def label(keys, _):
    path = jax.tree_util.keystr(keys, simple=True, separator=separator)
    for pattern, name in rules.items():
      if re.search(pattern, path):
        return name
    raise ValueError(
      f'no pattern of {list(rules)} is found in {path!r}; add one, or ".*" at '
      'the end for all that is left.'
    )

  return lambda params: jax.tree_util.tree_map_with_path(label, params)


def multi_timescale(
  levels: Mapping[Hashable, tuple[int, optax.GradientTransformation]],
  labels: Callable[[optax.Params], Any] | Any,
  accumulate: str = 'gradients',
) -> optax.GradientTransformationExtraArgs:
  """Levels of parameters, each with its own period and transformation (Eq. 71).

  A transformation may be a `multi_timescale` again, whose periods then count
  the steps of the level that holds it.

  Args:
    levels: by label, (period in steps, transformation).
    labels: a tree of labels like the parameters, or a function from the
      parameters to one, as `label_by_path` gives.
    accumulate: what a level gathers over its period; see `every`.

  Returns:
    A transformation; with all periods 1 it is `optax.partition`.

  Raises:
    ValueError: as `every`.

  Examples:
    >>> import jax.numpy as jnp, optax
    >>> from optimizers import label_by_path, multi_timescale
    >>> params = {'fast': jnp.ones(2), 'slow': jnp.ones(3)}
    >>> tx = multi_timescale(
    ...   {'often': (1, optax.adam(1e-3)), 'seldom': (16, optax.sgd(1e-2))},
    ...   label_by_path({'^fast': 'often', '.*': 'seldom'}),
    ... )
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> float(updates['slow'].sum())
    0.0

  References:
    Behrouz et al., `Nested Learning <https://arxiv.org/abs/2512.24695>`_, 2025
  """
  return optax.partition(
    {
      label: every(period, inner, accumulate)
      for label, (period, inner) in levels.items()
    },
    labels,
  )
