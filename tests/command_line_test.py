"""How commands start, what they print, how they end."""

import os
import re
import subprocess
import sys

from absl import flags
from conftest import ROOT
import pytest

from experiments import (
  continual,
  delta_momentum_toy,
  optimizer_changes,
  optimizer_race,
  optimizer_speed,
)
from hope import command_line, errors
from hope.commands import describe, evaluate, generate, train
from hope.config import FIELDS
from hope.profiling import accelerator, aot, compare, throughput

COMMANDS = {
  'train': train,
  'generate': generate,
  'evaluate': evaluate,
  'describe': describe,
  'throughput': throughput,
  'accelerator': accelerator,
  'aot': aot,
  'compare': compare,
  'continual': continual,
  'delta_momentum_toy': delta_momentum_toy,
  'optimizer_changes': optimizer_changes,
  'optimizer_race': optimizer_race,
  'optimizer_speed': optimizer_speed,
}


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
    command_line.run(lambda values: None, lambda values: None)
  assert restarts == [
    (sys.executable, [sys.executable, '-m', 'hope.main', '--x=1'])
  ]
  assert os.environ['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'


@pytest.mark.parametrize(
  ('name', 'flag'), [('train', '--config'), ('generate', '--workdir')]
)
def test_a_script_without_a_docstring_explains_its_command(name, flag):
  """As console scripts are: neither text nor flags are of the script."""
  program = f'from hope.commands.{name} import start; start()'
  done = subprocess.run(
    [sys.executable, '-c', program, '--help'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert f'  hope-{name} --' in done.stdout
  assert f'  {flag}: ' in done.stdout


def test_a_console_script_starts_anew(tmp_path):
  """With huge pages, in the same process, and with its arguments."""
  script = tmp_path / 'hope-any'
  script.write_text(
    f'#!{sys.executable}\n'
    'import os, sys\n'
    'from hope import command_line\n'
    'print(os.getpid(), "GLIBC_TUNABLES" in os.environ)\n'
    'command_line.run(lambda values: print(sys.argv), lambda values: None)\n'
  )
  script.chmod(0o755)
  env = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
  env.pop('GLIBC_TUNABLES', None)
  done = subprocess.run(
    [script, '--verbosity=-1'],
    cwd=tmp_path,
    env=env,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  first, second, arguments = done.stdout.splitlines()
  assert first.endswith('False') and second.endswith('True')
  assert first.split()[0] == second.split()[0]
  assert arguments == str([str(script), '--verbosity=-1'])


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


def test_commands_are_imported_together():
  """Several have a flag of the same name."""
  for module in COMMANDS.values():
    values = flags.FlagValues()
    module.define_flags(values)
    assert set(values) & {'config', 'workdir', 'output'}


def program(act, **environment):
  """Runs a program that does this; returns (code, output, errors)."""
  lines = (
    'import sys',
    'from hope import command_line, errors',
    f'def main(values):\n  {act}',
    'command_line.run(main, lambda values: None)',
  )
  done = subprocess.run(
    [sys.executable, '-c', '\n'.join(lines)],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=60,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  ('error', 'code', 'text'),
  [
    ('ValueError("x=1 must be 2.")', 2, 'error: x=1 must be 2.'),
    ('OSError(28, "The disk is full")', 2, '[Errno 28] The disk is full'),
    ('errors.FixableError("Copy it.")', 2, 'error: Copy it.'),
    ('errors.ExplainedError("It is NaN.")', 1, 'error: It is NaN.'),
    ('ValueError("a\\x1b[2Jb\\rc")', 2, r'error: a\x1b[2Jb\rc'),
  ],
)
def test_what_the_user_can_mend_is_a_line(error, code, text):
  found, out, err = program(f'raise {error}')
  assert (found, out) == (code, '')
  assert err.endswith(f'{text}\n') and err.count('\n') == 1


def test_a_bug_has_a_traceback():
  code, _, err = program('{}["key"]')
  assert code == 1
  assert err.startswith('Traceback') and err.endswith("KeyError: 'key'\n")


def test_what_an_encoding_lacks_is_printed_as_a_question_mark():
  code, out, err = program('print("a\u2028b")', PYTHONIOENCODING='ascii')
  assert (code, out, err) == (0, 'a?b\n', '')


@pytest.mark.parametrize(('setting', 'seen'), [('1', 'first'), ('', '')])
def test_output_is_buffered_as_the_environment_says(setting, seen):
  # What os._exit leaves in a buffer is lost.
  act = 'print("first", end=""); import os; os._exit(3)'
  assert program(act, PYTHONUNBUFFERED=setting) == (3, seen, '')


def test_a_reader_that_goes_away_ends_nothing(tmp_path):
  kept = tmp_path / 'results'
  act = (
    'print("first", flush=True); sys.stdin.read(); '
    '[print("more" * 1000, flush=True) for _ in range(100)]; '
    f'open({str(kept)!r}, "w").write("done")'
  )
  lines = (
    f'import sys\nfrom hope import command_line\ndef main(values):\n  {act}',
    'command_line.run(main, lambda values: None)',
  )
  process = subprocess.Popen(
    [sys.executable, '-c', '\n'.join(lines)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdin and process.stdout and process.stderr
  assert process.stdout.readline() == 'first\n'
  process.stdout.close()
  process.stdin.close()  # it goes on
  assert process.wait(timeout=60) == 0
  assert process.stderr.read() == ''
  assert kept.read_text() == 'done'


EXPERIMENT = """
from hope.config import base_config, parse_arg

def get_config(arg=''):
  args = parse_arg(arg, steps=3, rate=0.1, act='')
  config = base_config()
  config.train.steps = args.steps
  if args.act == 'divide':
    1 / 0
  elif args.act == 'import':
    import none
  elif args.act == 'set a':
    config.a = 1
  elif args.act == 'set seed':
    config.seed = 'a'
  return {} if args.act == 'return {}' else config
"""


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([':step=4'], "x.py:5: 'step' is not an argument .* Did you mean steps?"),
    ([':steps=x'], "x.py:5: 'steps=x': steps must be of type int."),
    ([':rate=nan'], 'x.py:5: rate=nan must be a finite number.'),
    ([f':steps={10**30}'], r'x.py:5: steps=1000\d+ must be at most 2,147'),
    ([':act=divide'], 'x.py:.*: ZeroDivisionError: division by zero'),
    ([':act=import'], "x.py:.*: ModuleNotFoundError: No module .*'none'"),
    ([':act=set a'], 'x.py:.*: AttributeError: .* "a" .*locked. .$'),
    ([':act=set seed'], 'x.py:.*: TypeError: .*seed'),
    ([':act=return {}'], 'must return a ConfigDict'),
    (['.none'], "No such file or directory: '.*x.py.none'"),
    (['', '--config.train.steps=x'], 'config.train.steps=x: invalid literal'),
    (
      ['', '--config.train.stepz=3'],
      r'train.stepz is not a field .*. Did you mean train.steps\?$',
    ),
    (['', '--config.train.keep=3'], r'train.keep .* now checkpoint.keep; see'),
    (['', '--config.data.none.a=3'], 'data.none.a is not a field'),
    (['', '--config.model=3'], "Failed to parse '3' as a ConfigDict"),
    (['', 'hello'], "'hello' is not a flag"),
    (['', '--none=1'], "Unknown command line flag 'none'"),
    ([None], 'Flag --config must have a value'),
  ],
)
def test_a_mistake_in_a_flag_is_a_line(
  tmp_path, monkeypatch, arguments, message
):
  path = tmp_path / 'x.py'
  path.write_text(EXPERIMENT)
  argv = ['program', *arguments[1:]]
  if arguments[0] is not None:
    argv.insert(1, f'--config={path}{arguments[0]}')
  monkeypatch.setattr(sys, 'argv', argv)
  values = flags.FlagValues()
  train.define_flags(values)
  with pytest.raises(ValueError, match=message) as error:
    command_line.parse(values, argv)
  assert '\n' not in str(error.value)


def test_renamed_fields_are_those_of_the_changelog():
  """Each old name leads to a field, and the page has the same pairs."""
  text = (ROOT / 'CHANGELOG.md').read_text()
  pairs = {}
  for old, new in re.findall(r'^\| (`\w+\..*`) \| (`.*`) \|$', text, re.M):
    names = (re.findall(r'`([\w.]+)', cell) for cell in (old, new))
    pairs |= dict(zip(*names, strict=True))
  assert pairs == command_line.RENAMED
  assert not FIELDS.keys() & pairs.keys()
  assert FIELDS.keys() >= set(pairs.values())


def test_a_word_without_end_is_cut():
  text = errors.message(f'x={"9" * 5000} must be 2.\nOr 3.')
  assert len(text) < 200 and text.endswith('9 must be 2.\nOr 3.')
  assert errors.message('x=' + '9' * 200) == 'x=' + '9' * 200


def test_exit_codes():
  assert errors.exit_code(UnicodeDecodeError('ascii', b'', 0, 1, 'x')) == 2
  assert errors.exit_code(TypeError('x')) is None
