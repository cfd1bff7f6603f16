"""Tasks that are evaluated in a run, and afterwards by the command."""

import json
import subprocess
import sys

from absl import flags
from conftest import ROOT, cpu_devices, write_texts
import ml_collections
import pytest

import hope
from hope.commands import evaluate
from hope.run.metrics import read_metrics
from hope.training import loop

STEPS = 4


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with texts and a finished run on them, with two tasks."""
  folder = tmp_path_factory.mktemp('home')
  write_texts(folder / 'text', 100)
  (folder / 'prose.txt').write_text(
    'A sentence has the ten words that a background needs here. ' * 9
  )
  config = hope.base_config()
  config.update_from_flattened_dict(
    {
      'model.pattern': 'attention+swiglu',
      'model.num_layers': 1,
      'model.width': 8,
      'model.num_heads': 1,
      'compute.remat': False,
      'data.source': f'text:{folder}/text/*.txt',
      'data.heldout_fraction': 0.2,
      'data.seq_len': 32,
      'data.batch_size': 4,
      'optimizer.warmup_steps': 0,
      'train.steps': STEPS,
      'sample.tokens': 1,
      'evals.every': 2,
      'evals.batches': 1,
      'evals.tasks': tasks(folder),
    }
  )
  loop.run(config, str(folder / 'run'))
  return folder


def tasks(folder):
  """A task by generation and one by position."""
  return (
    f'qa1:size=600,text={folder}/prose.txt,examples=3',
    'mqar:num_pairs=2,vocab_size=32,examples=6',
  )


@pytest.fixture(scope='module')
def in_training(home):
  """Metrics of the tasks after the last step."""
  found = [
    {k: v for k, v in line.items() if k.startswith('tasks/')}
    for line in read_metrics(home / 'run')
    if line['kind'] == 'eval'
  ]
  assert len(found) == STEPS // 2
  return found[-1]


def run(home, *arguments):
  """Runs the command in this process."""
  values = flags.FlagValues()
  evaluate.define_flags(values)
  values(['hope-evaluate', f'--workdir={home}/run', *arguments])
  evaluate.main(values)


def test_a_run_keeps_the_metrics_of_its_tasks(home, in_training):
  assert set(in_training) == {
    'tasks/qa1/accuracy',
    'tasks/mqar/loss',
    'tasks/mqar/accuracy',
    'tasks/mqar/exact_match',
  }
  results = json.loads((home / 'run' / 'results.json').read_text())
  assert results['tasks'] == in_training
  assert not any('tasks' in name for name in results['heldout'])


def test_the_command_gives_the_same_under_the_same_names(
  home, in_training, tmp_path, capsys
):
  path = tmp_path / 'result.json'
  arguments = [f'--task={x}' for x in tasks(home)]
  run(home, *arguments, f'--json={path}')
  first = capsys.readouterr().out
  assert 'qa1 3/3' in first and f'by step {STEPS} of' in first
  found = json.loads(path.read_text())['tasks']
  values = {
    f'tasks/{task}/{name}': estimate['value']
    for task, metrics in found.items()
    for name, estimate in metrics.items()
  }
  assert values == pytest.approx(in_training, rel=1e-5)
  assert found['qa1']['accuracy']['low'] is not None
  # The prompts of qa1 were asked for with a size; they have several facts.
  assert [x.name for x in tmp_path.glob('*.png')] == ['result.png']
  (scores,) = (home / 'run' / 'evals').iterdir()
  content = scores.read_bytes()
  # Again: nothing is computed anew.
  run(home, *arguments, f'--json={path}')
  assert json.loads(path.read_text())['tasks'] == found
  assert 'qa1 ' not in capsys.readouterr().out.split('Tasks, by')[0]
  assert scores.read_bytes() == content
  # Of another folder, and of more examples.
  more = tasks(home)[0].replace('examples=3', 'examples=4')
  run(home, f'--task={more}', f'--scores={tmp_path}/scores')
  (other,) = (tmp_path / 'scores').iterdir()
  lines = other.read_text().splitlines()
  assert lines[: len(content.splitlines())] == content.decode().splitlines()
  assert len(lines) == 5 and other.name == scores.name


def test_the_command_measures_a_text(home, tmp_path, capsys):
  text = home / 'prose.txt'
  path = tmp_path / 'result.json'
  run(home, f'--text={text}', '--by_context', f'--json={path}')
  assert '128-255' in capsys.readouterr().out
  found = json.loads(path.read_text())
  expected = hope.load(home / 'run').evaluate(text.read_text())
  for name, value in expected.items():
    assert found['result'][name] == pytest.approx(value, rel=1e-5)
  counts = [part['tokens'] for part in found['by_context'].values()]
  assert sum(counts) == len(text.read_text()) - 1
  assert counts[:4] == [1, 2, 4, 8]
  assert path.with_suffix('.png').read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--task=qa1', '--text=x'], 'are two evaluations; give one'),
    (['--by_context'], 'give --text=FILE as well'),
    (['--scores=x'], 'give --task as well'),
    (['--task=qa1', '--batch=0'], '--batch=0 must be at least 1'),
    (['--task=qa9'], '--task: task .qa9.* is not a task; choose one of'),
    (['--text=/none'], '--text=./none. cannot be read: No such file'),
    (['--task=qa1', '--scores=/dev/null/x'], '--scores=.* is no folder'),
  ],
)
def test_wrong_flags_are_refused(home, arguments, message):
  with pytest.raises(ValueError, match=message):
    run(home, *arguments)


def test_a_run_with_a_task_that_cannot_be_begins_nothing(home, tmp_path):
  kept = hope.load(home / 'run').config
  for task, message in (
    ('qa1:size=600', 'evals.tasks: task .qa1.* Background is what text=FILE'),
    ('mqar:vocab_size=999', 'evals.tasks: task .mqar.* above the 257 tokens'),
  ):
    config = ml_collections.ConfigDict(kept.to_dict())
    config.evals.tasks = (task,)
    with pytest.raises(ValueError, match=message):
      loop.run(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.slow
def test_a_run_of_two_devices_has_the_same_metrics(home, in_training):
  (home / 'tiny.py').write_text(
    'import json\n'
    'from hope.config import base_config\n'
    'def get_config():\n'
    '  config = base_config()\n'
    f'  with open({str(home / "run" / "config.json")!r}) as file:\n'
    '    config.update(json.load(file))\n'
    '  config.mesh.data = 2\n'
    '  return config\n'
  )
  texts = tasks(home)
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'hope.main', f'--config={home}/tiny.py'),
      f'--workdir={home}/two',
      f'--config.evals.tasks={texts!r}',
    ],
    cwd=ROOT,
    env=cpu_devices(2),
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  last = read_metrics(home / 'two')[-1]
  found = {k: v for k, v in last.items() if k.startswith('tasks/')}
  assert found == pytest.approx(in_training, rel=1e-4)
