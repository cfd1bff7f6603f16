"""Class accuracy, in NumPy and over an evaluation; a number of examples."""

import json

from conftest import ROOT
from flax import nnx
import jax
import numpy as np
import pytest

import hope
from hope.config import base_config, resolve
from hope.data import generated, open_data
from hope.evaluation import heldout
from hope.fields import flat
from hope.parallel.mesh import one_device
from hope.tasks import METRICS, TASKS, mean_over_classes
from hope.tasks.mad import SETTINGS
from hope.training import loop
from hope.training import step as step_lib

class_accuracy = METRICS['class_accuracy']


def by_hand(predictions, targets, weights):
  """Class by class: torchmetrics' definition, in words."""
  shares = []
  pairs = [
    (p, t)
    for p, t, w in zip(
      predictions.ravel(), targets.ravel(), weights.ravel(), strict=True
    )
    if w
  ]
  for x in {token for pair in pairs for token in pair}:
    asked = [p == t for p, t in pairs if t == x]
    shares.append(sum(asked) / len(asked) if asked else 0)
  return np.mean(shares)


@pytest.mark.parametrize(
  ('targets', 'predictions', 'expected'),
  [
    # scikit-learn 1.9.1, balanced_accuracy_score: 0.7222222222222222 of both.
    ([0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 0], (2 / 3 + 1 + 1 / 2) / 3),
    # It leaves out a class that is only predicted; torchmetrics counts it as 0.
    ([0, 0, 0, 1, 2, 2], [0, 0, 3, 1, 2, 0], (2 / 3 + 1 + 1 / 2) / 4),
    ([5, 5, 5, 9], [5, 5, 5, 5], 0.5),
    ([7], [7], 1),
    ([7], [8], 0),
  ],
)
def test_class_accuracy_of_cases(targets, predictions, expected):
  targets, predictions = np.array(targets), np.array(predictions)
  weights = np.ones(len(targets))
  got = class_accuracy(predictions, targets, weights)
  assert got == pytest.approx(expected, rel=1e-12)
  # What does not count changes nothing.
  got = class_accuracy(
    np.array([*predictions, 4]),
    np.array([*targets, 3]),
    np.array([*weights, 0]),
  )
  assert got == pytest.approx(expected, rel=1e-12)


def test_class_accuracy_is_that_of_scikit_learn():
  """Its value, copied, of 60 answers in 5 classes (NumPy's seed 0)."""
  rng = np.random.default_rng(0)
  targets = rng.integers(0, 5, 60)
  predictions = np.where(rng.random(60) < 0.6, targets, rng.integers(0, 5, 60))
  got = class_accuracy(predictions, targets, np.ones(60))
  assert got == pytest.approx(0.6833166833166834, rel=1e-14)


def test_counts_of_batches_add_up():
  rng = np.random.default_rng(1)
  targets, predictions = rng.integers(0, 12, (2, 40, 9))
  weights = (rng.random((40, 9)) < 0.5).astype(np.float32)
  counts = np.zeros((3, 12))
  for i in range(0, 40, 8):
    batch = slice(i, i + 8)
    counted = weights[batch] > 0
    t, p = targets[batch][counted], predictions[batch][counted]
    for row, tokens in enumerate((t[t == p], t, p)):
      counts[row] += np.bincount(tokens, minlength=12)
  whole = by_hand(predictions, targets, weights)
  assert mean_over_classes(counts) == pytest.approx(whole, rel=1e-12)
  got = class_accuracy(predictions, targets, weights)
  assert got == pytest.approx(whole, rel=1e-12)


# ------------------------------------------------------------ of an evaluation


def tiny(task='in_context_recall', **fields):
  """The experiment, so small that it runs in seconds."""
  config = hope.experiment(
    f'{ROOT}/experiments/mad.py:task={task},mixer=attention,steps=2'
  )
  config.update_from_flattened_dict(
    {
      'model.num_layers': 1,
      'model.width': 8,
      'model.num_heads': 1,
      'data.seq_len': 16,
      'data.batch_size': 4,
      'evals.batches': 3,
      'mesh.data': 1,
    }
    | fields
  )
  return config


def test_an_evaluation_is_over_all_batches():
  config = resolve(tiny())
  data = open_data(config)
  config = resolve(config, data.vocab_size)
  graph, params = step_lib.build_model(config)
  batches = data.eval_batches()
  predictions = np.stack(
    [
      np.argmax(nnx.merge(graph, params)(batch['inputs'])[0], -1)
      for batch in batches
    ]
  )
  targets, weights = (
    np.stack([batch[name] for batch in batches])
    for name in ('targets', 'weights')
  )
  assert data.metric == 'class_accuracy'
  step = step_lib.eval_step(graph, one_device(), data.metric)
  values, _ = heldout.evaluate(step, params, batches, None, metric=data.metric)
  assert set(values) == {'loss', 'accuracy', 'exact_match', 'class_accuracy'}
  expected = by_hand(predictions, targets, weights)
  assert values['class_accuracy'] == pytest.approx(expected, rel=1e-6)
  assert values['class_accuracy'] != pytest.approx(values['accuracy'], rel=0.01)
  per_batch = [
    by_hand(*arrays)
    for arrays in zip(predictions, targets, weights, strict=True)
  ]
  assert values['class_accuracy'] != pytest.approx(np.mean(per_batch), rel=0.01)
  # Only where the task is scored by it, and no class is counted elsewhere.
  step = step_lib.eval_step(graph, one_device(), 'accuracy')
  assert jax.eval_shape(step, params, batches[0]).of_classes is None
  values, _ = heldout.evaluate(step, params, batches, None, metric='accuracy')
  assert set(values) == {'loss', 'accuracy', 'exact_match'}


def test_a_run_reports_it(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
  loop.run(tiny(), str(tmp_path))
  assert '  class accuracy 0.' in capsys.readouterr().out
  result = json.loads((tmp_path / 'results.json').read_text())['heldout']
  assert list(result) == ['loss', 'accuracy', 'exact_match', 'class_accuracy']
  assert hope.load(tmp_path).evaluate() == pytest.approx(result, rel=1e-5)


# ---------------------------------------------------------- MAD's experiment


@pytest.mark.parametrize('task', list(SETTINGS))
def test_the_experiment_of_every_setting(task):
  for change, fields in SETTINGS[task].items():
    config = hope.experiment(f'{ROOT}/experiments/mad.py:{task=!s},{change=!s}')
    config = resolve(config)
    found = flat(config)
    assert {path: found[path] for path in fields} == fields
    if fields['data.seq_len'] <= 256:
      generated.TaskSource(config, 'train')[0]
  paper = hope.experiment(f'{ROOT}/experiments/mad.py:{task=!s},scale=paper')
  assert paper.train.steps == (400 if task == 'memorization' else 20_000)
  assert paper.evals.batches * paper.data.batch_size == 1280


def test_settings_are_single_changes():
  assert sum(len(changes) for changes in SETTINGS.values()) == 66
  for task, changes in SETTINGS.items():
    baseline = changes['baseline']
    assert task in TASKS
    for name, fields in changes.items():
      assert fields.keys() == baseline.keys()
      differ = [path for path in fields if fields[path] != baseline[path]]
      assert len(differ) == (name != 'baseline')


@pytest.mark.parametrize(
  ('arg', 'message'),
  [
    ('task=copy,change=seq_len=256', 'change=seq_len=256 is no change of'),
    ('task=cop', 'task=.cop'),
  ],
)
def test_errors_of_the_experiment(arg, message):
  with pytest.raises(ValueError, match=message):
    hope.experiment(f'{ROOT}/experiments/mad.py:{arg}')


# ------------------------------------------------------- a number of examples


def rows(config, split, indices):
  source = generated.TaskSource(config, split)
  return [source[i]['inputs'].tobytes() for i in indices]


def test_examples_come_in_another_order_in_each_epoch():
  config = base_config()
  config.data.source, config.data.seq_len = 'synthetic:memorization', 32
  endless = rows(config, 'train', range(20))
  assert len(set(endless)) == 20
  held = rows(config, 'heldout', range(50))
  config.data.task.examples = 20
  epochs = [rows(config, 'train', range(i, i + 20)) for i in (0, 20, 40)]
  for epoch in epochs:
    assert set(epoch) == set(endless)
  assert len({tuple(epoch) for epoch in [*epochs, endless]}) == 4
  # An index alone decides, and what is held out stays as it is.
  assert rows(config, 'train', [47, 3]) == [epochs[2][7], epochs[0][3]]
  assert rows(config, 'heldout', range(50)) == held
  config.seed = 1
  assert not set(rows(config, 'train', range(20))) & set(endless)
