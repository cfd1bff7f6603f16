#!/usr/bin/env python3
"""Starts one training run on many processes, and keeps it running.

  launch/pod.py {local,tpu-vm,gke,slurm} --config=FILE --workdir=DIR [FLAGS]
      [--dry-run] [-- FLAGS OF hope.main]

--dry-run prints every command and file and runs nothing. launch/README.md says
what each back end needs. Exit codes: those of training; 2 for something that
the user can fix; 130 if interrupted while the run goes on elsewhere.
"""

import argparse
import pathlib
import subprocess
import sys

import pod_check
import pod_gcloud
import pod_local
import pod_plan
import pod_tpu_vm


def _add_common(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add('--config', help='experiment file, with arguments after a colon')
  add('--workdir', help='directory of the run; may be gs://BUCKET/DIRECTORY')
  add('--dry-run', action='store_true', help='print the plan, run nothing')
  add(
    '--worker',
    metavar='COMMAND',
    help='the command that trains (default: python -m hope.main)',
  )
  add('--max-restarts', type=int, default=10, metavar='N')


def _add_supervised(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    '--reset-seconds',
    type=float,
    default=600.0,
    help='training that lasted this long resets the count of restarts',
  )


def _add_grace(parser: argparse.ArgumentParser, seconds: int) -> None:
  parser.add_argument(
    '--grace-seconds',
    type=int,
    default=seconds,
    help='time to save after SIGTERM (default: %(default)s)',
  )


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line, without what stands after --."""
  parser = pod_check.Parser(
    prog='launch/pod.py',
    description=__doc__.split('\n')[0],
    allow_abbrev=False,
  )
  backends = parser.add_subparsers(dest='backend', required=True)

  def backend(name, text):
    made = backends.add_parser(name, help=text, allow_abbrev=False)
    _add_common(made)
    return made

  local = backend('local', 'processes on this machine')
  local.description = (
    'Ctrl-C, SIGTERM, or SIGHUP as a terminal is closed, asks all processes to '
    'save; a second signal kills. Under nohup, SIGHUP ends nothing.'
  )
  _add_supervised(local)
  _add_grace(local, 300)
  local.add_argument('--processes', type=int, required=True, metavar='N')
  local.add_argument('--devices-per-process', type=int, metavar='M')
  local.add_argument('--log-dir', help='default: pod_logs in the workdir')

  tpu_vm = backend('tpu-vm', 'Cloud TPU VMs, as queued resources')
  _add_supervised(tpu_vm)
  _add_grace(tpu_vm, 300)
  pod_gcloud.add_flags(tpu_vm)

  gke = backend('gke', 'a GKE cluster of TPUs, through xpk')
  _add_grace(gke, 300)
  gke.add_argument('--name', default='hope', help='of the workload')
  for flag in ('cluster', 'project', 'zone', 'tpu-type', 'image'):
    gke.add_argument(f'--{flag}', required=True)
  gke.add_argument('--slices', type=int, default=1)

  slurm = backend('slurm', 'a Slurm cluster, one batch script')
  _add_grace(slurm, 120)
  slurm.add_argument('--name', default='hope', help='of the job')
  slurm.add_argument('--nodes', type=int, required=True)
  slurm.add_argument('--gpus-per-node', type=int, default=0)
  slurm.add_argument('--tasks-per-node', type=int)
  slurm.add_argument('--time', required=True, help='such as 24:00:00')
  slurm.add_argument('--partition', required=True)
  slurm.add_argument('--account')
  return parser


def parse(argv: list[str]) -> argparse.Namespace:
  """Returns the options; what stands after -- is in flags."""
  split = argv.index('--') if '--' in argv else len(argv)
  parser = make_parser()
  options = parser.parse_args(argv[:split])
  options.flags = argv[split + 1 :]
  if getattr(options, 'action', 'run') in ('run', 'attach'):
    for flag in ('config', 'workdir', *getattr(options, 'needed_to_run', ())):
      if not getattr(options, flag):
        name = flag.replace('_', '-')
        parser.error(f'{options.backend} needs --{name}=...')
  return options


def make_plan(options: argparse.Namespace) -> pod_plan.Plan:
  """Returns what the back end would run.

  Raises:
    ValueError: if an option is not allowed.
  """
  pod_check.check(options)
  plans = {
    'local': pod_plan.local,
    'tpu-vm': pod_gcloud.plan,
    'gke': pod_plan.gke,
    'slurm': pod_plan.slurm,
  }
  return plans[options.backend](options)


def _carry_out(plan: pod_plan.Plan) -> int:
  for file in plan.files:
    pathlib.Path(file.path).write_text(file.text)
  for command in plan.commands:
    code = subprocess.run(command.argv).returncode
    if code:
      return code
  return 0


def main(argv: list[str]) -> int:
  """Runs the command line; returns the exit code."""
  options = parse(argv)
  try:
    plan = make_plan(options)
    if options.dry_run:
      print(plan.render())
      return 0
    if options.backend == 'local':
      return pod_local.run(options)
    if options.backend == 'tpu-vm':
      return pod_tpu_vm.run(options, argv)
    return _carry_out(plan)
  except FileNotFoundError as error:
    print(
      f'error: {error.filename} was not found; launch/README.md says what '
      f'{options.backend} needs.',
      file=sys.stderr,
    )
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
