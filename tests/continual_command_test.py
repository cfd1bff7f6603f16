"""`experiments.continual`: from the files of a data set to a result."""

import json
import os
import pathlib
import sys
from unittest import mock

from absl import flags
import numpy as np
import pytest

from experiments import continual
from hope.continual import bag_of_words, learners
from hope.continual.options import LearnerOptions
from hope.tasks.datasets import intents

# Few enough that a group has two classes.
DOMAINS = {
  'bank': ['pay', 'pin'],
  'trip': ['fly', 'visa'],
  'home': ['tv', 'bed'],
}


@pytest.fixture
def folder(tmp_path):
  """CLINC150's files with six classes, whose queries name them."""
  path = tmp_path / 'data' / 'clinc150'
  path.mkdir(parents=True)
  names = sum(DOMAINS.values(), [])
  data = {
    split: [
      [f'{name} word{i % 7} query', name] for name in names for i in range(size)
    ]
    for split, size in (('train', 80), ('val', 2), ('test', 4))
  }
  (path / 'data_full.json').write_text(json.dumps(data))
  (path / 'domains.json').write_text(json.dumps(DOMAINS))
  return path.parent


def run(workdir, *argv):
  values = flags.FlagValues()
  argv = ['continual', f'--workdir={workdir}', *argv]
  with mock.patch.object(sys, 'argv', argv):  # where ml_collections reads it
    continual.define_flags(values)
    values(argv)
    continual.main(values)
  return json.loads((pathlib.Path(workdir) / 'result.json').read_text())


def without_time(result):
  return {k: x for k, x in result.items() if k != 'seconds'}


def test_class_incremental(folder, tmp_path, monkeypatch, capsys):
  argv = (
    f'--data={folder}',
    '--config.learner.rule=replay',
    '--config.seed=3',
    '--config.rate=0.5',
  )
  result = run(tmp_path / 'whole', *argv)
  assert np.shape(result['accuracy']) == (3, 3)
  assert result['metrics']['average_accuracy'] > 0.9
  assert result['changed'] == {
    'learner.rule': 'replay',
    'rate': 0.5,
    'seed': 3,
    'hope.seed': 3,
  }
  assert (tmp_path / 'whole' / 'accuracy.png').stat().st_size > 1000
  assert 'replay  480/480 examples  0s left' in capsys.readouterr().out

  class Killed(learners.Replay):
    """Ends in the second task."""

    def learn(self, batch):
      if self._kept.seen == 240:
        raise KeyboardInterrupt
      super().learn(batch)

  with monkeypatch.context() as patch:
    patch.setitem(learners._RULES, 'replay', Killed)
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path / 'killed', *argv)
  again = run(tmp_path / 'killed', *argv)
  assert without_time(again) == without_time(result) | {
    'command': again['command']
  }
  with pytest.raises(ValueError, match='choose another folder'):
    run(tmp_path / 'killed', f'--data={folder}')


def test_validation_and_fewer_examples_are_measured(folder):
  config = continual.default_config()
  config.split = 'validation'
  assert len(continual.read_intents(config, folder).test) == 12
  config.split, config.tests = 'test', 3
  found = continual.read_intents(config, folder)
  assert [label for _, label in found.test] == sum(
    ([i] * 3 for i in range(6)), []
  )


@pytest.mark.slow
def test_domains_that_return(tmp_path):
  for name, word in (('a', 'ab'), ('b', 'xyz')):
    (tmp_path / f'{name}.txt').write_text(word * 400)
  small = ('pattern=attention+cms', 'width=16', 'num_layers=1')
  result = run(
    tmp_path / 'run',
    '--protocol=returning',
    f'--domains={tmp_path}/a.txt,{tmp_path}/b.txt',
    '--config.length=16',
    '--config.every=1',
    *(f'--config.hope.model.{x}' for x in small),
    '--config.hope.optimizer.learning_rate=1e-2',
    '--config.hope.optimizer.warmup_steps=0',
  )
  a, b = (f'{tmp_path}/{name}.txt' for name in 'ab')
  assert result['visits'] == [a, b, a, b]
  losses = np.array(result['loss'])
  assert (losses[-1] < 0.9 * losses[0]).all()
  assert [x['domain'] for x in result['returns']] == [a, b]


def test_refuses(folder, tmp_path):
  with pytest.raises(ValueError, match='--data must name'):
    run(tmp_path, '--config.seed=1')
  with pytest.raises(ValueError, match='learner.batch=0 must be at least 1'):
    run(tmp_path, f'--data={folder}', '--config.learner.batch=0')
  with pytest.raises(ValueError, match='two patterns'):
    run(tmp_path, '--protocol=returning', f'--domains={__file__}')
  with pytest.raises(ValueError, match='has too little text'):
    run(tmp_path, '--protocol=returning', '--domains=nothing.txt,nothing.md')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('read', 'share'),
  [(intents.read_clinc150, 0.836), (intents.read_banking77, 0.811)],
)
def test_class_means_of_published_data(read, share):
  """Of the folder that HOPE_DATA names."""
  folder = os.environ.get('HOPE_DATA')
  assert folder, 'HOPE_DATA=FOLDER must name the folder of the data sets'
  found = read(pathlib.Path(folder))
  texts, labels = zip(*found.test, strict=True)
  known = bag_of_words.TfIdf([text for text, _ in found.train], ngrams=2)
  most = known.most([text for text, _ in found.train + found.test])
  model = bag_of_words.model(known, len(found.classes), None, most)
  options = LearnerOptions(rule='class_mean')
  learner = learners.make(model, options, seed=0, examples=0)
  learner.learn(found.train)
  predicted = learner.scores(texts).argmax(axis=1)
  assert (predicted == labels).mean() == pytest.approx(share, abs=5e-4)
