"""Pictures of evaluations show the numbers that they are given."""

from matplotlib import image
import numpy as np
import pytest

from hope.evaluation import pictures
from hope.run import drawing


def panel(picture):
  return picture.axes[0]


def written(axes):
  """Numbers in the cells, by (row, column)."""
  return {
    (int(text.get_position()[1]), int(text.get_position()[0])): text.get_text()
    for text in axes.texts
  }


def labels(axis):
  return [tick.get_text() for tick in axis.get_ticklabels()]


def check_file(picture, folder):
  """A PNG of the figure's size with something in it."""
  path = drawing.save(picture, folder / 'picture.png')
  pixels = image.imread(path)
  size = picture.get_size_inches() * 150
  assert pixels.shape == (round(size[1]), round(size[0]), 4)
  assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20
  assert [x.name for x in folder.iterdir()] == ['picture.png']


def test_accuracy_by_length(tmp_path):
  accuracies = {
    'Hope': {4096: 0.5, 1024: 1.0, 10_000: 0.25},
    'Titans': {1024: 0.75, 4096: 0.25},
  }
  intervals = {'Hope': {x: (0.2, 1.0) for x in accuracies['Hope']}}
  picture = pictures.accuracy_by_length(accuracies, intervals, chance=1 / 6)
  axes = panel(picture)
  hope, titans, chance = axes.lines
  assert hope.get_xdata().tolist() == [1024, 4096, 10_000]
  assert hope.get_ydata().tolist() == [1.0, 0.5, 0.25]
  assert titans.get_xydata().tolist() == [[1024, 0.75], [4096, 0.25]]
  assert list(chance.get_ydata()) == [1 / 6] * 2
  (band,) = axes.collections
  assert band.get_datalim(axes.transData).intervaly.tolist() == [0.2, 1.0]
  assert labels(axes.xaxis) == ['1K', '4K', '10K']
  assert [x.get_text() for x in axes.get_legend().get_texts()] == [
    *('Hope', 'Titans'),
  ]
  assert axes.get_xscale() == 'log' and axes.get_ylim() == (-0.02, 1.02)
  check_file(picture, tmp_path)
  alone = panel(pictures.accuracy_by_length({'qa1': {512: 1.0}}))
  assert alone.get_title() == 'qa1' and alone.get_legend() is None


def test_loss_by_context(tmp_path):
  losses = {'Hope': {2**i: 3 - 0.1 * i for i in range(12)}}
  picture = pictures.loss_by_context(losses, 'bits per byte')
  axes = panel(picture)
  (line,) = axes.lines
  assert line.get_xdata().tolist() == [2**i for i in range(12)]
  assert line.get_ydata().tolist() == list(losses['Hope'].values())
  assert labels(axes.xaxis)[-3:] == ['512', '1K', '2K']
  assert axes.get_ylabel() == 'bits per byte'
  check_file(picture, tmp_path)


def test_accuracy_by_depth(tmp_path):
  accuracies = np.array([[1, 0.5, 0.254], [0.75, np.nan, 0]])
  picture = pictures.accuracy_by_depth(
    accuracies, [1024, 2048, 1_000_000], [0, 0.5]
  )
  axes = panel(picture)
  (drawn,) = axes.images
  assert drawn.get_clim() == (0, 1)
  np.testing.assert_array_equal(drawn.get_array().filled(np.nan), accuracies)
  assert written(axes) == {
    **{(0, 0): '100', (0, 1): '50', (0, 2): '25'},
    **{(1, 0): '75', (1, 2): '0'},
  }
  assert labels(axes.xaxis) == ['1K', '2K', '1M']
  assert labels(axes.yaxis) == ['0%', '50%']
  check_file(picture, tmp_path)
  many = np.linspace(0, 1, 40)
  picture = pictures.accuracy_by_depth(np.ones((40, 1)), [512], many)
  assert not panel(picture).texts and picture.get_size_inches()[1] < 9


def test_confusion_matrix(tmp_path):
  counts = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
  picture = pictures.confusion_matrix(counts, ['office', 'garden', 'hall'])
  axes = panel(picture)
  (drawn,) = axes.images
  np.testing.assert_array_equal(
    drawn.get_array().filled(np.nan),
    [[0.75, 0.25, 0], [0, 1, 0], [np.nan] * 3],
  )
  assert written(axes)[0, 1] == '25' and (2, 2) not in written(axes)
  assert (
    labels(axes.yaxis) == labels(axes.xaxis) == ['office', 'garden', 'hall']
  )
  assert axes.get_ylabel() == 'true class'
  check_file(picture, tmp_path)
  many = panel(pictures.confusion_matrix(np.eye(77), ['x'] * 77))
  assert not many.texts and not labels(many.xaxis)


def test_accuracy_matrix(tmp_path):
  accuracies = np.full((3, 3), np.nan)
  accuracies[np.tril_indices(3)] = [0.9, 0.6, 0.8, 0.3, 0.5, 1]
  picture = pictures.accuracy_matrix(accuracies)
  axes = panel(picture)
  (drawn,) = axes.images
  np.testing.assert_array_equal(drawn.get_array().filled(np.nan), accuracies)
  assert list(written(axes).values()) == ['90', '60', '80', '30', '50', '100']
  assert (2, 0) in written(axes) and (0, 2) not in written(axes)
  assert labels(axes.xaxis) == labels(axes.yaxis) == ['1', '2', '3']
  assert axes.get_ylabel() == 'last task learned'
  check_file(picture, tmp_path)
  named = panel(pictures.accuracy_matrix(accuracies, ['Kalamang', 'b', 'c']))
  assert labels(named.yaxis)[0] == 'Kalamang'


def test_numbers_in_cells_can_be_read():
  """Light on dark, dark on light."""
  axes = panel(pictures.accuracy_by_depth(np.array([[0, 1]]), [1, 2], [0]))
  assert [x.get_color() for x in axes.texts] == [drawing.INK, 'white']


def test_what_cannot_be_drawn_is_refused():
  for draw in (pictures.accuracy_by_length, pictures.loss_by_context):
    with pytest.raises(ValueError, match='give at least one length'):
      draw({})
  with pytest.raises(ValueError, match=r'shape \(2, 1\) and their names of'):
    pictures.accuracy_by_depth(np.ones((2, 1)), [1, 2], [0])
  with pytest.raises(ValueError, match=r'value 1\.5 is not in \[0, 1\]'):
    pictures.accuracy_matrix(np.array([[1.5]]))
  with pytest.raises(ValueError, match='give a value for each pair of names'):
    pictures.accuracy_matrix(np.ones((2, 2)), ['a', 'b', 'c'])
  with pytest.raises(ValueError, match='give none below 0'):
    pictures.confusion_matrix(np.array([[-1]]), ['a'])
