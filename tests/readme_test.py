"""README and pages: programs run, names and links lead somewhere."""

import importlib
import pathlib
import re
import shlex
import sys
import types

from absl import flags
from conftest import ROOT
import pytest

from hope import command_line, experiment_files
from hope.config import SECTIONS, resolve
from hope.model import PRESETS
from hope.run.workdir import HOW
from hope.tasks import TASKS, TEXT_TASKS

PAGES = (
  'README.md',
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  'docs/continual.md',
  'docs/equations.md',
  'docs/evaluation.md',
  'docs/running.md',
  'docs/tasks.md',
  'experiments/README.md',
  'launch/README.md',
  'optimizers/README.md',
)
# Letters of a line, but for tables, programs and what cannot be broken.
LONGEST = 100
ONE_SCREEN = 100  # lines


def blocks(page: str, language: str) -> list[str]:
  """The programs of a page."""
  text = (ROOT / page).read_text()
  return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def prose(page: str) -> str:
  """A page without its programs."""
  return re.sub(
    r'^```.*?^```$', '', (ROOT / page).read_text(), flags=re.M | re.S
  )


def anchors(path: pathlib.Path) -> set[str]:
  """What '#...' may name in a page: its headings."""
  headings = re.findall(r'^#+ (.*)$', path.read_text(), re.M)
  plain = (re.sub(r'[^\w -]', '', heading.lower()) for heading in headings)
  return {heading.replace(' ', '-') for heading in plain}


def find(name: str):
  """What a dotted name stands for."""
  module, _, attribute = name.rpartition('.')
  try:
    return getattr(importlib.import_module(module), attribute)
  except AttributeError:
    return importlib.import_module(name)


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  links = re.findall(r'\]\(([^)]+)\)', prose(page))
  for link in links:
    if not link.startswith('https://'):
      target, _, anchor = link.partition('#')
      path = ROOT / page if not target else (ROOT / page).parent / target
      assert path.exists(), link
      assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize('page', PAGES)
def test_files_and_names_are_there(page):
  known = {'hope', 'optimizers', 'experiments', 'tests', 'launch', 'docs'}
  for name in re.findall(r'`([\w./-]+)`', prose(page)):
    if name.partition('/')[0] in known and '/' in name and 'NAME' not in name:
      assert (ROOT / name).exists(), name


def test_equations_have_functions():
  rows = re.findall(r'^\| .* \| (.*) \|$', prose('docs/equations.md'), re.M)
  names = [name for row in rows for name in re.findall('`(.*?)`', row)]
  assert len(names) > 20
  for name in names:
    assert isinstance(find(name), types.FunctionType | type), name


def test_inner_learning_of_the_page(capsys):
  (program,) = blocks('docs/equations.md', 'python')
  exec(program, {})
  assert float(capsys.readouterr().out) < 0.1


def commands(page: str) -> list[list[str]]:
  """The commands of a page that name an experiment, in words."""
  text = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ')
  text = re.sub(r'--config=(FILE|\.\.\.)', '', text)
  lines = [shlex.split(line, comments=True) for line in text.splitlines()]
  return [x for x in lines if any(w.startswith('--config=') for w in x)]


@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)])
def test_experiments_of_commands_can_be_run(page, monkeypatch):
  for words in commands(page):
    given = ['program', *(w for w in words if w.startswith('--config'))]
    # Where the flags of a configuration look for its fields.
    monkeypatch.setattr(sys, 'argv', given)
    monkeypatch.chdir(ROOT)
    values = flags.FlagValues()
    command_line.define_config(values)
    values(given)
    resolve(values.config)


def test_patterns_can_be_built():
  rows = re.findall(r'^\| `(.*)` \| .* \|$', prose('docs/running.md'), re.M)
  assert len(rows) == 19
  for row in rows:
    config = experiment_files.experiment('smoke')
    config.model.pattern = row
    resolve(config)


def test_presets_are_those_of_the_page():
  text = prose('docs/running.md')
  for name in PRESETS:
    assert f'`{name}` (' in text


def test_tasks_are_those_of_the_page():
  rows = re.findall(r'^\| (`.*?) \|', prose('docs/tasks.md'), re.M)
  named = [name for row in rows for name in re.findall(r'`(\w+)`', row)]
  assert sorted(named) == sorted([*TASKS, *TEXT_TASKS])


def test_sections_are_those_of_the_page():
  """What is computed, and how: the page's two lists."""
  text = ' '.join(prose('docs/running.md').split())
  what, how = re.findall(
    r'((?:`\w+`(?:, | and )?)+) say \*(?:what|how)\*', text
  )
  tops = {section.partition('.')[0] for section in SECTIONS} - {''}
  assert set(re.findall(r'\w+', how)) - {'and'} == set(HOW)
  assert set(re.findall(r'\w+', what)) - {'and', 'seed'} == tops - set(HOW)


@pytest.mark.parametrize('page', PAGES)
def test_a_person_can_read_the_lines(page):
  for line in prose(page).splitlines():
    assert len(line) <= LONGEST or line.startswith('|'), line


def test_the_readme_is_one_screen():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= ONE_SCREEN
