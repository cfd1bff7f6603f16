"""The adapter for lm-evaluation-harness, with and without the harness."""

import configparser
import importlib
import os
import subprocess
import sys
import sysconfig

from conftest import ROOT
import pytest


@pytest.mark.slow
def test_tasks_have_the_same_numbers_through_the_harness(tmp_path):
  """Installs the extra `eval` beside the packages of this environment."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  wanted = setup['options.extras_require']['eval'].split()
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
  python = tmp_path / 'venv' / 'bin' / 'python'
  (packages,) = (tmp_path / 'venv' / 'lib').glob('python*/site-packages')
  # After its own, the packages that are here are found.
  (packages / 'here.pth').write_text(sysconfig.get_paths()['purelib'])
  subprocess.run([python, '-m', 'pip', 'install', '-q', *wanted], check=True)
  done = subprocess.run(
    [python, '-m', 'pytest', '-q', 'tests/harness_cases.py'],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stdout
  assert '5 passed' in done.stdout


def test_without_the_harness_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'lm_eval.api.model', None)
  monkeypatch.delitem(sys.modules, 'hope.evaluation.harness', raising=False)
  with pytest.raises(ImportError, match=r"pip install 'hope-jax\[eval\]'"):
    importlib.import_module('hope.evaluation.harness')
