"""What setup.cfg, the CI and the hooks state agrees."""

import configparser
import importlib
import re

from conftest import ROOT
import yaml

WORKFLOW = ROOT / '.github' / 'workflows' / 'tests.yml'
HOOKS = ROOT / '.pre-commit-config.yaml'


def stated() -> configparser.ConfigParser:
  """What setup.cfg has."""
  found = configparser.ConfigParser()
  found.read(ROOT / 'setup.cfg')
  return found


def test_ci_runs_the_python_versions_that_are_supported():
  jobs = yaml.safe_load(WORKFLOW.read_text())['jobs']
  classifiers = stated()['metadata']['classifiers']
  supported = re.findall(r'Python :: (3\.\d+)', classifiers)
  assert jobs['newest']['strategy']['matrix']['python'] == supported
  assert stated()['options']['python_requires'] == f'>={supported[0]}'
  lowest = jobs['lowest']['steps']
  assert lowest[1]['with']['python-version'] == supported[0]


def test_ci_runs_the_script_that_everybody_runs():
  jobs = yaml.safe_load(WORKFLOW.read_text())['jobs']
  assert set(jobs) == {'newest', 'lowest', 'slow', 'nightly-jax'}
  for job in jobs.values():
    command = job['steps'][-1]['run']
    program, *arguments = command.split()
    assert (ROOT / program).stat().st_mode & 0o100
    for argument in arguments:
      if argument.endswith('.py'):
        assert (ROOT / argument).is_file()
  assert jobs['slow']['steps'][-1]['run'] == 'launch/test.sh -m slow'


def test_hooks_have_the_versions_of_the_checks():
  """They are of the environment, and nothing is fetched."""
  repositories = yaml.safe_load(HOOKS.read_text())['repos']
  assert [x['repo'] for x in repositories] == ['local']
  tools = stated()['options.extras_require']['test']
  for hook in repositories[0]['hooks']:
    assert hook['language'] == 'system'
    assert hook['entry'].startswith('.venv/bin/')
    tool = hook['id'].partition('-')[0]
    assert re.search(rf'^{tool}', tools, re.M)
    assert tool in hook['entry']


def test_console_scripts_start_commands():
  scripts = stated()['options.entry_points']['console_scripts'].split('\n')
  for line in filter(None, scripts):
    name, place = line.split(' = ')
    module, function = place.split(':')
    assert module == f'hope.commands.{name.removeprefix("hope-")}'
    assert callable(getattr(importlib.import_module(module), function))
