"""How the time and memory of a training step grow with the length of a row."""

import pathlib
from typing import Any

import ml_collections
import rich.box
import rich.console
import rich.table

from hope.parallel import mesh as mesh_lib
from hope.profiling import throughput
from hope.run import drawing


def measure(
  configs: dict[int, dict[str, ml_collections.FrozenConfigDict]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
  """Times training steps of each model at several lengths.

  The lengths of a model take turns, so that a busy machine slows them alike.

  Args:
    configs: resolved; by the tokens of a row, then by name.
    rounds: steps that are timed, after one that is not; the fastest counts.

  Returns:
    By name, for each length: seq_len; seconds, of a step; program_bytes, which
    is None where the runtime does not know it.

  Raises:
    ExplainedError: if a step was not finite.
  """
  found = {}
  for name in next(iter(configs.values())):
    print(f'compiling {name} at {len(configs)} lengths', flush=True)
    runs = [
      throughput.Steps(of_length[name], mesh_lib.one_device())
      for of_length in configs.values()
    ]
    seconds = [[run.step() for run in runs] for _ in range(1 + rounds)]
    for run in runs:
      run.check()
    found[name] = [
      {'seq_len': seq_len, 'seconds': min(times), 'program_bytes': run.memory()}
      for seq_len, run, times in zip(
        configs, runs, zip(*seconds[1:], strict=True), strict=True
      )
    ]
  return found


def per_token(values: list[dict[str, Any]], key: str) -> list[float]:
  """Of each length: a token's share, as a multiple of the first length's.

  1 where the cost grows linearly with the length.
  """
  shares = [row[key] / row['seq_len'] for row in values]
  return [share / shares[0] for share in shares]


def show(
  found: dict[str, list[dict[str, Any]]], console: rich.console.Console
) -> None:
  """Prints a row for each model."""
  lengths = [row['seq_len'] for row in next(iter(found.values()))]
  table = rich.table.Table(
    box=rich.box.SIMPLE_HEAD,
    title=f'Cost of a token, as a multiple of that at {lengths[0]:,} tokens',
  )
  table.add_column('model', no_wrap=True)
  for what in ('time', 'memory'):
    for x in lengths[1:]:
      table.add_column(f'{what} at {x:,}', justify='right')
  for name, values in found.items():
    row = [f'{x:.2f}' for x in per_token(values, 'seconds')[1:]]
    if any(value['program_bytes'] is None for value in values):
      row += ['-'] * len(lengths[1:])
    else:
      row += [f'{x:.2f}' for x in per_token(values, 'program_bytes')[1:]]
    table.add_row(name, *row)
  console.print(table, markup=False)


def draw(found: dict[str, list[dict[str, Any]]], file: pathlib.Path) -> None:
  """Draws the time of a token against the length."""
  picture = drawing.new_picture(5.5, 11)
  axis = picture.subplots()
  styles = ('-', '--', ':')
  for i, (name, values) in enumerate(found.items()):
    axis.plot(
      [row['seq_len'] for row in values],
      [1e6 * row['seconds'] / row['seq_len'] for row in values],
      styles[i // 10 % len(styles)],
      marker='.',
      label=name,
    )
  axis.set(
    title='Time of a token of a training step',
    xlabel='tokens of a row',
    ylabel='microseconds per token and row',
  )
  axis.set_xscale('log', base=2)
  axis.set_yscale('log')
  drawing.style(axis)
  axis.tick_params(which='minor', colors=drawing.INK, labelsize=8, length=0)
  axis.grid(color=drawing.GRID, linewidth=0.8)
  axis.legend(bbox_to_anchor=(1.0, 1.0), loc='upper left', **drawing.LEGEND)
  drawing.save(picture, file)
