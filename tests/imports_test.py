"""The floors of the house: a module imports from its own floor and below.

Every import counts, also those within functions and those for type checkers.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
# Lowest first. A name stands for a module or for all modules of a room; modules
# of one floor may import each other, but never in a circle.
FLOORS = (
  ('version', 'signals', 'fields', 'compilation_cache'),
  ('errors', 'parts'),
  ('parallel',),
  ('memory',),
  ('layers',),
  ('mixers', 'feedforward', 'tasks'),
  ('blocks',),
  ('model', 'loss', 'optimizer', 'data'),
  ('sampling', 'fast_state', 'evaluation', 'run', 'state_file'),
  ('experiment_files', 'command_line'),
  ('config', 'levels', 'matching'),
  ('training',),
  ('trained', 'profiling', 'continual'),
  ('commands',),
  ('main', 'generate', 'evaluate', 'describe', 'datasets'),
  ('throughput', 'aot', 'accelerator', 'compare'),
  ('',),  # the face
)


def name_of(path):
  return '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
    '.__init__'
  )


MODULES = {name_of(path): path for path in (ROOT / 'hope').rglob('*.py')}


def imported(path):
  """Modules of hope that a file imports."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        found.add(whole if whole in MODULES else node.module)
  return {name for name in found if name.split('.')[0] == 'hope'}


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def floor(name):
  room = name.removeprefix('hope').removeprefix('.').split('.')[0]
  (found,) = (i for i, rooms in enumerate(FLOORS) if room in rooms)
  return found


def test_every_module_is_on_one_floor():
  for name in MODULES:
    floor(name)


def test_no_import_runs_up():
  up = {
    (name, other)
    for name, others in IMPORTS.items()
    for other in others
    if floor(other) > floor(name)
  }
  assert not up


def test_no_imports_run_in_a_circle():
  done, open_ = set(), []

  def visit(name):
    assert name not in open_, [*open_, name]
    if name not in done:
      open_.append(name)
      for other in sorted(IMPORTS[name]):
        # A room's __init__ lists its modules, which may import each other.
        if other != name:
          visit(other)
      open_.pop()
      done.add(name)

  for name in MODULES:
    visit(name)


def test_optimizers_import_nothing_of_hope():
  for path in (ROOT / 'optimizers').rglob('*.py'):
    assert not imported(path), path
