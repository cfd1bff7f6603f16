"""What all pictures share: their colours, their size, how they are written."""

import os
import pathlib

from matplotlib import axes as axes_lib
from matplotlib import figure

INK = '#30343f'
MUTED = '#8a8f9c'
BLUE = '#3b6fb6'
RED = '#d1603d'
GRID = '#e6e8ee'
LEGEND = {'frameon': False, 'fontsize': 8, 'labelcolor': INK}


def new_picture(height: float, width: float = 9) -> figure.Figure:
  """Returns an empty picture; sizes are in inches."""
  picture = figure.Figure(
    figsize=(width, height), dpi=150, layout='constrained'
  )
  picture.set_layout_engine('constrained', w_pad=0.12, h_pad=0.1)
  return picture


def style(axes: axes_lib.Axes) -> None:
  """Gives a panel the colours and the sizes of letters that all have."""
  axes.title.set(color=INK, fontsize=9)
  for axis in (axes.xaxis, axes.yaxis):
    axis.label.set(color=INK, fontsize=9)
  axes.tick_params(colors=INK, labelsize=8, length=0)
  axes.spines[:].set_visible(False)


def save(picture: figure.Figure, path: str | os.PathLike[str]) -> pathlib.Path:
  """Writes a PNG beside its name and renames it; returns the path."""
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.tmp')
  picture.savefig(temporary, format='png')
  temporary.replace(path)
  return path
