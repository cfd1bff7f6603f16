"""A cloud of TPU machines that is not there, for the tests of launch/pod.py.

A loopback server answers as the TPU API does, for the real gcloud or for the
small stand-in below where gcloud is not installed. `ssh` and `scp` on PATH take
the machine from the address: worker I of 127.0.0.(I+1) is a directory here, and
its processes are processes here.
"""

import contextlib
import getpass
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import urllib.parse

import pod_cases

SSH = r"""#!/usr/bin/env bash
while [[ $1 != -- ]]; do host=$1; shift; done
shift
export WORKER_INDEX=$((${host##*.} - 1))
[[ ! -e $FAKE_TPU/unreachable-$WORKER_INDEX ]] || exit 255
export HOME=$FAKE_TPU/worker-$WORKER_INDEX
cd "$HOME" && exec bash -c "$*" </dev/null
"""

SCP = r"""#!/usr/bin/env bash
source=${*: -2:1} target=${*: -1}
host=${target%%:*}
worker=$((${host##*.} - 1))
[[ ! -e $FAKE_TPU/unreachable-$worker ]] || exit 255
cp "$source" "$FAKE_TPU/worker-$worker/${target#*:}"
"""

HOSTNAME = '#!/usr/bin/env bash\necho "t1v-n-fake-w-$WORKER_INDEX"\n'

# Takes the flags that pod.py gives to gcloud 528, and no others.
GCLOUD = r"""
import argparse, json, os, subprocess, sys, urllib.error, urllib.parse
import urllib.request

parser = argparse.ArgumentParser(prog='gcloud', allow_abbrev=False)
for flag in ('project', 'zone', 'format', 'node-id', 'node-count'):
  parser.add_argument(f'--{flag}')
for flag in ('node-prefix', 'accelerator-type', 'runtime-version', 'labels'):
  parser.add_argument(f'--{flag}')
for flag in ('worker', 'command', 'valid-until-duration', 'ssh-key-file'):
  parser.add_argument(f'--{flag}')
for flag in ('ssh-flag', 'scp-flag'):
  parser.add_argument(f'--{flag}', action='append', default=[])
for flag in ('quiet', 'spot', 'reserved', 'force'):
  parser.add_argument(f'--{flag}', action='store_true')
parser.add_argument('words', nargs='+')
args = parser.parse_args()
_, _, group, verb, *rest = args.words
base = os.environ['CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU'] + 'v2/'
parent = f'projects/{args.project}/locations/{args.zone}'

def call(method, path, body=None):
  data = None if body is None else json.dumps(body).encode()
  request = urllib.request.Request(base + path, data, method=method)
  try:
    return json.load(urllib.request.urlopen(request))
  except urllib.error.HTTPError as error:
    details = json.load(error)['error']
    text = f'{details["status"]}: {details["message"]}'
    sys.exit(f'ERROR: (gcloud.compute.tpus.{group}.{verb}) {text}')

if group == 'queued-resources':
  path = f'{parent}/queuedResources'
  if verb == 'create':
    node = {
      'acceleratorType': args.accelerator_type,
      'runtimeVersion': args.runtime_version,
      'labels': dict([args.labels.split('=')]),
    }
    spec = {'parent': parent, 'nodeId': args.node_id, 'node': node}
    if args.node_count:
      spec['multisliceParams'] = {
        'nodeCount': int(args.node_count), 'nodeIdPrefix': args.node_prefix
      }
    body = {'tpu': {'nodeSpec': [spec]}}
    body |= {'spot': {}} if args.spot else {}
    call('POST', f'{path}?queuedResourceId={rest[0]}', body)
  elif verb == 'describe':
    print(json.dumps(call('GET', f'{path}/{rest[0]}')))
  elif verb == 'delete':
    call('DELETE', f'{path}/{rest[0]}?force=true')
else:
  name = rest[0] if verb == 'ssh' else rest[1].split(':')[0]
  ends = call('GET', f'{parent}/nodes/{name}')['networkEndpoints']
  ends = ends if args.worker == 'all' else [ends[int(args.worker)]]
  calls = []
  for end in ends:
    address = 'user@' + end['ipAddress']
    if verb == 'ssh':
      argv = ['ssh', '-T', *args.ssh_flag, address, '--', args.command]
    else:
      target = address + ':' + rest[1].split(':')[1]
      argv = ['scp', *args.scp_flag, rest[0], target]
    calls.append(subprocess.Popen(argv))
  codes = [each.wait() for each in calls]
  sys.exit(next(filter(None, codes), 0))
"""

# As gcloud looks for it in the project's metadata: no comment.
KEY = (
  'ssh-ed25519 '
  'AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f'
)


class FakeTpu:
  """The cloud.

  Attributes:
    states: What a queued resource goes through, a state for each time it is
      looked at; the last one stays.
    refusal: (HTTP code, status, message) for what is asked for; None grants it.
    failure: google.rpc.Status of a resource that is FAILED.
    can_delete: Whether a deletion is granted.
    resources: The queued resources by name, as the API gives them.
    requests: (method, path) of all requests.
  """

  def __init__(self, directory, client, workers=4, nodes=1):
    self.directory = directory
    self.workdir = directory / 'run'
    self.workdir.mkdir()
    self.worker = pod_cases.write_stub(directory)
    self.states = ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
    self.refusal = None
    self.failure = None
    self.can_delete = True
    self.resources = {}
    self.requests = []
    self._left = {}
    self._workers = workers
    self._nodes = nodes
    self._programs(client)
    for index in range(workers * nodes):
      self.home(index).mkdir()
    self._server = http.server.ThreadingHTTPServer(
      ('127.0.0.1', 0), self._handler()
    )
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    base = f'http://127.0.0.1:{self._server.server_port}/'
    self.env = {
      'PATH': f'{directory / "bin"}{os.pathsep}{os.environ["PATH"]}',
      'FAKE_TPU': str(directory),
      'CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU': base,
      'CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE': f'{base}compute/v1/',
      'CLOUDSDK_AUTH_DISABLE_CREDENTIALS': 'true',
      'CLOUDSDK_CORE_DISABLE_USAGE_REPORTING': 'true',
      'CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK': 'true',
      'CLOUDSDK_CORE_PROJECT': 'p',
      'CLOUDSDK_CONFIG': str(directory / 'gcloud'),
    }

  def home(self, index):
    """The home directory of a worker."""
    return self.directory / f'worker-{index}'

  def _programs(self, client):
    programs = {'ssh': SSH, 'scp': SCP, 'hostname': HOSTNAME}
    if client == 'stub' or shutil.which('gcloud') is None:
      programs['gcloud'] = f'#!{sys.executable} -S\n{GCLOUD}'
    (self.directory / 'bin').mkdir()
    for name, text in programs.items():
      path = self.directory / 'bin' / name
      path.write_text(text)
      path.chmod(0o755)
    (self.directory / 'key').write_text('not a key\n')
    (self.directory / 'key').chmod(0o600)
    (self.directory / 'key.pub').write_text(f'{KEY} fake\n')

  def pod(self, *options, name='r1', worker=None, install='true', flags=()):
    """Starts launch/pod.py tpu-vm against this cloud.

    Args:
      options: Further flags of pod.py.
      name: Of the queued resource.
      worker: The command that trains; None for the stub. It runs in a copy
        of the checkout, with WORKER_INDEX in its environment; as there is no
        cluster to ask, it has to put an address in place of
        --distributed=auto if it is to be the real one.
      install: The command that makes the environment on a worker.
      flags: Flags of the command that trains.
    """
    return pod_cases.launch(
      *('tpu-vm', f'--name={name}', '--project=p', '--zone=z'),
      *(f'--config={pod_cases.CONFIG}', f'--workdir={self.workdir}'),
      '--accelerator-type=v5litepod-32',
      *(f'--worker={worker or self.worker}', f'--install={install}'),
      *('--poll-seconds=0.1', f'--gcloud-ssh=--ssh-key-file={self._key}'),
      *options,
      *('--', *flags),
      env=self.env,
    )

  @property
  def _key(self):
    return self.directory / 'key'

  def add(self, name, resource):
    """Adds a queued resource that somebody else made."""
    self.resources[name] = resource
    self._left[name] = []

  def suspend(self):
    """Takes the machines away, as from Spot VMs."""
    for resource in self.resources.values():
      resource['state'] = {'state': 'SUSPENDED'}
    self._clear()

  def kill_worker(self, index):
    """Kills what trains on a worker."""
    run = next(self.home(index).glob('hope-*/run'))
    os.kill(int((run / 'python').read_text()), signal.SIGKILL)

  def _on_machines(self):
    """The ids of all that runs on the machines, commands of ssh among it."""
    pids = []
    for path in pathlib.Path('/proc').glob('[0-9]*/environ'):
      with contextlib.suppress(OSError):  # gone, or not ours
        words = path.read_bytes().decode(errors='replace').split('\0')
        names = {word.partition('=')[0] for word in words}
        if f'FAKE_TPU={self.directory}' in words and 'WORKER_INDEX' in names:
          pids.append(int(path.parent.name))
    return pids

  def _clear(self):
    while pids := self._on_machines():
      for pid in pids:
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGKILL)
    for index in range(self._workers * self._nodes):
      shutil.rmtree(self.home(index), ignore_errors=True)
      self.home(index).mkdir()

  def close(self):
    """Ends the server and all processes of the workers."""
    self._server.shutdown()
    self._server.server_close()
    self._clear()

  def _node(self, name):
    node = 0 if self._nodes == 1 else int(name.rpartition('-')[2])
    first = node * self._workers
    return {
      'name': f'projects/p/locations/z/nodes/{name}',
      'state': 'READY',
      'apiVersion': 'V2',
      'health': 'HEALTHY',
      'networkConfig': {},
      'networkEndpoints': [
        {'ipAddress': f'127.0.0.{first + index + 1}', 'port': 8470}
        for index in range(self._workers)
      ],
    }

  def _answer(self, method, url, body):
    """Returns (HTTP code, JSON)."""
    path = urllib.parse.urlsplit(url).path
    name = path.rpartition('/')[2]
    done = {'name': 'projects/p/locations/z/operations/op', 'done': True}
    missing = 404, 'NOT_FOUND', f'Resource {path} was not found'
    if path.startswith('/compute/v1/'):
      user = getpass.getuser()
      items = [{'key': 'ssh-keys', 'value': f'{user}:{KEY} {user}'}]
      items.append({'key': 'enable-oslogin', 'value': 'FALSE'})
      return 200, {'name': 'p', 'commonInstanceMetadata': {'items': items}}
    if '/operations/' in path:
      return 200, done
    if '/nodes/' in path and method == 'GET':
      return (200, self._node(name)) if self.resources else _error(*missing)
    if method == 'POST' and name == 'queuedResources':
      if self.refusal:
        return _error(*self.refusal)
      name = re.search('queuedResourceId=([^&]+)', url)[1]
      if name in self.resources:
        message = f"Resource '{name}' already exists"
        return _error(409, 'ALREADY_EXISTS', message)
      self._left[name] = list(self.states)
      resource = {**body, 'name': f'projects/p/locations/z/{path}/{name}'}
      self.resources[name] = {**resource, 'state': {'state': 'ACCEPTED'}}
      return 200, {**done, 'response': self.resources[name]}
    if '/nodes/' in path or name not in self.resources:
      return _error(*missing)
    if method == 'DELETE' and not self.can_delete:
      return _error(403, 'PERMISSION_DENIED', 'No deletion today')
    if method == 'DELETE':
      del self.resources[name]
      self._clear()
      return 200, {**done, 'response': {}}
    left = self._left[name]
    if left:
      self.resources[name]['state'] = {'state': left.pop(0)}
      if self.failure and not left:
        self.resources[name]['state']['failedData'] = {'error': self.failure}
    return 200, self.resources[name]

  def _handler(self):
    cloud = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def _reply(self):
        size = int(self.headers.get('Content-Length') or 0)
        body = json.loads(self.rfile.read(size) or '{}')
        cloud.requests.append((self.command, self.path))
        code, answer = cloud._answer(self.command, self.path, body)
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      do_GET = do_POST = do_DELETE = do_PATCH = _reply

      def log_message(self, *args):
        pass

    return Handler

  def creations(self):
    """How often machines were asked for."""
    return sum(
      method == 'POST' and 'queuedResources?' in path
      for method, path in self.requests
    )


def _error(code, status, message):
  return code, {'error': {'code': code, 'status': status, 'message': message}}
