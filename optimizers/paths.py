"""Leaves of trees by their paths, which are the same in every framework.

A path is that of `jax.tree_util`, without the keys that a framework adds: flax
nnx keeps a parameter in a `Variable`, whose key `value` is present in
`tx.init(nnx.state(model))` and absent in the `tx.update` of `nnx.Optimizer`.
Arguments about leaves (axes, labels, masks, second moments) are matched by
path, so nested dicts work for parameters in containers of any type.
"""

from collections.abc import Callable
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

Path = tuple[str, ...]


def _is_variable(x: Any) -> bool:
  """Whether x is a `flax.nnx.Variable`; flax itself is not imported here."""
  nnx = sys.modules.get('flax.nnx')
  return nnx is not None and isinstance(x, nnx.Variable)


def is_masked(x: Any) -> bool:
  """Whether `optax.masked` or `optax.partition` took this leaf out."""
  return isinstance(x, optax.MaskedNode)


def _never(x: Any) -> bool:
  del x
  return False


def leaves_with_path(
  tree: Any, is_leaf: Callable[[Any], bool] = _never
) -> list[tuple[Path, Any]]:
  """The leaves of a tree with their paths, in the order of `jax.tree.leaves`.

  Args:
    tree: any.
    is_leaf: what is a leaf besides those of `jax.tree.leaves`.
  """
  flatten = jax.tree_util.tree_flatten_with_path
  found = []
  outer, _ = flatten(tree, is_leaf=lambda x: _is_variable(x) or is_leaf(x))
  for keys, x in outer:
    inner = flatten(x, is_leaf=is_leaf)[0] if _is_variable(x) else [((), x)]
    for more, leaf in inner:
      # The first key within a Variable is its `value`.
      path = tuple(_name(key) for key in (*keys, *more[1:]))
      found.append((path, leaf))
  return found


def _name(key: Any) -> str:
  return jax.tree_util.keystr((key,), simple=True)


def text(path: Path) -> str:
  """A path as messages and patterns have it, like 'layers/0/kernel'."""
  return '/'.join(path)


def listed(names: list[str], most: int = 8) -> str:
  """Some paths for a message."""
  more = ', ...' if len(names) > most else ''
  return ', '.join(repr(name) for name in names[:most]) + more


def is_function(values: Any) -> bool:
  """Whether values are a function, and not a tree of a type with `__call__`."""
  leaves = jax.tree.leaves(values)
  return bool(leaves) and all(callable(x) for x in leaves)


def find(
  name: str,
  values: Any,
  tree: Any,
  is_value: Callable[[Any], bool] = lambda x: x is None,
) -> list[Any]:
  """What is said about each leaf of a tree.

  Args:
    name: of the argument that says it, for messages.
    values: a tree of values with the paths of `tree`, in containers of any
      type, or a prefix of one: a value at a path holds for all leaves below it.
      Or a function from `tree` to such a tree.
    tree: whose leaves are meant. Leaves that `optax.masked` or
      `optax.partition` took out need no value.
    is_value: what is a value besides the leaves of `values`.

  Returns:
    A value for each leaf, in the order of `jax.tree.leaves`.

  Raises:
    ValueError: naming a leaf of which nothing is said, or what names no leaf.
  """
  if is_function(values):
    values = values(tree)
  said = dict(
    leaves_with_path(values, is_leaf=lambda x: is_value(x) or is_masked(x))
  )
  paths, unused, found = [], set(said), []
  for path, x in leaves_with_path(tree, is_leaf=is_masked):
    paths.append(path)
    above = [path[:end] for end in range(len(path), -1, -1)]
    if is_masked(x):
      below = {other for other in unused if other[: len(path)] == path}
      unused -= below.union(above)
      continue
    at = next((place for place in above if place in said), None)
    if at is None or is_masked(said[at]):
      raise ValueError(
        f'{name} says nothing of {text(path)!r}; it has '
        f'{listed([*map(text, said)]) or "no paths"}.'
      )
    unused.discard(at)
    found.append(said[at])
  unused = {x for x in unused if not (said[x] is None or is_masked(said[x]))}
  if paths and unused:
    # A node without leaves may be named, like the () of a layer that has none.
    is_empty = lambda x: not jax.tree.leaves(x)
    unused -= {path for path, _ in leaves_with_path(tree, is_empty)}
  if paths and unused:
    raise ValueError(
      f'{name} names {listed(sorted(map(text, unused)))}, where no leaf is; '
      f'the leaves are {listed([*map(text, paths)])}.'
    )
  return found


def find_tree(name: str, values: Any, tree: Any, **options: Any) -> Any:
  """As `find`, as a tree like `tree`."""
  return jax.tree.structure(tree).unflatten(find(name, values, tree, **options))


def check_real(tree: Any) -> None:
  """Refuses complex leaves.

  Raises:
    ValueError: naming the leaf.
  """
  for path, x in leaves_with_path(tree):
    if jnp.iscomplexobj(x):
      raise ValueError(
        f'{text(path)!r} is complex, and this rule is one of real numbers: '
        'wrap it in optax.contrib.split_real_and_imaginary.'
      )
