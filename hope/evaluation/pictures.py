"""Evaluations as pictures: plain numbers in, a figure out.

`hope.run.drawing.save` writes a figure as a PNG.
"""

from collections.abc import Mapping, Sequence

from matplotlib import axes as axes_lib
from matplotlib import colors, figure
import numpy as np

from hope.run import drawing

# From nothing to all, like the curves' colour.
_SHARES = colors.LinearSegmentedColormap.from_list(
  'shares', ['#e6edf7', '#9ec1e6', drawing.BLUE, '#16244f']
).with_extremes(bad='white')
# Shares above this are dark, and what stands on them is white.
_DARK = 0.5
_CURVES = (
  drawing.BLUE,
  drawing.RED,
  '#3f8f5f',
  '#8a5fb0',
  '#b08a2e',
  '#5f6b7a',
)
_MARKERS = 'os^Dvp'
# Most cells of a side with numbers in them, and with names beside them.
_NUMBERED, _NAMED = 16, 40


def accuracy_by_length(
  accuracies: Mapping[str, Mapping[int, float]],
  intervals: Mapping[str, Mapping[int, tuple[float, float]]] | None = None,
  chance: float | None = None,
) -> figure.Figure:
  """Draws how accuracy changes with the length of the context.

  Args:
    accuracies: by name, as of a model or a task, and by length in tokens; in
      [0, 1].
    intervals: of confidence, (low, high) by the same keys. None: none.
    chance: of a guess; drawn as a line. None: none.

  Raises:
    ValueError: nothing to draw.
  """
  picture = drawing.new_picture(4.2)
  axes = picture.subplots()
  _draw_curves(axes, accuracies, intervals or {})
  if chance is not None:
    axes.axhline(
      chance, color=drawing.MUTED, linewidth=1, linestyle=(0, (4, 3))
    )
    axes.annotate(
      'chance',
      (1, chance),
      xycoords=('axes fraction', 'data'),
      xytext=(5, 0),
      textcoords='offset points',
      verticalalignment='center',
      color=drawing.MUTED,
      fontsize=8,
    )
  axes.set_ylim(-0.02, 1.02)
  axes.yaxis.set_major_formatter(_percent)
  axes.set(xlabel='length of the context (tokens)', ylabel='accuracy')
  return picture


def loss_by_context(
  losses: Mapping[str, Mapping[int, float]],
  unit: str = 'loss (nats per token)',
) -> figure.Figure:
  """Draws how well tokens are predicted by how many came before them.

  Args:
    losses: by name, as of a model, and by the tokens of context used, as
      powers of two.
    unit: of the losses, the label of the axis.

  Raises:
    ValueError: nothing to draw.
  """
  picture = drawing.new_picture(4.2)
  axes = picture.subplots()
  _draw_curves(axes, losses, {})
  axes.set(xlabel='context used (tokens)', ylabel=unit)
  return picture


def accuracy_by_depth(
  accuracies: np.ndarray, sizes: Sequence[int], depths: Sequence[float]
) -> figure.Figure:
  """Draws accuracy by the length of a text and where in it the needle stands.

  Args:
    accuracies: float [depths, sizes], in [0, 1]; NaN where there is none.
    sizes: in tokens.
    depths: the share of the text before the needle, in [0, 1].

  Raises:
    ValueError: the shape is another one, or a number out of range.
  """
  shares = _checked(accuracies, (len(depths), len(sizes)))
  picture = drawing.new_picture(1.4 + min(7.0, 0.36 * len(depths)))
  axes = picture.subplots()
  _draw_cells(axes, shares, 'accuracy')
  axes.set_xticks(range(len(sizes)), [_tokens(x) for x in sizes])
  axes.set_yticks(range(len(depths)), [f'{x:.0%}' for x in depths])
  axes.set(xlabel='length (tokens)', ylabel='depth of the needle')
  return picture


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> figure.Figure:
  """Draws what each class was taken for, as shares of its examples.

  Args:
    counts: int [classes, classes], by the true class and the predicted one.
    names: of the classes. More than 40 are not written.

  Raises:
    ValueError: the shape is another one, or a count negative.
  """
  counts = np.asarray(counts, np.float64)
  if counts.min(initial=0) < 0:
    raise ValueError(f'Counts are {counts.min()} at least; give none below 0.')
  with np.errstate(invalid='ignore'):
    shares = counts / counts.sum(axis=-1, keepdims=True)
  shares = _checked(shares, (len(names), len(names)))
  side = 2.4 + min(6.6, 0.42 * len(names))
  picture = drawing.new_picture(side, side + 0.8)
  axes = picture.subplots()
  _draw_cells(axes, shares, 'share of the true class')
  axes.set_aspect('equal')
  named = list(names) if len(names) <= _NAMED else []
  places = range(len(named))
  axes.set_xticks(places, named, rotation=90)
  axes.set_yticks(places, named)
  axes.set(xlabel='predicted class', ylabel='true class')
  return picture


def accuracy_matrix(
  accuracies: np.ndarray, names: Sequence[str] | None = None
) -> figure.Figure:
  """Draws what a model that learns tasks in turn knows of each of them.

  Args:
    accuracies: float [tasks seen, task], in [0, 1]; NaN where there is none,
      as of tasks that come later.
    names: of the tasks. None: their numbers, from 1.

  Raises:
    ValueError: the shape is another one, or a number out of range.
  """
  number = np.shape(accuracies)[-1]
  names = [str(i + 1) for i in range(number)] if names is None else names
  shares = _checked(accuracies, (len(names), len(names)))
  side = 2 + min(7, 0.5 * len(names))
  picture = drawing.new_picture(side, side + 1)
  axes = picture.subplots()
  _draw_cells(axes, shares, 'accuracy')
  axes.set_aspect('equal')
  rotation = 90 if max(map(len, names)) > 3 else 0
  axes.set_xticks(range(len(names)), names, rotation=rotation)
  axes.set_yticks(range(len(names)), names)
  axes.set(xlabel='task', ylabel='last task learned')
  return picture


# ----------------------------------------------------------------------- parts


def _percent(share: float, _: float | None = None) -> str:
  return f'{share:.0%}'


def _tokens(number: int) -> str:
  """A number of tokens: 512, 10K (thousands), 4K (of 1,024), 1M."""
  for unit in (1000, 1024):
    for letter, size in (('M', unit**2), ('K', unit)):
      if number >= size and number % size == 0:
        return f'{number // size}{letter}'
  return f'{number:,}'


def _draw_curves(
  axes: axes_lib.Axes,
  curves: Mapping[str, Mapping[int, float]],
  intervals: Mapping[str, Mapping[int, tuple[float, float]]],
) -> None:
  """Draws a curve with its name for each entry, over powers of two."""
  lengths = sorted({x for values in curves.values() for x in values})
  if not lengths:
    raise ValueError('There are no values to draw; give at least one length.')
  for i, (name, values) in enumerate(curves.items()):
    x = sorted(values)
    color = _CURVES[i % len(_CURVES)]
    axes.plot(
      x,
      [values[at] for at in x],
      color=color,
      label=name,
      marker=_MARKERS[i % len(_MARKERS)],
      markersize=5,
      linewidth=1.6,
      linestyle=('-', (0, (5, 2)))[i // len(_CURVES) % 2],
    )
    if bounds := intervals.get(name):
      low, high = zip(*(bounds[at] for at in x), strict=True)
      axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
  axes.set_xscale('log', base=2)
  axes.set_xticks(lengths, [_tokens(x) for x in lengths])
  axes.minorticks_off()
  if len(curves) > 1:
    axes.legend(**drawing.LEGEND)
  else:
    axes.set_title(next(iter(curves)))
  drawing.style(axes)
  axes.grid(color=drawing.GRID, linewidth=0.8)
  axes.set_axisbelow(True)


def _draw_cells(axes: axes_lib.Axes, shares: np.ndarray, label: str) -> None:
  """Draws a cell for each share, with its percentage where there are few."""
  drawn = axes.imshow(shares, cmap=_SHARES, vmin=0, vmax=1, aspect='auto')
  if max(shares.shape) <= _NUMBERED:
    for (row, column), share in np.ndenumerate(shares):
      if np.isfinite(share):
        color = 'white' if share > _DARK else drawing.INK
        axes.text(
          column,
          row,
          f'{100 * share:.0f}',
          color=color,
          fontsize=8,
          horizontalalignment='center',
          verticalalignment='center',
        )
  bar = axes.figure.colorbar(drawn, ax=axes, format=_percent)
  bar.set_label(label, color=drawing.INK, fontsize=9)
  bar.ax.tick_params(colors=drawing.INK, labelsize=8, length=0)
  bar.outline.set_visible(False)
  drawing.style(axes)


def _checked(shares: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """The shares as float64; raises ValueError for others than are drawn."""
  shares = np.asarray(shares, np.float64)
  if shares.shape != shape or not shares.size:
    raise ValueError(
      f'The values are of shape {shares.shape} and their names of {shape}; '
      'give a value for each pair of names, and at least one.'
    )
  outside = shares[(shares < 0) | (shares > 1)]
  if outside.size:
    raise ValueError(f'The value {outside[0]:g} is not in [0, 1]; give shares.')
  return shares
