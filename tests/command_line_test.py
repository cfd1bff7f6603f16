"""A command asks glibc for huge pages once, before it does anything."""

import os
import sys

import pytest

from hope import command_line


class Restarted(Exception):
  """In place of a process that starts anew."""


@pytest.fixture
def restarts(monkeypatch):
  """The arguments that processes were started with."""
  calls = []

  def execv(path, argv):
    calls.append((path, argv))
    raise Restarted

  monkeypatch.setattr(os, 'execv', execv)
  monkeypatch.setattr(sys, 'platform', 'linux')
  monkeypatch.setenv('GLIBC_TUNABLES', '')  # so that it is put back
  monkeypatch.delenv('GLIBC_TUNABLES')
  monkeypatch.setattr(sys, 'orig_argv', ['python3', '-m', 'hope.main', '--x=1'])
  return calls


def test_starts_anew_with_the_same_arguments(restarts):
  with pytest.raises(Restarted):
    command_line.run(lambda argv: None)
  assert restarts == [
    (sys.executable, [sys.executable, '-m', 'hope.main', '--x=1'])
  ]
  assert os.environ['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'


@pytest.mark.parametrize(
  ('platform', 'setting'),
  [('linux', 'glibc.malloc.check=3'), ('linux', ''), ('darwin', None)],
)
def test_goes_on_elsewhere(restarts, monkeypatch, platform, setting):
  monkeypatch.setattr(sys, 'platform', platform)
  if setting is not None:
    monkeypatch.setenv('GLIBC_TUNABLES', setting)
  command_line._use_huge_pages()
  assert restarts == []
  assert os.environ.get('GLIBC_TUNABLES') == setting
