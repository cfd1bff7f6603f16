"""Pictures of the results of evaluations."""

import json

import numpy as np

from hope.evaluation import result_pictures, specs
from hope.evaluation.intervals import Estimate


def test_accuracy_by_length_has_a_curve_for_each_task():
  named = specs.parse_all(
    ['mqar:seq_len=64', 'mqar:seq_len=16', 's1:size=512', 'copy']
  )
  values = dict(zip(named, (0.5, 1.0, 0.25, 0.75), strict=True))
  found = {
    label: {'accuracy': Estimate(x, x - 0.1, x)} for label, x in values.items()
  }
  picture = result_pictures.by_length(found, named)
  assert picture is not None
  (axes,) = picture.axes
  drawn = {tuple(x.get_xdata()): tuple(x.get_ydata()) for x in axes.lines}
  assert drawn[16, 64] == (1.0, 0.5)
  assert drawn[(512,)] == (0.25,)


def test_no_length_no_picture():
  named = specs.parse_all(['copy'])
  found = {'copy': {'accuracy': Estimate(1.0)}}
  assert result_pictures.by_length(found, named) is None


def test_accuracy_by_depth_counts_the_needles_of_each_part():
  scores = {
    1024: [
      {'accuracy': 1.0, 'depths': [0.0]},
      {'accuracy': 0.0, 'depths': [0.19]},
      {'accuracy': 1.0, 'depths': [1.0]},
      {'accuracy': 0.0, 'depths': [0.3, 0.4]},  # two needles
    ],
    512: [{'accuracy': 0.0, 'depths': [0.5]}],
  }
  picture = result_pictures.by_depth(scores)
  (image,) = picture.axes[0].images
  drawn = np.ma.filled(image.get_array(), np.nan)
  expected = np.full((5, 2), np.nan)
  expected[0, 1], expected[4, 1], expected[2, 0] = 0.5, 1, 0
  np.testing.assert_array_equal(drawn, expected)


def test_confusion_counts_what_was_chosen():
  pairs = [(' no', ' no'), (' no', ' yes'), (' yes', ' yes'), (' yes', ' yes')]
  scores = [{'answer': a, 'chosen': b} for a, b in pairs]
  picture = result_pictures.confusion(scores)
  assert picture is not None
  (image,) = picture.axes[0].images
  np.testing.assert_array_equal(image.get_array(), [[0.5, 0.5], [0, 1]])
  labels = [x.get_text() for x in picture.axes[0].get_yticklabels()]
  assert labels == ['no', 'yes']
  # Answers that do not come again, and none at all.
  assert result_pictures.confusion([{'answer': 'a', 'chosen': 'a'}] * 1) is None
  assert result_pictures.confusion([{'accuracy': 1.0}] * 4) is None


def test_scores_are_those_of_the_file(tmp_path):
  path = tmp_path / 'scores.jsonl'
  lines = [{'task': 's1'}, {'example': 0, 'accuracy': 1.0}]
  path.write_text(''.join(json.dumps(x) + '\n' for x in lines))
  assert result_pictures.read_scores(path) == lines[1:]
