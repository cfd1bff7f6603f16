"""How dense the code is: counts that a reader feels, held by room."""

import ast
from collections.abc import Iterator
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LAMBDAS_PER_1000_LINES = 4
MAX_POSITIONAL = 8
MAX_POSITIONAL_FIELDS = 4


@functools.cache
def modules(room: str) -> dict[str, ast.Module]:
  """The parsed files of a room, by path, without those of rooms below."""
  paths = sorted((ROOT / room).glob('*.py'))
  return {str(p.relative_to(ROOT)): ast.parse(p.read_text()) for p in paths}


@functools.cache
def rooms() -> tuple[str, ...]:
  """Every folder of code."""
  files = [
    p for top in ('hope', 'optimizers') for p in (ROOT / top).rglob('*.py')
  ]
  return tuple(sorted({str(p.parent.relative_to(ROOT)) for p in files}))


def named_lambdas(tree: ast.Module) -> Iterator[int]:
  """Lines of assignments of a lambda to a name."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
      value = node.value
      values = value.elts if isinstance(value, ast.Tuple) else [value]
      for _ in (x for x in values if isinstance(x, ast.Lambda)):
        yield node.lineno


def long_signatures(tree: ast.Module) -> Iterator[str]:
  """Functions that take more than eight parameters by position."""
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      count = len(node.args.posonlyargs) + len(node.args.args)
      if count > MAX_POSITIONAL:
        name = getattr(node, 'name', 'lambda')
        yield f'{node.lineno}: {name} has {count}'


def _is_record(node: ast.ClassDef) -> bool:
  """Whether a class is a NamedTuple or a dataclass."""
  names = [ast.unparse(x) for x in (*node.bases, *node.decorator_list)]
  return any('NamedTuple' in x or 'dataclass' in x for x in names)


@functools.cache
def wide_records() -> frozenset[str]:
  """Names of the project's records of more than four fields."""
  wide = set()
  for room in rooms():
    for tree in modules(room).values():
      for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and _is_record(node):
          fields = sum(isinstance(x, ast.AnnAssign) for x in node.body)
          if fields > MAX_POSITIONAL_FIELDS:
            wide.add(node.name)
  return frozenset(wide)


def positional_records(tree: ast.Module) -> Iterator[str]:
  """Constructions of wide records with more than four fields by position."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func).rsplit('.', 1)[-1]
      starred = any(isinstance(x, ast.Starred) for x in node.args)
      if name in wide_records() and (
        starred or len(node.args) > MAX_POSITIONAL_FIELDS
      ):
        yield f'{node.lineno}: {name}'


def _is_array(annotation: ast.expr | None) -> bool:
  """Whether an annotation is an array, or a tuple of arrays, but no scalar."""
  text = '' if annotation is None else ast.unparse(annotation)
  others = 'int', 'float', 'Callable', 'dict', 'Mapping'
  return bool(re.search(r'jax\.Array\b|np\.ndarray', text)) and not any(
    word in text for word in others
  )


def _public_functions(
  body: list[ast.stmt], prefix: str = ''
) -> Iterator[tuple[str, ast.FunctionDef]]:
  """Public functions and methods, and `__call__`, with their names."""
  for node in body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      yield from _public_functions(node.body, f'{prefix}{node.name}.')
    elif isinstance(node, ast.FunctionDef):
      if not node.name.startswith('_') or node.name == '__call__':
        yield prefix + node.name, node


def _states_shape(node: ast.FunctionDef | ast.ClassDef, name: str) -> bool:
  """Whether brackets follow a name in a docstring, within a line or so."""
  text = ' '.join((ast.get_docstring(node) or '').split())
  return re.search(rf'\b{name}\b.{{0,90}}\[', text) is not None


def shapeless(tree: ast.Module) -> Iterator[str]:
  """Arrays of public functions and records without a shape in the docstring."""
  for name, node in _public_functions(tree.body):
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    for argument in (x for x in arguments if _is_array(x.annotation)):
      if not _states_shape(node, argument.arg):
        yield f'{node.lineno}: {argument.arg} of {name}'
    if _is_array(node.returns) and '[' not in (ast.get_docstring(node) or ''):
      yield f'{node.lineno}: what {name} returns'
  for node in tree.body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      for field in (x for x in node.body if isinstance(x, ast.AnnAssign)):
        name = ast.unparse(field.target)
        if _is_array(field.annotation) and not _states_shape(node, name):
          yield f'{field.lineno}: {name} of {node.name}'


def undocumented(tree: ast.Module) -> Iterator[str]:
  """Public functions, classes and methods without a docstring."""
  body = [(node, '') for node in tree.body]
  while body:
    node, prefix = body.pop()
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
      continue
    if node.name.startswith('_') and node.name != '__call__':
      continue
    if ast.get_docstring(node) is None:
      yield f'{node.lineno}: {prefix}{node.name}'
    if isinstance(node, ast.ClassDef):
      body += [(x, f'{node.name}.') for x in node.body]


def found(room: str, rule) -> list[str]:
  """What a rule finds in a room, each with its file and line."""
  return [
    f'{path}:{x}' for path, tree in modules(room).items() for x in rule(tree)
  ]


@pytest.mark.parametrize('room', rooms())
def test_named_lambdas(room):
  places = found(room, named_lambdas)
  lines = sum(
    len((ROOT / path).read_text().splitlines()) for path in modules(room)
  )
  assert len(places) <= LAMBDAS_PER_1000_LINES * lines / 1000, places


@pytest.mark.parametrize('room', rooms())
@pytest.mark.parametrize(
  'rule', [long_signatures, positional_records, shapeless, undocumented]
)
def test_finds_nothing(rule, room):
  assert not found(room, rule)
