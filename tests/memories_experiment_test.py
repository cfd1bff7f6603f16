"""The settings of the memories side by side: what is kept and shown."""

import json
import subprocess
import sys

from conftest import ROOT, cpu_devices
import pytest

from experiments import memory_settings
from hope import matching


@pytest.mark.parametrize('task', memory_settings.TASKS)
def test_every_task_has_a_configuration(task):
  config = memory_settings.task_config(task, 3, 7)
  assert (config.seed, config.train.steps) == (3, 7)


def test_an_unknown_task_is_refused():
  with pytest.raises(ValueError, match='--task=nosuch is none of text'):
    memory_settings.task_config('nosuch', 0, 0)


def test_settings_have_equal_parameters():
  config = memory_settings.task_config('aliases', 0, 1)
  first = memory_settings.with_setting(config, 'frozen', 24, None)
  like = matching.size(first)
  for name in ('linear-dot', 'delta-gate', 'gated_deltanet'):
    found = matching.size(memory_settings.with_setting(config, name, 24, like))
    assert abs(found / like - 1) <= 0.01, name


@pytest.mark.slow
def test_runs_are_kept_and_drawn(tmp_path):
  command = [
    *(sys.executable, '-m', 'experiments.memories', '--task=aliases'),
    *('--steps=2', '--seeds=1', f'--workdir={tmp_path}'),
    *('--settings=delta-static,linear-dot', '--rates=1e-3,2e-3'),
  ]
  outputs = []
  for _ in range(2):
    done = subprocess.run(
      command, cwd=ROOT, env=cpu_devices(1), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outputs.append(done.stdout)
  kept = json.loads((tmp_path / 'aliases-2.json').read_text())
  # Two rates on the seed that is not reported, the better one on the other.
  assert len(kept) == 6
  assert sum(name.endswith('| 100') for name in kept) == 4
  assert (tmp_path / 'aliases-2.png').stat().st_size > 0
  # The second time all is read.
  assert outputs[0].count('tokens/s') == 7
  assert outputs[1].count('tokens/s') == 1
  done = subprocess.run(
    [*command, '--speed'],
    cwd=ROOT,
    env=cpu_devices(1),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  lines = [line.split() for line in done.stdout.splitlines()]
  assert [line[0] for line in lines] == ['delta-static', 'linear-dot']
  assert all(line[2] == 'tokens/s' for line in lines)
