"""What launch/pod.py would run: plans, messages, shell scripts."""

import configparser
import json
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

import pod_cases
from pod_cases import pod
import pod_check
import pod_gcloud
import pytest

from experiments import smoke
from hope.parallel import mesh

COMMON = (
  '--config=experiments/smoke.py:seed=1',
  '--workdir=gs://bucket/run',
  '--dry-run',
)
FLAGS = ('--', '--config.train.steps=5', "--note=it's")
TRAIN = (
  'python -m hope.main --config=experiments/smoke.py:seed=1 '
  '--workdir=gs://bucket/run --distributed=auto --config.train.steps=5 '
  """'--note=it'"'"'s'"""
)
TPU_VM = (
  *('tpu-vm', '--name=r1', '--project=p', '--zone=us-west4-a'),
  '--accelerator-type=v5litepod-256',
)
GKE = (
  *('gke', '--cluster=c', '--project=p', '--zone=us-west4-a'),
  *('--tpu-type=v5litepod-256', '--image=gcr.io/p/hope', '--name=r1'),
)
SLURM = ('slurm', '--nodes=2', '--gpus-per-node=8', '--time=24:00:00')
SLURM = (*SLURM, '--partition=gpu', '--name=r1')


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
  monkeypatch.chdir(pod_cases.ROOT)


def plan(backend, *further, common=COMMON, flags=FLAGS):
  options = pod.parse([*backend, *common, *further, *flags])
  options.invocation = 'ID'
  return pod.make_plan(options)


def test_local():
  made = plan(
    *(('local', '--processes=2', '--devices-per-process=4'),),
    '--log-dir=logs',
  ).render()
  made = made.replace(sys.executable, 'python')
  train = TRAIN.replace('=auto', '=127.0.0.1:PORT,2,{}')
  env = 'JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4'
  assert made.splitlines() == [
    '# process 0',
    f'{env} {train.format(0)}',
    '# process 1',
    f'{env} {train.format(1)} >>logs/process-1.log 2>&1',
  ]


def test_tpu_vm():
  made = plan(TPU_VM, '--valid-until-duration=6h')
  (command,) = made.files
  assert command.text.splitlines()[-1] == f'exec {TRAIN}'
  lines = [
    line for line in made.render().splitlines() if line.startswith('gcloud')
  ]
  place = '--project=p --zone=us-west4-a --quiet'
  alive = '--ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=20'
  ssh = 'gcloud compute tpus tpu-vm ssh r1'
  script = 'bash hope-r1/launch/tpu_vm.sh'
  describe = (
    f'gcloud compute tpus queued-resources describe r1 --format=json {place}'
  )
  assert lines == [
    'gcloud compute tpus queued-resources create r1 --node-id=r1 --spot '
    '--valid-until-duration=6h --accelerator-type=v5litepod-256 '
    f'--runtime-version=v2-alpha-tpuv5-lite --labels=hope-pod=ID {place}',
    describe,
    'gcloud compute tpus tpu-vm scp SCRATCH/hope-r1.tar.gz r1:hope-r1.tar.gz '
    f'--worker=all --scp-flag=-oConnectTimeout=20 {place}',
    f"{ssh} --worker=all '--command=mkdir -p hope-r1 && tar -xzf "
    "hope-r1.tar.gz -C hope-r1 && cd hope-r1 && bash launch/tpu_vm.sh install' "
    f'{alive} {place}',
    f"{ssh} --worker=all '--command={script} start' {alive} {place}",
    f"{ssh} --worker=0 '--command={script} logs 100' {alive} {place}",
    describe,
    f"{ssh} --worker=all '--command=if [ -e hope-r1/launch/tpu_vm.sh ]; then "
    f"{script} status; else echo hope-worker $(hostname) missing; fi' "
    f'{alive} {place}',
    f'gcloud compute tpus queued-resources delete r1 --force {place}',
  ]


def test_what_a_tpu_vm_gets_can_be_installed(tmp_path):
  """The archive has every file that building the package reads."""
  options = pod.parse([*TPU_VM, *COMMON])
  (tmp_path / 'command.sh').touch()
  pack = pod_gcloud.Commands(options, str(tmp_path)).pack()
  subprocess.run(pack.argv, check=True)
  with tarfile.open(tmp_path / 'hope-r1.tar.gz') as archive:
    names = set(archive.getnames())
  stated = configparser.ConfigParser()
  stated.read(pod_cases.ROOT / 'setup.cfg')
  metadata = stated['metadata']
  texts = metadata['long_description'], stated['options']['install_requires']
  files = [text.removeprefix('file: ') for text in texts]
  files += [metadata['license_files'], 'setup.py', 'setup.cfg']
  assert {*files, 'pyproject.toml', 'experiments/smoke.py'} <= names


def examples():
  """The commands of launch/README.md that start a run, in words."""
  text = (pod_cases.LAUNCH / 'README.md').read_text()
  for block in re.findall(r'```bash\n(.*?)```', text, re.DOTALL):
    words = shlex.split(block.replace('\\\n', ' '))
    if any(word.startswith('--config=experiments/') for word in words):
      yield words[words.index('launch/pod.py') + 1 :]


@pytest.mark.parametrize('words', list(examples()), ids=lambda x: x[0])
def test_the_batch_of_an_example_divides_over_its_devices(words):
  split = words.index('--') if '--' in words else len(words)
  own = dict(word.lstrip('-').split('=', 1) for word in words[1:split])
  number = lambda *names: math.prod(int(own[name]) for name in names)
  devices = {
    'local': lambda: number('processes', 'devices-per-process'),
    'tpu-vm': lambda: int(own['accelerator-type'].rpartition('-')[2]),
    'gke': lambda: int(own['tpu-type'].rpartition('-')[2]),
    'slurm': lambda: number('nodes', 'gpus-per-node'),
  }[words[0]]()
  config = smoke.get_config()
  assert own['config'] == 'experiments/smoke.py'
  for word in words[split + 1 :]:
    field, value = word.removeprefix('--config.').split('=')
    config.update_from_flattened_dict({field: int(value)})
  assert math.prod(mesh.shape(config, devices).values()) == devices


@pytest.mark.parametrize(
  ('flags', 'words', 'absent'),
  [
    (('--reserved',), ('--reserved', '--node-id=r1'), '--spot'),
    (('--on-demand',), ('--node-id=r1',), '--spot'),
    (('--slices=2',), ('--node-count=2', '--node-prefix=r1'), '--node-id=r1'),
    (('--gcloud-create=--network=n',), ('--network=n',), '--reserved'),
    (('--runtime-version=x',), ('--runtime-version=x',), '--reserved'),
  ],
)
def test_tpu_vm_creation(flags, words, absent):
  create = plan(TPU_VM, *flags).commands[0].argv
  assert set(words) <= set(create)
  assert absent not in create


@pytest.mark.parametrize(
  ('action', 'last'),
  [('logs', 'logs 100'), ('stop', 'status; '), ('delete', 'delete r1')],
)
def test_tpu_vm_actions_need_no_config(action, last):
  backend = TPU_VM[:-1]  # nor the type
  made = plan(backend, f'--action={action}', common=(), flags=())
  assert last in made.commands[-1].render()
  assert made.files == ()


def test_gke():
  (command,) = plan(GKE, '--slices=2').commands
  assert command.argv == (
    *('xpk', 'workload', 'create', '--cluster=c', '--project=p'),
    '--zone=us-west4-a',
    *('--workload=r1', '--tpu-type=v5litepod-256', '--num-slices=2'),
    *('--docker-image=gcr.io/p/hope', '--max-restarts=10'),
    '--restart-on-exit-codes=42,75,83',
    '--termination-grace-period-seconds=300',
    f'--command=exec {TRAIN}',
  )


def test_slurm():
  made = plan(SLURM, '--account=a')
  (file,) = made.files
  assert made.commands[0].argv == ('sbatch', 'r1.sbatch')
  assert file.path == 'r1.sbatch'
  lines = file.text.splitlines()
  assert [line for line in lines if line.startswith('#SBATCH')] == [
    '#SBATCH --job-name=r1',
    '#SBATCH --nodes=2',
    '#SBATCH --gpus-per-node=8',
    '#SBATCH --ntasks-per-node=8',
    '#SBATCH --time=24:00:00',
    '#SBATCH --partition=gpu',
    '#SBATCH --account=a',
    '#SBATCH --output=r1-%j.log',
    '#SBATCH --open-mode=append',
    '#SBATCH --signal=TERM@120',
    '#SBATCH --requeue',
  ]
  assert f'  {TRAIN} || code=$?' in lines


@pytest.mark.parametrize(
  ('code', 'restarts', 'requeued'),
  [
    *((code, 0, True) for code in (42, 75, 83, 134, 137, 143)),
    *((code, 0, False) for code in (0, 1, 2, 126, 127, 255)),
    (75, 10, False),
  ],
)
def test_slurm_requeues_what_may_pass(tmp_path, code, restarts, requeued):
  """Runs the batch script with an srun and an scontrol of ours."""
  (file,) = plan(SLURM).files
  script = tmp_path / file.path
  script.write_text(file.text)
  for name, body in {
    'srun': f'shift; printf "%s\\n" "$@" >{tmp_path}/srun; exit {code}',
    'scontrol': f'echo "$@" >{tmp_path}/scontrol',
  }.items():
    program = tmp_path / 'bin' / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/bash\n{body}\n')
    program.chmod(0o755)
  env = {
    'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
    'SLURM_JOB_ID': '7',
    'SLURM_RESTART_COUNT': str(restarts),
  }
  result = subprocess.run(['bash', script], env=env, capture_output=True)
  assert result.returncode == code
  assert (tmp_path / 'srun').read_text().splitlines()[-1] == "--note=it's"
  asked = tmp_path / 'scontrol'
  assert (asked.read_text() if asked.exists() else None) == (
    'requeue 7\n' if requeued else None
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((*TPU_VM, '--name=R1'), '--name=R1 is not allowed'),
    ((*TPU_VM, '--workdir=runs/x'), '--workdir=runs/x is relative'),
    ((*TPU_VM, '--config=/etc/passwd'), '/etc/passwd is outside of'),
    ((*TPU_VM, '--config=no.py:a=1'), 'there is no file no.py'),
    ((*TPU_VM, '--accelerator-type=v5e-256'), 'v5e is called v5litepod'),
    ((*TPU_VM, '--accelerator-type=tpu7x-8'), 'only on GKE'),
    ((*TPU_VM, '--slices=0'), '--slices=0 is not allowed: give 1 to'),
    (
      (*TPU_VM, '--max-restarts=-1'),
      '--max-restarts=-1 is not allowed: give 0 to',
    ),
    ((*GKE, '--workdir=runs/x'), '--workdir=runs/x is relative'),
    ((*SLURM, '--tasks-per-node=1'), '--tasks-per-node=1 differs from'),
    ((*SLURM, '--nodes=0'), '--nodes=0 is not allowed'),
    (('local', '--processes=0'), '--processes=0 is not allowed'),
    (
      ('local', '--processes=1', '--devices-per-process=0'),
      '--devices-per-process=0 is not allowed',
    ),
    (('local', '--processes=1'), 'give --log-dir='),
    ((*GKE, '--', '--workdir=x'), '--workdir=x stands after --'),
  ],
)
def test_mistakes_are_said_before_anything_runs(arguments, message, capsys):
  backend, *further = arguments
  split = further.index('--') if '--' in further else len(further)
  given = [backend, *COMMON, *further[:split], *further[split:]]
  assert pod.main(given) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ')
  assert message in err


def options_of(backend):
  """The names of a back end's options, without what argparse checks."""
  (choice,) = pod.make_parser()._subparsers._group_actions
  return [
    action
    for action in choice.choices[backend]._actions
    if action.dest not in ('help', *pod_check.CHOSEN)
  ]


BACKENDS = {
  'local': ('local', '--processes=2', '--log-dir=logs'),
  'tpu-vm': TPU_VM,
  'gke': GKE,
  'slurm': SLURM,
}
# Not allowed for any option that is a text, and for any that is a number.
TEXTS = ('', 'a\nb', '\x1b[2J', 'a\rb', 'a\x7f', 'a\u2028b', 'a\udcffb')
NUMBERS = ('-1', 'nan', 'inf', '-inf', '1e99', '', 'x', '1' * 5000, '9' * 18)


@pytest.mark.parametrize('backend', BACKENDS)
def test_what_no_option_of_any_back_end_takes(
  backend, capsys, monkeypatch, tmp_path
):
  """A line that names the option and 2, before anything is made."""
  monkeypatch.setattr(subprocess, 'run', None)
  monkeypatch.setattr(subprocess, 'Popen', None)
  monkeypatch.setattr(pathlib.Path, 'write_text', None)
  found = options_of(backend)
  assert len(found) > 8
  for action in found:
    assert action.dest in pod_check.RULES
    for value in NUMBERS if action.type else TEXTS:
      given = [*BACKENDS[backend], *COMMON[:2]]
      given.append(f'{action.option_strings[-1]}={value}')
      try:
        code = pod.main(given)
      except SystemExit as error:  # argparse's own
        code = error.code
      (line,) = capsys.readouterr().err.splitlines()
      assert code == 2
      assert line.startswith('error: ') and action.option_strings[-1] in line


@pytest.mark.parametrize('flag', TEXTS)
@pytest.mark.parametrize('backend', BACKENDS)
def test_what_no_flag_of_training_is(backend, flag, capsys):
  given = [*BACKENDS[backend], *COMMON, '--', f'--note={flag}' * bool(flag)]
  assert pod.main(given) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'is not allowed' in line


@pytest.mark.parametrize(
  ('backend', 'options'),
  [
    ('slurm', '--time=banana --time=1:2:3:4 --time=-5 --time=1-'),
    ('slurm', '--partition=a\\ b --partition=-x --account=a;b --nodes=0'),
    ('slurm', '--tasks-per-node=0 --gpus-per-node=0 --grace-seconds=1.5'),
    ('gke', '--cluster=C --cluster=a/b --project=-p --zone=a_b --slices=0'),
    ('gke', '--image=-x --image=a\\ b --tpu-type=v4/8 --name=1a'),
    ('tpu-vm', '--valid-until-duration=soon --gcloud-ssh=x --gcloud-create=-'),
    ('tpu-vm', '--poll-seconds=0 --runtime-version=-x --accelerator-type=-4'),
    ('tpu-vm', '--workdir=gs:// --workdir=gs: --workdir=gs://b/[1]'),
    ('tpu-vm', '--worker=\\"x --action=dance --reset-seconds=-0.1'),
    ('local', '--log-dir=gs://b/logs --worker=\\\\ --workdir=a*'),
  ],
)
def test_what_an_option_does_not_take(backend, options, capsys):
  for option in shlex.split(options):
    try:
      code = pod.main([*BACKENDS[backend], *COMMON, option])
    except SystemExit as error:
      code = error.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and option.partition('=')[0] in line


@pytest.mark.parametrize(
  ('backend', 'options'),
  [
    ('slurm', '--time=0 --time=90 --time=1:30 --time=2-12 --time=2-12:30:00'),
    ('slurm', '--partition=gpu,long --account=a.b@c --name=h'),
    ('slurm', '--tasks-per-node=8 --workdir=/shared/run\\ 1 --nodes=1000'),
    (
      'gke',
      '--project=example.com:p --project=123 --image=h:5000/a/b@sha256:0',
    ),
    ('gke', '--image=hope --tpu-type=tpu7x-4x4x4 --slices=64'),
    ('tpu-vm', '--valid-until-duration=1h30m --gcloud-ssh=--internal-ip'),
    ('tpu-vm', '--gcloud-create=--network=a=b --runtime-version=a.b_c-1'),
    ('local', '--reset-seconds=0.5 --max-restarts=0 --grace-seconds=0'),
  ],
)
def test_what_an_option_takes(backend, options):
  for option in shlex.split(options):
    assert plan(BACKENDS[backend], option).commands


def test_a_program_that_is_not_installed(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('PATH', str(tmp_path))
  assert pod.main([*GKE, *COMMON[:2]]) == 2
  assert 'error: xpk was not found' in capsys.readouterr().err


def test_shell_is_clean(tmp_path):
  """Shipped and generated, by shellcheck."""
  paths = [*(pod_cases.ROOT / 'launch').glob('*.sh')]
  for backend in (TPU_VM, SLURM):
    for file in plan(backend).files:
      paths.append(tmp_path / pathlib.Path(file.path).name)
      paths[-1].write_text(file.text)
  remote = plan(TPU_VM, '--slices=2').commands
  for index, command in enumerate(remote):
    for word in command.argv:
      if word.startswith('--command='):
        paths.append(tmp_path / f'remote-{index}.sh')
        text = word.removeprefix('--command=')
        paths[-1].write_text(f'#!/usr/bin/env bash\n{text}\n')
  assert len(paths) > 10
  # SC2046: a name of a host has no spaces.
  result = subprocess.run(
    [
      pathlib.Path(sys.executable).with_name('shellcheck'),
      '-x',
      '--exclude=SC2046',
      *paths,
    ],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stdout


@pytest.fixture
def make_venv(tmp_path):
  """Makes an environment of its own; returns its interpreter."""
  directory = tmp_path / 'venv'

  def make(*requirements):
    subprocess.run([sys.executable, '-m', 'venv', directory], check=True)
    python = directory / 'bin/python'
    install = [python, '-m', 'pip', 'install', '--quiet', *requirements]
    subprocess.run(install, check=True)
    return python

  yield make
  shutil.rmtree(directory, ignore_errors=True)  # it is large


def paths_of(value, path=()):
  """Yields the paths to all leaves of nested dicts and lists."""
  if isinstance(value, dict):
    for key, each in value.items():
      yield from paths_of(each, (*path, key))
  elif isinstance(value, list):
    for index, each in enumerate(value):
      yield from paths_of(each, (*path, index))
  else:
    yield path


# Holds the JobSet against the models of its interface, which ignore what they
# do not know, and its Job strictly against the schema of Kubernetes. xpk leaves
# some values empty.
CHECK_MANIFEST = """
import json, sys, kubernetes_validate, yaml
from kubeflow_trainer_api import models

def filled(value):
  if isinstance(value, dict):
    return {k: filled(each) for k, each in value.items() if each is not None}
  return [*map(filled, value)] if isinstance(value, list) else value

(jobset,) = filter(None, yaml.safe_load_all(open(sys.argv[1])))
jobset = filled(jobset)
understood = models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
(job,) = jobset['spec']['replicatedJobs']
job = {'apiVersion': 'batch/v1', 'kind': 'Job', **job['template']}
version = kubernetes_validate.latest_version()
kubernetes_validate.validate(job, version, strict=True)
json.dump([jobset, understood], sys.stdout, default=str)
"""

CHECK_TASK = """
import sys, sky, yaml
config = yaml.safe_load(open(sys.argv[1]))
print(sky.Task.from_yaml_config(config, [('WORKDIR', 'gs://b/run')]).run)
"""


@pytest.mark.slow
def test_xpk_takes_the_command(tmp_path, make_venv):
  """The JobSet that xpk would apply has what was asked for.

  Installs xpk from the package index, in an environment of its own.
  """
  checkers = ('kubeflow-trainer-api', 'kubernetes-validate', 'pyyaml')
  python = make_venv('xpk', *checkers)
  (command,) = plan(GKE).commands
  manifest = tmp_path / 'out.yaml'
  dry = ['--dry-run', '--skip-validation', f'--output-manifest-file={manifest}']
  env = {**os.environ, 'PATH': f'{python.parent}:{os.environ["PATH"]}'}
  subprocess.run([*command.argv, *dry], check=True, env=env, cwd=tmp_path)
  result = subprocess.run(
    [python, '-c', CHECK_MANIFEST, manifest], check=True, capture_output=True
  )
  given, understood = json.loads(result.stdout)
  assert set(paths_of(given)) <= set(paths_of(understood))
  assert given['spec']['failurePolicy']['maxRestarts'] == 10
  (job,) = given['spec']['replicatedJobs']
  job_spec = job['template']['spec']
  (rule,) = [
    each['onExitCodes']
    for each in job_spec['podFailurePolicy']['rules']
    if each['action'] == 'FailJob'
  ]
  assert rule['operator'] == 'NotIn'
  assert {42, 75, 83} <= set(rule['values'])
  assert not {1, 2} & set(rule['values'])
  pod_spec = job_spec['template']['spec']
  assert pod_spec['terminationGracePeriodSeconds'] == 300
  (container,) = pod_spec['containers']
  assert f'exec {TRAIN}' in container['command'][-1]


@pytest.mark.slow
def test_skypilot_takes_the_example(tmp_path, make_venv):
  """Installs skypilot from the package index, in an environment of its own."""
  python = make_venv('skypilot[gcp]')
  path = pod_cases.ROOT / 'launch/skypilot.yaml'
  result = subprocess.run(
    [python, '-c', CHECK_TASK, path],
    capture_output=True,
    text=True,
    env={**os.environ, 'HOME': str(tmp_path)},
  )
  assert result.returncode == 0, result.stderr
  assert 'exec python -m hope.main --config=' in result.stdout
