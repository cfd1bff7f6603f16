"""launch/pod.py local: processes that live and die together."""

import os
import signal

import pod_cases
import pod_local
import pytest


@pytest.fixture
def gang(tmp_path):
  """Starts a gang of stubs; kills what is left of it."""
  workdir = tmp_path / 'run'
  workdir.mkdir()
  worker = pod_cases.write_stub(tmp_path)
  launched = []

  def start(count, *options, flags=(), **kwargs):
    launched.append(
      pod_cases.launch(
        *('local', f'--config={pod_cases.CONFIG}', f'--workdir={workdir}'),
        *(f'--processes={count}', f'--worker={worker}', *options, '--', *flags),
        **kwargs,
      )
    )
    return launched[-1], workdir

  yield start
  for process in launched:
    process.kill()
  for path in workdir.glob('started-*'):
    for pid in pod_cases.alive_in_group(int(path.name.rpartition('-')[2])):
      os.kill(pid, signal.SIGKILL)
  for process in launched:
    process.communicate()


def test_one_dies_and_all_are_started_again(gang):
  """One is killed while another is stopped and a third has a child."""
  supervisor, workdir = gang(3, flags=['--child=1000'])
  first = pod_cases.started(workdir, 3)
  os.kill(first[2]['pid'], signal.SIGSTOP)
  os.kill(first[1]['pid'], signal.SIGKILL)
  both = pod_cases.started(workdir, 6)
  for told in first:
    assert not pod_cases.alive_in_group(told['pid'])  # nor its children
  second = both[3:]
  assert sorted(told['index'] for told in second) == ['0', '1', '2']
  assert len({told['distributed'].split(',')[0] for told in second}) == 1
  pod_cases.write(workdir / 'exit-all', '0')
  code, out, err = pod_cases.finish(supervisor)
  assert code == 0
  assert out.count('stub 0 started') == 2  # process 0 is shown
  assert 'stub 1' not in out
  log = (workdir / 'pod_logs/process-1.log').read_text()
  assert log.count('stub 1 started') == 2
  assert 'killed by SIGKILL' in err
  assert 'restart 1 of 10' in err
  assert 's after the death' in err


@pytest.mark.parametrize('code', [1, 2])
def test_mistakes_of_the_user_are_not_retried(gang, code):
  supervisor, workdir = gang(2)
  first = pod_cases.started(workdir, 2)
  pod_cases.write(workdir / 'exit-1', str(code))
  assert pod_cases.finish(supervisor)[0] == code
  assert all(pod_cases.is_gone(told['pid']) for told in first)
  pod_cases.started(workdir, 2)  # and no more


@pytest.mark.parametrize('code', [42, 75, 83])
def test_failures_that_may_pass_are_retried(gang, code):
  supervisor, workdir = gang(2, '--grace-seconds=1')
  pod_cases.started(workdir, 2)
  pod_cases.write(workdir / 'exit-0', str(code))
  pod_cases.started(workdir, 4)
  pod_cases.write(workdir / 'exit-all', '0')
  assert pod_cases.finish(supervisor)[0] == 0


def test_gives_up_after_failures_in_a_row(gang):
  supervisor, workdir = gang(1, '--max-restarts=2')
  pod_cases.write(workdir / 'exit-all', '75')
  code, _, err = pod_cases.finish(supervisor)
  assert code == 75
  pod_cases.started(workdir, 3)
  assert '--max-restarts=2 restarts in a row did not help' in err


def test_restarts_are_counted_in_a_row():
  restarts = pod_local.Restarts(limit=2, reset_seconds=600)
  lasted = [1, 1, 600, 599, 1]
  allowed = [restarts.allow(seconds) for seconds in lasted]
  assert allowed == [True, True, True, True, False]


@pytest.mark.parametrize(
  'number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
)
def test_a_signal_is_passed_on_and_all_save(gang, number):
  supervisor, workdir = gang(2)
  pod_cases.started(workdir, 2)
  supervisor.send_signal(number)
  code, out, _ = pod_cases.finish(supervisor)
  assert code == 42
  assert 'stub 0 saved' in out
  assert 'stub 1 saved' in (workdir / 'pod_logs/process-1.log').read_text()
  pod_cases.started(workdir, 2)


def test_under_nohup_the_end_of_a_terminal_ends_nothing(gang):
  supervisor, workdir = gang(1, before=['nohup'])
  (told,) = pod_cases.started(workdir, 1)
  supervisor.send_signal(signal.SIGHUP)
  os.kill(told['pid'], signal.SIGHUP)
  pod_cases.write(workdir / 'exit-all', '0')
  code, out, _ = pod_cases.finish(supervisor)
  assert code == 0
  assert 'saved' not in out


def test_a_second_signal_kills(gang):
  supervisor, workdir = gang(2, flags=['--stubborn=1'])
  first = pod_cases.started(workdir, 2)
  supervisor.send_signal(signal.SIGTERM)
  log = workdir / 'pod_logs/process-1.log'
  pod_cases.wait_for(lambda: 'saved' in log.read_text())
  supervisor.send_signal(signal.SIGTERM)
  assert pod_cases.finish(supervisor)[0] == 128 + signal.SIGKILL
  assert all(pod_cases.is_gone(told['pid']) for told in first)


def test_what_does_not_end_in_time_is_killed(gang):
  supervisor, workdir = gang(2, '--grace-seconds=1', flags=['--stubborn=1'])
  pod_cases.started(workdir, 2)
  supervisor.send_signal(signal.SIGTERM)
  code, _, err = pod_cases.finish(supervisor)
  assert code == 128 + signal.SIGKILL
  assert '2 of 2 processes did not end' in err


def test_one_that_is_done_does_not_end_the_others(gang):
  supervisor, workdir = gang(2)
  pids = {x['index']: x['pid'] for x in pod_cases.started(workdir, 2)}
  pod_cases.write(workdir / 'exit-1', '0')
  pod_cases.wait_for(lambda: pod_cases.is_gone(pids['1']))
  assert not pod_cases.is_gone(pids['0'])
  pod_cases.write(workdir / 'exit-0', '0')
  code, out, _ = pod_cases.finish(supervisor)
  assert code == 0
  assert 'saved' not in out


@pytest.mark.parametrize('platforms', [None, 'cuda'])
def test_environment(gang, platforms, monkeypatch):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  env = {} if platforms is None else {'JAX_PLATFORMS': platforms}
  supervisor, workdir = gang(1, '--devices-per-process=3', env=env)
  (told,) = pod_cases.started(workdir, 1)
  assert told['environment']['JAX_PLATFORMS'] == (platforms or 'cpu')
  assert told['environment']['JAX_NUM_CPU_DEVICES'] == '3'
  assert str(pod_cases.ROOT) in told['environment']['PYTHONPATH']
  address, count, index = told['distributed'].split(',')
  assert address.startswith('127.0.0.1:')
  assert (count, index) == ('1', '0')
  pod_cases.write(workdir / 'exit-all', '0')
  assert pod_cases.finish(supervisor)[0] == 0


def test_a_program_that_is_not_there(gang):
  supervisor, _ = gang(2, '--worker=no-such-program')
  code, _, err = pod_cases.finish(supervisor)
  assert code == 2
  assert err.startswith('error: no-such-program was not found')
