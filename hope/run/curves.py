"""A run as pictures: its curves, its memories, and how they learn in a text."""

from collections.abc import Mapping
import json
import math
import os
import pathlib
import re
from typing import Any

from matplotlib import cm, colors, ticker
import numpy as np

from hope.run import drawing, metrics

# Metrics that `draw_curves` knows, with the labels of their axes. The first
# of the first two that a run has gets the upper panel.
_LABELS = {
  'bits_per_byte': 'bits per byte',
  'loss': 'loss (nats per token)',
  'accuracy': 'accuracy',
}


def _series(
  records: list[dict[str, Any]], kind: str, name: str, x_name: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns x and y of a metric, with gaps (nan) for non-finite values."""
  points = [
    (record[x_name], float(record[name]))
    for record in records
    if record['kind'] == kind and name in record and x_name in record
  ]
  x, y = np.array(points, np.float64).reshape(-1, 2).T
  return x, np.where(np.isfinite(y), y, np.nan)


def _smooth(y: np.ndarray) -> np.ndarray:
  """Returns a centred running mean over about 4 % of the curve."""
  window = np.ones(2 * (len(y) // 50) + 1)
  finite = np.isfinite(y)
  total = np.convolve(np.where(finite, y, 0), window, 'full')
  count = np.convolve(finite, window, 'full')
  inner = slice(len(window) // 2, len(window) // 2 + len(y))
  with np.errstate(invalid='ignore'):
    return total[inner] / count[inner]


def _draw_metric(axes, records, name: str, x_name: str) -> None:
  """Draws the train and the held-out curve of one metric."""
  x, y = _series(records, 'train', name, x_name)
  if np.isfinite(y).any():
    faint = len(y) >= 100
    if faint:
      axes.plot(x, y, color=drawing.BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(
      x,
      _smooth(y) if faint else y,
      color=drawing.BLUE,
      linewidth=1.6,
      label='train',
    )
  x, y = _series(records, 'eval', name, x_name)
  finite = y[np.isfinite(y)]
  if finite.size:
    label = f'held-out, last {finite[-1]:.3f}'
    style = {'marker': 'o', 'markersize': 4, 'linewidth': 1.6}
    axes.plot(x, y, color=drawing.RED, label=label, **style)
  axes.set_ylabel(_LABELS[name])


def _draw_baselines(axes, baselines: Mapping[str, float]) -> None:
  """Draws lines with their names to the right, none upon another."""
  for value in baselines.values():
    axes.axhline(value, color=drawing.MUTED, linewidth=1, linestyle=(0, (4, 3)))
  low, high = axes.get_ylim()
  below = -math.inf
  for name, value in sorted(baselines.items(), key=lambda item: item[1]):
    below = max(value, below + 0.045 * (high - low))
    axes.annotate(
      f'{name} {value:.3f}',
      (1, below),
      xycoords=('axes fraction', 'data'),
      xytext=(5, 0),
      textcoords='offset points',
      verticalalignment='center',
      color=drawing.MUTED,
      fontsize=8,
    )


def _title(memory: str) -> str:
  """A memory's name for people: 'memory', 'memory k', 'CMS level 0'."""
  if memory.startswith('cms_level_'):
    return f'CMS level {memory.removeprefix("cms_level_")}'
  return memory if memory == 'memory' else f'memory {memory}'


def _draw_layers(
  axes, points: Mapping[int, tuple[np.ndarray, np.ndarray]], named: bool = True
) -> None:
  """Draws a curve per layer.

  Args:
    axes: The panel.
    points: x and y of each layer, by the layer's number.
    named: Whether it is said which layer is which.
  """
  layers = sorted(points)
  norm = colors.Normalize(layers[0], max(layers[-1], layers[0] + 1))
  palette = colors.LinearSegmentedColormap.from_list(
    'layers', ['#9ecae1', drawing.BLUE, '#16244f']
  )
  for layer in layers:
    color = palette(norm(layer))
    axes.plot(
      *points[layer], color=color, linewidth=1.4, label=f'layer {layer}'
    )
  if not named:
    return
  if len(layers) > 6:
    beside = axes.inset_axes((1.03, 0, 0.025, 1))
    bar = axes.figure.colorbar(cm.ScalarMappable(norm, palette), cax=beside)
    bar.set_label('layer', color=drawing.INK, fontsize=8)
    bar.ax.tick_params(colors=drawing.INK, labelsize=8, length=0)
    bar.locator = ticker.MaxNLocator(integer=True)
    bar.outline.set_visible(False)
  else:
    axes.legend(loc='upper left', bbox_to_anchor=(1, 1), **drawing.LEGEND)


def _style(axes, x_label: str) -> None:
  """Gives a panel the colours, the grid and the x axis that all have.

  The x axis is named below the panels of the last row alone.
  """
  if axes.get_subplotspec().is_last_row():
    axes.set_xlabel(x_label)
  drawing.style(axes)
  axes.grid(color=drawing.GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  axes.margins(x=0.01)


def _keys(records: list[dict[str, Any]]) -> dict[str, None]:
  """Returns the keys of all records, in the order of their first use."""
  return {key: None for record in records for key in record}


def draw_curves(
  workdir: str | os.PathLike[str],
  baselines: Mapping[str, float] | None = None,
) -> pathlib.Path:
  """Draws how well a run predicts as `<workdir>/curves.png`, for one screen.

  The upper panel shows bits per byte, or else the loss, of training and of
  held-out data; the lower one the accuracy, where there is any.

  Args:
    workdir: Directory of the run.
    baselines: Values to compare with, in the unit of the upper panel, by
      their names; drawn as lines.

  Returns:
    The path of the picture.

  Raises:
    ValueError: if there is nothing to draw.
  """
  records = metrics.read_metrics(workdir)
  keys = _keys(records)
  names = [name for name in _LABELS if name in keys]
  if 'bits_per_byte' in names and 'loss' in names:
    names.remove('loss')
  if not names:
    raise ValueError(
      f'{workdir} has no {" or ".join(_LABELS)} to draw yet; run some steps.'
    )
  x_name = 'tokens' if 'tokens' in keys else 'step'
  heights = [4.2] + [1.8] * (len(names) - 1)
  picture = drawing.new_picture(sum(heights))
  panels = picture.subplots(
    len(names), squeeze=False, sharex=True, height_ratios=heights
  )[:, 0]
  for axes, name in zip(panels, names, strict=True):
    _draw_metric(axes, records, name, x_name)
    if axes is panels[0]:
      _draw_baselines(axes, baselines or {})
    axes.legend(**drawing.LEGEND)
    _style(axes, x_name if x_name == 'tokens' else 'steps')
  return drawing.save(picture, pathlib.Path(workdir) / 'curves.png')


def draw_memories(workdir: str | os.PathLike[str]) -> pathlib.Path | None:
  """Draws what each memory holds and writes as `<workdir>/memories.png`.

  A row of panels for each memory, with keys like 'k/write_norm/layer_0', and a
  curve for each layer.

  Args:
    workdir: Directory of the run.

  Returns:
    The path of the picture; None where the run has no memories.
  """
  records = metrics.read_metrics(workdir)
  keys = _keys(records)
  quantities: dict[str, dict[int, str]] = {}
  for key in keys:
    match = re.fullmatch(r'(.+/(?:state|write)_norm)/layer_(\d+)', key)
    if match:
      quantities.setdefault(match[1], {})[int(match[2])] = key
  if not quantities:
    return None
  x_name = 'tokens' if 'tokens' in keys else 'step'

  def of_layer(name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = _series(records, 'train', name, x_name)
    return (x, y) if x.size else _series(records, 'eval', name, x_name)

  # Memories from top to bottom; what a memory holds is left of what it writes.
  memories = sorted({name.split('/')[0] for name in quantities})
  kinds = sorted({name.split('/')[1] for name in quantities})
  picture = drawing.new_picture(2.2 * len(memories))
  panels = picture.subplots(
    len(memories), len(kinds), squeeze=False, sharex=True
  )
  for row, memory in zip(panels, memories, strict=True):
    for axes, kind in zip(row, kinds, strict=True):
      names = quantities[f'{memory}/{kind}']
      _draw_layers(
        axes, {layer: of_layer(name) for layer, name in names.items()}
      )
      axes.set_title(f'{_title(memory)}: {kind.replace("_", " ")}')
      _style(axes, x_name if x_name == 'tokens' else 'steps')
  return drawing.save(picture, pathlib.Path(workdir) / 'memories.png')


# Points of a curve at most: inner losses vary from token to token.
_SPANS = 64


def _means(y: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(x, means) of y [t] over spans of positions; those without tokens are out.

  Args:
    y: A value for each position.
    counts: [t], the tokens that it is of.
  """
  span = -(-len(y) // _SPANS)
  edges = np.arange(0, len(y), span)
  total = np.add.reduceat(counts, edges)
  sums = np.add.reduceat(np.where(counts > 0, y * counts, 0), edges)
  centres = np.add.reduceat(np.arange(len(y)) * counts, edges)
  seen = total > 0
  return centres[seen] / total[seen], sums[seen] / total[seen]


def draw_inner_losses(
  workdir: str | os.PathLike[str],
) -> pathlib.Path | None:
  """Draws `<workdir>/inner_losses.png`: each memory's own loss by position.

  A panel for each memory and a curve for each layer, from inner_losses.json. Of
  an odd number of panels the first is wide.

  Args:
    workdir: Directory of the run.

  Returns:
    The path of the picture; None where the run measured no memories.
  """
  path = pathlib.Path(workdir) / 'inner_losses.json'
  if not path.exists():
    return None
  content = json.loads(path.read_text())
  counts = np.array(content['tokens'], np.float64)
  points: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
  for name, values in content['by_position'].items():
    memory, kind, layer = name.split('/')
    if kind != 'inner_loss':
      continue
    of_memory = points.setdefault(memory, {})
    of_memory[int(layer.removeprefix('layer_'))] = _means(
      np.array(values, np.float64), counts
    )
  memories = sorted(points, key=lambda name: (name != 'memory', name))
  odd = [memories[0]] * (len(memories) % 2)
  grid = np.array(odd + memories).reshape(-1, 2).tolist()
  picture = drawing.new_picture(0.6 + 2 * len(grid))
  panels = picture.subplot_mosaic(grid, sharex=True)
  for memory in memories:
    axes = panels[memory]
    _draw_layers(axes, points[memory], named=memory == grid[0][1])
    axes.set_title(_title(memory))
    _style(axes, 'tokens read before, of the same sequence')
    axes.tick_params(labelbottom=True)
  picture.suptitle(
    'A memory that learns within a sequence: its own loss falls as it reads\n'
    '(in steps: measured at the state at the start of each chunk)',
    color=drawing.INK,
    fontsize=9,
  )
  picture.supylabel(
    'inner loss on held-out data', color=drawing.INK, fontsize=9
  )
  return drawing.save(picture, path.with_suffix('.png'))
