"""launch/pod.py tpu-vm against a cloud that is not there.

The client is the installed gcloud in the tests that say so, as far as there is
one, and else a small stand-in for it (fake_tpu.py).
"""

import signal

import fake_tpu
import pod_cases
import pod_gcloud
import pytest


@pytest.fixture
def make_cloud(tmp_path):
  clouds = []

  def make(client='stub', **kwargs):
    clouds.append(fake_tpu.FakeTpu(tmp_path, client, **kwargs))
    return clouds[-1]

  yield make
  for cloud in clouds:
    cloud.close()


BOTH = pytest.mark.parametrize(
  'client', ['stub', pytest.param('gcloud', marks=pytest.mark.slow)]
)


def train_to_the_end(cloud, process):
  pod_cases.write(cloud.workdir / 'exit-all', '0')
  code, out, err = pod_cases.finish(process)
  assert code == 0, err
  assert not cloud.resources
  return out, err


def test_a_run_from_creation_to_deletion(make_cloud):
  """With the installed gcloud."""
  cloud = make_cloud('gcloud')
  process = cloud.pod(flags=['--note=two words'])
  told = pod_cases.started(cloud.workdir, 4)
  assert sorted(each['index'] for each in told) == ['0', '1', '2', '3']
  assert {each['distributed'] for each in told} == {'auto'}
  (spec,) = cloud.resources['r1']['tpu']['nodeSpec']
  assert spec['nodeId'] == 'r1'
  assert spec['node']['acceleratorType'] == 'v5litepod-32'
  assert spec['node']['runtimeVersion'] == 'v2-alpha-tpuv5-lite'
  assert list(spec['node']['labels']) == ['hope-pod']
  assert 'spot' in cloud.resources['r1']
  command = (cloud.home(3) / 'hope-r1/command.sh').read_text()
  assert "'--note=two words'" in command
  out, err = train_to_the_end(cloud, process)
  assert out.splitlines() == ['stub 0 started', 'stub 0 exits with 0']
  assert 'exit codes 4 x 0' in err


@BOTH
def test_machines_taken_away_are_deleted_and_asked_for_again(
  make_cloud, client
):
  cloud = make_cloud(client)
  process = cloud.pod()
  pod_cases.started(cloud.workdir, 4)
  cloud.suspend()
  told = pod_cases.started(cloud.workdir, 8)
  assert sorted(each['index'] for each in told[4:]) == ['0', '1', '2', '3']
  _, err = train_to_the_end(cloud, process)
  assert cloud.creations() == 2
  assert 'r1 is SUSPENDED' in err
  assert 'restart 1 of 10' in err


@BOTH
def test_a_dead_worker_means_a_restart_on_the_same_machines(make_cloud, client):
  cloud = make_cloud(client)
  process = cloud.pod()
  first = pod_cases.started(cloud.workdir, 4)
  cloud.kill_worker(2)
  pod_cases.started(cloud.workdir, 8)
  assert all(pod_cases.is_gone(each['pid']) for each in first)
  _, err = train_to_the_end(cloud, process)
  assert cloud.creations() == 1
  assert '3 workers are left; ending them' in err
  assert 'exit codes 3 x 42, 1 x 137' in err


def test_a_mistake_of_the_user_ends_the_run(make_cloud):
  cloud = make_cloud()
  process = cloud.pod()
  pod_cases.started(cloud.workdir, 4)
  pod_cases.write(cloud.workdir / 'exit-1', '2')
  code, out, err = pod_cases.finish(process)
  assert code == 2
  assert not cloud.resources
  assert cloud.creations() == 1
  assert '[t1v-n-fake-w-1] stub 1 exits with 2' in out  # the last lines of each


def test_gives_up_after_failures_in_a_row(make_cloud):
  cloud = make_cloud(workers=1)
  pod_cases.write(cloud.workdir / 'exit-all', '75')
  code, _, err = pod_cases.finish(cloud.pod('--max-restarts=1'))
  assert code == 75
  pod_cases.started(cloud.workdir, 2)
  assert not cloud.resources
  assert '--max-restarts=1 restarts in a row did not help' in err


@BOTH
@pytest.mark.parametrize(
  ('refusal', 'message'),
  [
    (
      (404, 'NOT_FOUND', "Location 'z' was not found"),
      "r1 was not made: NOT_FOUND: Location 'z' was not found",
    ),
    (
      (429, 'RESOURCE_EXHAUSTED', 'Quota TPUV5s has been exceeded'),
      'Ask for more quota',
    ),
    (
      (400, 'INVALID_ARGUMENT', 'Reserved capacity is not there'),
      'Check --project, --zone and --accelerator-type',
    ),
  ],
  ids=['zone', 'quota', 'argument'],
)
def test_a_refusal_is_said_and_leaves_nothing(
  make_cloud, client, refusal, message
):
  cloud = make_cloud(client)
  cloud.refusal = refusal
  code, _, err = pod_cases.finish(cloud.pod())
  assert code == 2
  assert message in err
  assert 'Traceback' not in err
  assert not cloud.resources
  assert not any(method == 'DELETE' for method, _ in cloud.requests)


def test_a_hopeless_failure_is_not_tried_again(make_cloud):
  cloud = make_cloud()
  cloud.states = ['ACCEPTED', 'FAILED']
  cloud.failure = {'code': 8, 'message': 'There is no quota for this.'}
  code, _, err = pod_cases.finish(cloud.pod())
  assert code == 2
  assert 'There is no quota for this.' in err
  assert cloud.creations() == 1
  assert not cloud.resources


@BOTH
def test_a_resource_of_this_name_is_left_alone(make_cloud, client):
  cloud = make_cloud(client)
  node = {'acceleratorType': 'v4-8', 'labels': {}}
  there = {
    'name': 'projects/p/locations/z/queuedResources/r1',
    'tpu': {'nodeSpec': [{'nodeId': 'r1', 'node': node}]},
    'state': {'state': 'ACTIVE'},
  }
  cloud.add('r1', there)
  code, _, err = pod_cases.finish(cloud.pod())
  assert code == 2
  assert 'r1 exists already and was left as it is' in err
  code, _, err = pod_cases.finish(cloud.pod('--action=delete'))
  assert code == 2
  assert 'launch/pod.py did not make it' in err
  assert list(cloud.resources) == ['r1']


@BOTH
def test_a_worker_that_cannot_be_reached(make_cloud, client):
  """gcloud itself tries for 45 s."""
  cloud = make_cloud(client)
  (cloud.directory / 'unreachable-2').touch()
  code, _, err = pod_cases.finish(cloud.pod())
  assert code == 1
  assert 'not all workers of r1 can be reached' in err
  assert not cloud.resources


def test_what_cannot_be_deleted_is_said(make_cloud):
  cloud = make_cloud(workers=1)
  cloud.can_delete = False
  pod_cases.write(cloud.workdir / 'exit-all', '0')
  code, _, err = pod_cases.finish(cloud.pod())
  assert code == 1
  assert 'r1 could NOT be deleted and may cost money' in err
  assert 'gcloud compute tpus queued-resources delete r1 --force' in err


def test_an_installation_that_fails(make_cloud):
  cloud = make_cloud()
  process = cloud.pod(install='echo no wheels >&2; exit 3')
  code, _, err = pod_cases.finish(process)
  assert code == 1
  assert 'no wheels' in err
  assert 'r1 is not set up on all workers' in err
  assert not cloud.resources


@BOTH
def test_interrupted_attached_halted_deleted(make_cloud, client):
  cloud = make_cloud(client)
  process = cloud.pod()
  told = pod_cases.started(cloud.workdir, 4)
  process.send_signal(signal.SIGINT)
  code, _, err = pod_cases.finish(process)
  assert code == 130
  assert '--action=attach' in err
  assert list(cloud.resources) == ['r1']
  assert not any(pod_cases.is_gone(each['pid']) for each in told)

  follower = cloud.pod('--action=attach')
  assert 'stub 0 started' in follower.stdout.readline()
  code, _, err = pod_cases.finish(cloud.pod('--action=stop'))
  assert code == 0
  assert err.count('halted 42') == 4
  code, _, err = pod_cases.finish(follower)
  assert code == 42
  assert 'r1 is still there and costs money' in err
  pod_cases.started(cloud.workdir, 4)  # and no more

  assert pod_cases.finish(cloud.pod('--action=delete'))[0] == 0
  assert not cloud.resources
  assert pod_cases.finish(cloud.pod('--action=delete'))[0] == 2


@pytest.mark.slow
def test_attaching_to_what_was_halted_goes_on(make_cloud):
  cloud = make_cloud(workers=2)
  process = cloud.pod()
  pod_cases.started(cloud.workdir, 2)
  assert pod_cases.finish(cloud.pod('--action=stop'))[0] == 0
  assert pod_cases.finish(process)[0] == 42
  process = cloud.pod('--action=attach')
  pod_cases.started(cloud.workdir, 4)
  train_to_the_end(cloud, process)


@pytest.mark.slow
def test_logs_are_shown_until_the_end(make_cloud):
  cloud = make_cloud(workers=1)
  process = cloud.pod()
  pod_cases.started(cloud.workdir, 1)
  reader = cloud.pod('--action=logs')
  assert reader.stdout.readline() == 'stub 0 started\n'
  train_to_the_end(cloud, process)
  assert 'stub 0 exits with 0' in pod_cases.finish(reader)[1]


def test_slices(make_cloud):
  cloud = make_cloud(workers=2, nodes=2)
  process = cloud.pod('--slices=2')
  told = pod_cases.started(cloud.workdir, 4)
  assert sorted(each['index'] for each in told) == ['0', '1', '2', '3']
  (spec,) = cloud.resources['r1']['tpu']['nodeSpec']
  assert spec['multisliceParams'] == {'nodeCount': 2, 'nodeIdPrefix': 'r1'}
  train_to_the_end(cloud, process)


@pytest.mark.parametrize(
  ('codes', 'outcome'),
  [
    ([0, 0], 0),
    ([0, 42], 42),
    ([42, 75], 75),
    ([137, 2, 134], 2),
    ([1, 0, 42], 1),
  ],
)
def test_the_code_that_stands_for_all(codes, outcome):
  assert pod_gcloud.outcome(codes) == outcome
