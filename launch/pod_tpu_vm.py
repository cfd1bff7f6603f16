"""What `launch/pod.py tpu-vm --action=...` does."""

import argparse
import re
import shlex
import signal
import subprocess
import sys
import tempfile

import pod_gcloud
from pod_machine import Phase, PodError, Run


def _act(options: argparse.Namespace, scratch: str) -> int:
  run_ = Run(options, scratch)
  if options.action == 'run':
    return run_.run(Phase.CREATE)
  resource = run_.describe()
  if resource is None:
    raise PodError(f'{options.name} is not there.', 2)
  if pod_gcloud.LABEL not in pod_gcloud.labels(resource):
    raise PodError(
      f'{options.name} was left as it is: launch/pod.py did not make it, it '
      f'has no label {pod_gcloud.LABEL}.',
      2,
    )
  if options.action == 'attach':
    return run_.run(Phase.WAIT)
  if options.action == 'stop':
    return run_.halt()
  if options.action == 'delete':
    return run_.delete()
  return subprocess.run(run_.commands.logs('100').argv).returncode


def _interrupt(number, frame):
  raise KeyboardInterrupt


def run(options: argparse.Namespace, argv: list[str]) -> int:
  """Does what --action says; returns the exit code.

  Args:
    options: The flags.
    argv: The command line, to tell how to go on after Ctrl-C.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, _interrupt)
  with tempfile.TemporaryDirectory(prefix='hope-pod-') as scratch:
    try:
      return _act(pod_gcloud.resolve(options), scratch)
    except PodError as error:
      print(f'error: {error}', file=sys.stderr)
      return error.code
    except KeyboardInterrupt:
      _say_how_to_go_on(options, argv)
      return 130


def _say_how_to_go_on(options: argparse.Namespace, argv: list[str]) -> None:
  split = argv.index('--') if '--' in argv else len(argv)
  own = re.sub(r' --action[= ]\S+', '', shlex.join(argv[:split]))
  program = shlex.join((sys.executable, sys.argv[0]))
  attach = f'{own} --action=attach {shlex.join(argv[split:])}'.rstrip()
  print(
    f'\npod: interrupted. {options.name} goes on and costs money.\n'
    f'Follow it again:\n  {program} {attach}\n'
    f'Save and end training; delete the machines:\n'
    f'  {program} {own} --action=stop\n  {program} {own} --action=delete',
    file=sys.stderr,
  )
