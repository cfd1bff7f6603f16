"""Ctrl-C and SIGTERM: at once, in a line, whatever the main thread does."""

import signal
import subprocess
import sys
import time

from conftest import ROOT, terminal_signals
import pytest

# Key derivation stands for a compilation: it does not return to Python.
PROGRAM = """
import hashlib, os, sys
os.environ['GLIBC_TUNABLES'] = ''  # this program is not started anew
from hope import command_line, signals
training = len(sys.argv) > 1 and sys.argv.pop()
def main(values):
  if training:
    signals.save_first(lambda: print('saving', flush=True))
  print('ready', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', (1 << 31) - 1)
command_line.run(main, lambda values: None)
"""


def start(*arguments):
  with terminal_signals():
    process = subprocess.Popen(
      [sys.executable, '-c', PROGRAM, *arguments],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert process.stdout.readline() == 'ready\n'
  return process


def end(process):
  out, err = process.communicate(timeout=10)
  return process.returncode, out, err


@pytest.mark.parametrize(
  ('number', 'code', 'name'),
  [(signal.SIGINT, 130, 'Ctrl-C'), (signal.SIGTERM, 143, 'SIGTERM')],
)
def test_a_busy_program_ends(number, code, name):
  process = start()
  process.send_signal(number)
  text = f'{name}: ended; there was nothing to save.\n'
  assert end(process) == (code, '', text)


@pytest.mark.parametrize('second', [signal.SIGINT, signal.SIGTERM])
def test_training_saves_and_a_second_signal_ends_it(second):
  process = start('training')
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGTERM)  # from a launcher that had it as well
  assert process.stdout.readline() == 'saving\n'
  time.sleep(1.2)
  assert process.poll() is None
  process.send_signal(second)
  code, out, err = end(process)
  assert (code, out) == (128 + second, '')
  saving, ended = err.splitlines()
  assert 'saving after this step; once more ends at once' in saving
  assert ended.endswith(' again: ended without saving.')
