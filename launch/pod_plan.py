"""What each back end of `launch/pod.py` would run: pure functions, no effects.

A plan is a list of files to write and commands to run, in this order. The same
plan is printed by --dry-run and carried out by the executors.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
import shlex
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Exit codes of the command that trains, after which it is started again:
# preempted and saved, an error of the runtime, stopped by the watchdog.
RETRIED_CODES = (42, 75, 83)
SAVED = 42


def is_retried(code: int) -> bool:
  """Whether training is started again after this exit code.

  Args:
    code: An exit code, or a signal's number: negative as Python has it, plus
      128 as a shell has it.
  """
  return code in RETRIED_CODES or code < 0 or 128 < code <= 192


@dataclasses.dataclass(frozen=True)
class Command:
  """One command.

  Attributes:
    purpose: What it is for, in a line.
    argv: The program and its arguments.
    env: What is set in its environment beside what is there.
    log: The file that its output is appended to; None shows it.
  """

  purpose: str
  argv: tuple[str, ...]
  env: tuple[tuple[str, str], ...] = ()
  log: str | None = None

  def render(self) -> str:
    """Returns it as a shell would take it, below a comment."""
    words = [f'{name}={shlex.quote(value)}' for name, value in self.env]
    words.append(shlex.join(self.argv))
    if self.log:
      words.append(f'>>{shlex.quote(self.log)} 2>&1')
    return f'# {self.purpose}\n{" ".join(words)}'


@dataclasses.dataclass(frozen=True)
class File:
  """A text file to write."""

  path: str
  text: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """Files to write, then commands to run."""

  commands: tuple[Command, ...]
  files: tuple[File, ...] = ()

  def render(self) -> str:
    """Returns what --dry-run prints."""
    files = [f'==> {file.path} <==\n{file.text}' for file in self.files]
    return '\n'.join(files + [each.render() for each in self.commands])


def training_command(
  options: argparse.Namespace,
  distributed: str = 'auto',
  program: Sequence[str] = ('python', '-m', 'hope.main'),
) -> list[str]:
  """Returns the command that trains, the same on every back end.

  Args:
    options: Has worker (replaces program where given), config, workdir, flags.
    distributed: off, auto, or HOST:PORT,COUNT,ID.
    program: The program and its first arguments.
  """
  if options.worker:
    program = shlex.split(options.worker)
  return [
    *program,
    f'--config={options.config}',
    f'--workdir={options.workdir}',
    f'--distributed={distributed}',
    *options.flags,
  ]


def check_config_file(config: str) -> None:
  """Raises ValueError if the experiment file is not there."""
  if not pathlib.Path(config.split(':')[0]).is_file():
    raise ValueError(
      f'--config={config}: there is no file {config.split(":")[0]}. Give an '
      'experiment file, such as experiments/smoke.py.'
    )


def config_in_checkout(config: str) -> str:
  """Returns --config with its file relative to this checkout.

  Raises:
    ValueError: if the file is not in this checkout, whose copy is what the
      workers have.
  """
  check_config_file(config)
  file, colon, arguments = config.partition(':')
  path = pathlib.Path(file).resolve()
  if not path.is_relative_to(ROOT):
    raise ValueError(
      f'--config={config} is outside of {ROOT}, and the workers have a copy of '
      'that directory only; put the file into its experiments/.'
    )
  return f'{path.relative_to(ROOT).as_posix()}{colon}{arguments}'


def check_shared_workdir(workdir: str) -> None:
  """Raises ValueError if workers on other machines cannot share workdir."""
  if '://' not in workdir and not workdir.startswith('/'):
    raise ValueError(
      f'--workdir={workdir} is relative, and every worker has its own disk. '
      'Give gs://BUCKET/DIRECTORY, or the absolute path of a file system that '
      'all workers have mounted.'
    )


def local(
  options: argparse.Namespace, port: int | str = 'PORT', cpu: bool = True
) -> Plan:
  """Returns one command for each process on this machine.

  Args:
    options: Has processes, devices_per_process (None leaves it to jax) and
      log_dir (None: pod_logs in the workdir).
    port: Where process 0 listens for the others.
    cpu: Whether to ask jax for CPU devices.

  Raises:
    ValueError: if there is no place for the logs.
  """
  check_config_file(options.config)
  log_dir = options.log_dir or f'{options.workdir}/pod_logs'
  if '://' in log_dir:
    raise ValueError(
      f'The logs of the processes cannot be kept in {log_dir}; give '
      '--log-dir=DIRECTORY on this machine.'
    )
  env = {'JAX_PLATFORMS': 'cpu'} if cpu else {}
  if options.devices_per_process is not None:
    env['JAX_NUM_CPU_DEVICES'] = str(options.devices_per_process)
  commands = []
  for index in range(options.processes):
    argv = training_command(
      options,
      f'127.0.0.1:{port},{options.processes},{index}',
      (sys.executable, '-m', 'hope.main'),
    )
    log = f'{log_dir}/process-{index}.log' if index else None
    commands.append(
      Command(f'process {index}', tuple(argv), tuple(env.items()), log)
    )
  return Plan(tuple(commands))


def gke(options: argparse.Namespace) -> Plan:
  """Returns the command that gives the run to xpk (GKE, JobSet, Kueue).

  xpk puts the command into a script of bash that waits for it; exec makes
  Python its direct child, which gets SIGTERM.
  """
  check_shared_workdir(options.workdir)
  options = _replace(options, config=config_in_checkout(options.config))
  argv = (
    *('xpk', 'workload', 'create'),
    f'--cluster={options.cluster}',
    f'--project={options.project}',
    f'--zone={options.zone}',
    f'--workload={options.name}',
    f'--tpu-type={options.tpu_type}',
    f'--num-slices={options.slices}',
    f'--docker-image={options.image}',
    f'--max-restarts={options.max_restarts}',
    f'--restart-on-exit-codes={",".join(map(str, RETRIED_CODES))}',
    f'--termination-grace-period-seconds={options.grace_seconds}',
    f'--command=exec {shlex.join(training_command(options))}',
  )
  return Plan((Command('give the run to the cluster', argv),))


def slurm(options: argparse.Namespace) -> Plan:
  """Returns the batch script and the command that queues it.

  jax gives every task of Slurm one GPU, the one of its number on the node
  (jax/_src/clusters/slurm_cluster.py), so there are as many tasks as GPUs.

  Raises:
    ValueError: if there is no task, or GPUs would be left idle.
  """
  check_config_file(options.config)
  gpus = options.gpus_per_node
  tasks = gpus if options.tasks_per_node is None else options.tasks_per_node
  if tasks < 1:
    raise ValueError(
      '--gpus-per-node=0 leaves no task; give GPUs, or --tasks-per-node=N.'
    )
  if gpus and tasks != gpus:
    raise ValueError(
      f'--tasks-per-node={tasks} differs from --gpus-per-node={gpus}, but jax '
      'gives each task of Slurm one GPU; leave out --tasks-per-node.'
    )
  settings = {
    'job-name': options.name,
    'nodes': options.nodes,
    'gpus-per-node': gpus or None,
    'ntasks-per-node': tasks,
    'time': options.time,
    'partition': options.partition,
    'account': options.account,
    'output': f'{options.name}-%j.log',
    'open-mode': 'append',
    'signal': f'TERM@{options.grace_seconds}',
  }
  # Slurm reads to the end of the line and takes quotes away itself.
  header = [
    f'#SBATCH --{name}={shlex.quote(str(value))}'
    for name, value in settings.items()
    if value is not None
  ]
  header = '\n'.join(header)
  codes = ' | '.join(map(str, RETRIED_CODES))
  text = f"""#!/usr/bin/env bash
{header}
#SBATCH --requeue
# Made by launch/pod.py. Slurm sends SIGTERM to the tasks, not to this script,
# {options.grace_seconds} s before the time is over. No task is killed because
# another one ended while it saves: --wait gives it time.
set -uo pipefail
code=0
srun --wait={options.grace_seconds} \\
  {shlex.join(training_command(options))} || code=$?
case $code in
  {codes} | 129 | 1[3-8][0-9] | 19[0-2])
    if ((${{SLURM_RESTART_COUNT:-0}} < {options.max_restarts})); then
      echo "pod: exit code $code; back into the queue." >&2
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "pod: exit code $code; restarted {options.max_restarts} times." >&2
    fi
    ;;
esac
exit "$code"
"""
  path = f'{options.name}.sbatch'
  return Plan(
    (Command('queue the run', ('sbatch', path)),), (File(path, text),)
  )


def _replace(options: argparse.Namespace, **fields) -> argparse.Namespace:
  return argparse.Namespace(**{**vars(options), **fields})
