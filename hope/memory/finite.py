"""Keeps a NaN or infinity from tokens that do not depend on it.

The chunk form multiplies what a token does not see by 0, and 0 * NaN is NaN: a
NaN would reach all tokens of its block. So a token that is not finite is
computed as zeros, and what depends on it is made NaN afterwards.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from hope.memory.segments import since_start


def _finite(x: jax.Array) -> jax.Array:
  """Whether all numbers of a token are finite: bool, without the last axis."""
  return jnp.isfinite(x).all(axis=-1)


def isolate(
  x: jax.Array, starts: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """Replaces tokens that are not finite, where each sees all before it.

  Args:
    x: [b, t, ...].
    starts: bool [b, t], True where a document starts; None: nowhere.

  Returns:
    (x, spoiled): x with zeros for a token that is not finite; bool [b, t],
    whether a token is such a one, or comes after one in its document. None for
    a single token, which sees no other.
  """
  if x.shape[1] == 1:
    return x, None
  kept = _finite(x)
  place = jnp.arange(kept.shape[1])
  last = lax.cummax(jnp.where(kept, -1, place), axis=1)
  first = 0 if starts is None else place - since_start(starts, 0)
  return jnp.where(kept[..., None], x, 0), last >= first


def isolate_seen(
  xs: tuple[jax.Array, ...], first: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """Replaces tokens that are not finite, where each sees a window before it.

  Args:
    xs: of heads, [b, s, n, ...] each; the last t tokens look.
    first: int [t] or [b, t], the first of the s tokens that each sees, up to
      itself.

  Returns:
    (xs, spoiled): as `isolate`, but bool [b, t, n]: whether a token sees one.
  """
  kept = functools.reduce(jnp.logical_and, map(_finite, xs))
  place = jnp.arange(kept.shape[1])[:, None]
  last = lax.cummax(jnp.where(kept, -1, place), axis=1)
  cleared = tuple(jnp.where(kept[..., None], x, 0) for x in xs)
  return cleared, last[:, -first.shape[-1] :] >= first[..., None]


def spoil(tree: Any, spoiled: jax.Array | None) -> Any:
  """Makes parts of a tree NaN.

  Args:
    tree: of arrays [*s, ...], where s is the shape of `spoiled`; integers are
      kept.
    spoiled: bool [*s], where; None: nowhere.
  """
  if spoiled is None:
    return tree

  def nan(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      return x
    parts = spoiled.reshape(*spoiled.shape, *(1,) * (x.ndim - spoiled.ndim))
    return jnp.where(parts, jnp.nan, x)

  return jax.tree.map(nan, tree)


def spoil_state(state: Any, spoiled: jax.Array | None) -> Any:
  """Makes the states after a piece NaN in rows whose last token is spoiled.

  Args:
    state: tree of arrays [b, ...]; integers are kept.
    spoiled: bool [b, t], of the piece's tokens; None: nowhere.
  """
  return spoil(state, None if spoiled is None else spoiled[:, -1])
