"""The commands of `launch/pod.py tpu-vm`: pure functions, no effects."""

import argparse
import collections
import re
import secrets
import shlex
import subprocess

import pod_plan
from pod_plan import Command

# The label of what we make; its value tells one invocation from another.
LABEL = 'hope-pod'

RUNTIME_VERSIONS = {
  'v2': 'tpu-ubuntu2204-base',
  'v3': 'tpu-ubuntu2204-base',
  'v4': 'tpu-ubuntu2204-base',
  'v5litepod': 'v2-alpha-tpuv5-lite',
  'v5p': 'v2-alpha-tpuv5',
  'v6e': 'v2-alpha-tpuv6e',
}

# What a worker needs of this checkout; command.sh is added.
COPIED = (
  *('README.md', 'LICENSE', 'setup.py', 'setup.cfg', 'pyproject.toml'),
  *('requirements.txt', 'hope', 'optimizers', 'experiments', 'launch'),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this back end."""
  add = parser.add_argument
  add('--name', required=True, help='of the queued resource and the node')
  add('--project', required=True)
  add('--zone', required=True)
  add('--accelerator-type', metavar='TYPE', help='such as v5litepod-256')
  add('--runtime-version', help='default: the one for the accelerator type')
  tier = parser.add_mutually_exclusive_group()
  for name in ('spot', 'reserved', 'on-demand'):
    tier.add_argument(
      f'--{name}',
      dest='tier',
      action='store_const',
      const=name,
      default='spot',
    )
  add('--slices', type=int, default=1)
  add('--valid-until-duration', help='give up if not there by then: 6h')
  add(
    '--action',
    choices=('run', 'attach', 'logs', 'stop', 'delete'),
    default='run',
    help='attach goes on with a run; logs follows worker 0; stop saves and '
    'ends training and keeps the machines; delete deletes them',
  )
  add('--install', metavar='COMMAND', help='makes the environment on a worker')
  for what in ('create', 'ssh'):
    add(
      f'--gcloud-{what}',
      action='append',
      default=[],
      metavar='FLAG',
      help=f'one more flag of gcloud for {what}; may be repeated',
    )
  add('--poll-seconds', type=float, default=30.0)
  parser.set_defaults(
    needed_to_run=('accelerator_type',), invocation=secrets.token_hex(4)
  )


def runtime_version(options: argparse.Namespace) -> str:
  """Returns the software of the machines.

  Raises:
    ValueError: if the accelerator type is not known and no version is given.
  """
  if options.runtime_version:
    return options.runtime_version
  accelerator = options.accelerator_type
  kind = accelerator.rpartition('-')[0]
  if kind not in RUNTIME_VERSIONS:
    known = ', '.join(f'{kind}-N' for kind in RUNTIME_VERSIONS)
    hints = {
      'v5e': ' v5e is called v5litepod.',
      'tpu7x': ' tpu7x is available only on GKE: launch/pod.py gke.',
    }
    raise ValueError(
      f'--accelerator-type={accelerator} is not known: {known}.'
      f'{hints.get(kind, "")} Give --runtime-version=... for another type.'
    )
  return RUNTIME_VERSIONS[kind]


class Commands:
  """The commands of one run.

  Args:
    options: The flags.
    scratch: The directory here that command.sh and the archive are in.
  """

  def __init__(self, options: argparse.Namespace, scratch: str):
    self._options = options
    self._archive = f'{scratch}/hope-{options.name}.tar.gz'
    self._scratch = scratch
    self._home = f'hope-{options.name}'  # on the workers
    slices = range(options.slices)
    name = options.name
    self.nodes = (
      [name] if options.slices == 1 else [f'{name}-{i}' for i in slices]
    )

  def _gcloud(self, purpose: str, *words: str) -> Command:
    return Command(
      purpose,
      (
        *('gcloud', 'compute', 'tpus', *words),
        f'--project={self._options.project}',
        f'--zone={self._options.zone}',
        '--quiet',
      ),
    )

  def pack(self) -> Command:
    """Copies this checkout and command.sh into an archive."""
    return Command(
      'copy this checkout into an archive',
      (
        *('tar', '-czf', self._archive, '--exclude=__pycache__'),
        *('-C', str(pod_plan.ROOT), *COPIED),
        *('-C', self._scratch, 'command.sh'),
      ),
    )

  def create(self) -> Command:
    """Asks for the machines."""
    options = self._options
    words = [f'--node-id={options.name}']
    if options.slices > 1:
      words = [
        f'--node-count={options.slices}',
        f'--node-prefix={options.name}',
      ]
    if options.tier != 'on-demand':
      words.append(f'--{options.tier}')
    if options.valid_until_duration:
      words.append(f'--valid-until-duration={options.valid_until_duration}')
    return self._gcloud(
      'ask for the machines',
      *('queued-resources', 'create', options.name, *words),
      f'--accelerator-type={options.accelerator_type}',
      f'--runtime-version={runtime_version(options)}',
      f'--labels={LABEL}={options.invocation}',
      *options.gcloud_create,
    )

  def describe(self) -> Command:
    """Prints the queued resource as JSON."""
    return self._gcloud(
      'its state',
      *('queued-resources', 'describe', self._options.name, '--format=json'),
    )

  def delete(self) -> Command:
    """Deletes the queued resource and its nodes, and waits for it."""
    return self._gcloud(
      'delete the machines',
      *('queued-resources', 'delete', self._options.name, '--force'),
    )

  def copy(self, node: str) -> Command:
    """Copies the archive to all workers of a node."""
    return self._gcloud(
      f'copy the archive to {node}',
      *('tpu-vm', 'scp', self._archive, f'{node}:{self._home}.tar.gz'),
      *('--worker=all', '--scp-flag=-oConnectTimeout=20'),
      *self._options.gcloud_ssh,
    )

  def _ssh(self, purpose: str, node: str, worker: str, text: str) -> Command:
    return self._gcloud(
      f'{purpose} on {node}',
      *('tpu-vm', 'ssh', node, f'--worker={worker}', f'--command={text}'),
      *(
        '--ssh-flag=-oConnectTimeout=20',
        '--ssh-flag=-oServerAliveInterval=20',
      ),
      *self._options.gcloud_ssh,
    )

  def install(self, node: str) -> Command:
    """Unpacks the archive and makes the environment."""
    install = self._options.install or 'bash launch/tpu_vm.sh install'
    home = self._home
    return self._ssh(
      'install',
      node,
      'all',
      f'mkdir -p {home} && tar -xzf {home}.tar.gz -C {home} && cd {home} && '
      f'{install}',
    )

  def script(self, node: str, *words: str, worker: str = 'all') -> Command:
    """Runs launch/tpu_vm.sh, which says what the words mean."""
    text = shlex.join(('bash', f'{self._home}/launch/tpu_vm.sh', *words))
    return self._ssh(words[0], node, worker, text)

  def logs(self, lines: str) -> Command:
    """Prints the last lines of worker 0's log, and follows it."""
    return self.script(self.nodes[0], 'logs', lines, worker='0')

  def status(self, node: str) -> Command:
    """Prints the state of each worker, also of one that was not set up."""
    script = f'{self._home}/launch/tpu_vm.sh'
    text = (
      f'if [ -e {script} ]; then bash {script} status; '
      'else echo hope-worker $(hostname) missing; fi'
    )
    return self._ssh('status', node, 'all', text)


def command_file(options: argparse.Namespace, scratch: str) -> pod_plan.File:
  """Returns command.sh, which trains on a worker."""
  command = shlex.join(pod_plan.training_command(options))
  return pod_plan.File(
    f'{scratch}/command.sh',
    '#!/usr/bin/env bash\n'
    f'# Trains {options.name}; made by launch/pod.py.\n'
    'PATH=$PWD/.venv/bin:$PATH\n'
    f'exec {command}\n',
  )


def resolve(options: argparse.Namespace) -> argparse.Namespace:
  """Returns the options with config relative to this checkout.

  Raises:
    ValueError: if a flag is not allowed.
  """
  if options.action not in ('run', 'attach'):
    return options
  pod_plan.check_shared_workdir(options.workdir)
  runtime_version(options)
  config = pod_plan.config_in_checkout(options.config)
  return argparse.Namespace(**{**vars(options), 'config': config})


def plan(
  options: argparse.Namespace, scratch: str = 'SCRATCH'
) -> pod_plan.Plan:
  """Returns what the action would run if nothing goes wrong.

  Raises:
    ValueError: if a flag is not allowed.
  """
  options = resolve(options)
  commands = Commands(options, scratch)
  nodes = commands.nodes
  on_each = lambda make: [make(node) for node in nodes]
  status = on_each(commands.status)
  logs = commands.logs('100')
  halt = on_each(
    lambda node: commands.script(node, 'halt', str(options.grace_seconds))
  )
  if options.action == 'logs':
    return pod_plan.Plan((logs,))
  if options.action == 'stop':
    return pod_plan.Plan((commands.describe(), *halt, *status))
  if options.action == 'delete':
    return pod_plan.Plan((commands.describe(), commands.delete()))
  set_up = (
    commands.pack(),
    *on_each(commands.copy),
    *on_each(commands.install),
    *on_each(lambda node: commands.script(node, 'start')),
  )
  first = (commands.create(),) if options.action == 'run' else ()
  return pod_plan.Plan(
    (
      *first,
      commands.describe(),
      *set_up,
      *(logs, commands.describe(), *status, commands.delete()),
    ),
    (command_file(options, scratch),),
  )


def labels(resource: dict) -> dict[str, str]:
  """Returns the labels of a queued resource's first node."""
  specs = resource.get('tpu', {}).get('nodeSpec', [])
  return specs[0].get('node', {}).get('labels', {}) if specs else {}


def parse_status(text: str) -> dict[str, str]:
  """Returns each host's state from the lines of `tpu_vm.sh status`."""
  states = r'missing|running|lost|exited \d+|halted \d+'
  pattern = rf'^hope-worker (\S+) ({states})$'
  return dict(re.findall(pattern, text, re.MULTILINE))


def exit_codes(workers: dict[str, str]) -> list[int]:
  """Returns the codes of those that ended; one without a code was killed."""
  words = [state.split() for state in workers.values()]
  ended = [each for each in words if each[0] not in ('running', 'missing')]
  return [int(each[1]) if len(each) > 1 else 137 for each in ended]


def outcome(codes: list[int]) -> int:
  """Returns the code that stands for all workers.

  A mistake of the user comes first, as the others may have died of it; then
  whatever else is wrong; then 42; then 0.
  """
  rank = lambda code: (
    code != 0,
    code != pod_plan.SAVED,
    not pod_plan.is_retried(code),
  )
  return max(codes, key=rank)


def count_codes(codes: list[int]) -> str:
  """Returns such as '3 x 0, 1 x 137'."""
  counts = sorted(collections.Counter(codes).items())
  return ', '.join(f'{count} x {code}' for code, count in counts)


def reason(result: subprocess.CompletedProcess) -> str:
  """Returns what gcloud gave as the reason, in a line."""
  pattern = r'^ERROR: (?:\(\S+\) )?(.*)$'
  errors = re.findall(pattern, result.stderr, re.MULTILINE)
  lines = errors or result.stderr.strip().splitlines()
  return lines[-1] if lines else f'exit code {result.returncode}.'


def is_unreachable(result: subprocess.CompletedProcess) -> bool:
  """Whether ssh itself failed, and not the command on the worker."""
  return result.returncode == 255 or 'return code [255]' in result.stderr


def hint(text: str) -> str:
  """Returns what to do after a refused creation."""
  if re.search('RESOURCE_EXHAUSTED|quota', text, re.IGNORECASE):
    return (
      ' Ask for more quota, or choose another --accelerator-type, --zone or '
      'tier (--spot, --reserved, --on-demand).'
    )
  return ' Check --project, --zone and --accelerator-type.'
