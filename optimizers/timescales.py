"""Levels that learn at their own periods (Eq. 71 of arXiv:2512.24695)."""

from collections.abc import Callable, Hashable, Mapping
import re
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from . import arguments, paths


class EveryState(NamedTuple):
  """State of a level.

  Attributes:
    step: int32 [], steps since the last release.
    total: the sum of what was gathered since then, shaped like the parameters.
      At step 0 it holds the released update, and does not count any more.
    inner: state of the inner transformation.
  """

  step: jax.Array
  total: optax.Updates
  inner: Any


def every(
  period: int,
  inner: optax.GradientTransformation,
  accumulate: str = 'gradients',
  *,
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  r"""One level: changes its parameters every `period` steps, else not at all.

  With `accumulate='gradients'` the inner transformation sees, once a period,
  the mean gradient of the period, as in `optax.MultiSteps`; in between it does
  not run, and its state is not touched. With `'updates'`, which is Eq. 71 as
  printed, it runs at every step and the sum of its updates is released:

  .. math::
    \theta_{i+1} = \theta_i + \sum_{t = i - C + 1}^{i} u_t
    \text{ if } (i + 1) \bmod C = 0 \text{, else } \theta_i

  Args:
    period: C, in steps.
    inner: of the level, its learning rate included. A schedule counts the steps
      that `inner` runs.
    accumulate: 'gradients' or 'updates'.
    accumulator_dtype: of the sum; None: that of the parameters.

  Returns:
    A transformation that passes extra arguments on. With period 1 it is
    `inner`, else it keeps one more tree of the size of the parameters.

  Raises:
    ValueError: if period is below 1 or accumulate is unknown.
  """
  arguments.check(
    period=period,
    accumulate=accumulate,
    accumulator_dtype=accumulator_dtype,
  )
  inner = optax.with_extra_args_support(inner)
  if period == 1:
    return inner

  def init_fn(params):
    total = optax.tree.zeros_like(params, dtype=accumulator_dtype)
    return EveryState(jnp.zeros([], jnp.int32), total, inner.init(params))

  def run(updates, state, params, extra_args):
    """The inner rule; its state keeps its types.

    Many rules take those of the gradients, which may be wider than the
    parameters that the state was made for.
    """
    updates, new = inner.update(updates, state, params, **extra_args)
    return updates, optax.tree.cast_like(new, state)

  def update_fn(updates, state, params=None, **extra_args):
    inner_state, types = state.inner, updates
    if accumulate == 'updates':
      updates, inner_state = run(updates, inner_state, params, extra_args)
    step = (state.step + 1) % period
    total = jax.tree.map(
      lambda t, u: jnp.where(state.step == 0, u, t + u).astype(t.dtype),
      state.total,
      updates,
    )
    out = total
    if accumulate == 'gradients':

      def release(total, inner_state):
        mean = jax.tree.map(
          lambda t, u: (t / period).astype(u.dtype), total, types
        )
        out, inner_state = run(mean, inner_state, params, extra_args)
        return optax.tree.cast_like(out, types), inner_state

      def wait(total, inner_state):
        return optax.tree.cast_like(total, types), inner_state

      # The accumulator's buffer then holds the released update, so that the
      # waiting branch copies nothing.
      out, inner_state = lax.cond(step == 0, release, wait, total, inner_state)
      total = jax.tree.map(
        lambda t, o: o if o.dtype == t.dtype else t, total, out
      )
    released = jax.tree.map(
      lambda o, u: jnp.where(step == 0, o, 0).astype(u.dtype), out, types
    )
    return released, EveryState(step, total, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def label_by_path(
  rules: Mapping[str, Hashable], separator: str = '/'
) -> Callable[[optax.Params], Any]:
  """Labels for leaves by the first pattern that is found in their path.

  Args:
    rules: from regular expressions, searched for in a path like
      'blocks/cms/level_0/up/kernel', to labels. A path is the same for a nested
      dict, a State of flax nnx and a module of Equinox.
    separator: between the keys of a path.

  Returns:
    A function from a tree to a tree of labels like it. It raises ValueError,
    naming the path and what other paths there are, where no pattern is found.
  """

  def label(path, others):
    for pattern, name in rules.items():
      if re.search(pattern, path):
        return name
    raise ValueError(
      f'no pattern of {list(rules)} is found in {path!r}; add one, or ".*" at '
      f'the end for all that is left. The paths are {paths.listed(others)}.'
    )

  def labels(params):
    found = [separator.join(x) for x, _ in paths.leaves_with_path(params)]
    return jax.tree.structure(params).unflatten(
      [label(x, found) for x in found]
    )

  return labels


def _check_labels(levels: Mapping[Hashable, Any], labels: Any) -> None:
  """Raises ValueError unless labels and levels are the same."""
  unused = set(levels)
  found = paths.leaves_with_path(labels)
  for path, label in found:
    if label not in levels:
      raise ValueError(
        f'the label {label!r} of {paths.text(path)!r} is not a level; the '
        f'levels are {list(levels)}.'
      )
    unused.discard(label)
  if found and unused:
    raise ValueError(
      f'no parameter is labelled {sorted(map(str, unused))}; leave these '
      'levels out, or correct the labels. The paths of the parameters are '
      f'{paths.listed([paths.text(path) for path, _ in found])}.'
    )


def multi_timescale(
  levels: Mapping[Hashable, tuple[int, optax.GradientTransformation]],
  labels: Callable[[optax.Params], Any] | Any,
  accumulate: str = 'gradients',
  *,
  accumulator_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
  """Levels of parameters, each with its own period and transformation (Eq. 71).

  A transformation may be a `multi_timescale` again, whose periods then count
  the steps of the level that holds it.

  Args:
    levels: by label, (period in steps, transformation).
    labels: a tree of labels with the paths of the parameters, or a prefix of
      one, in containers of any type; or a function from the parameters to one,
      as `label_by_path` gives.
    accumulate: what a level gathers over its period; see `every`.
    accumulator_dtype: of what it gathers; None: that of the parameters.

  Returns:
    A transformation; with all periods 1 it is `optax.partition`.

  Raises:
    ValueError: as `every`, and by `init` if a parameter's label is not a level,
      naming its path, or if a level has no parameter.

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

  def label(params):
    return paths.find_tree('labels', labels, params)

  tx = optax.partition(
    {
      label: every(
        period, inner, accumulate, accumulator_dtype=accumulator_dtype
      )
      for label, (period, inner) in levels.items()
    },
    label,
  )

  def init_fn(params):
    _check_labels(levels, label(params))
    return tx.init(params)

  return optax.GradientTransformationExtraArgs(init_fn, tx.update)
