"""Does a trained model predict better what follows in a text that it has read?

  python -m experiments.reading --workdir=runs/smoke

The model starts a third of the way into a file of Python's library, reads some
bytes and predicts those that follow. Its parameters stay as they are; its
memories learn. The control reads as many bytes of another file instead. Losses
are in nats per byte, the mean over the same files for all three. The first
predicted byte is not counted, as nothing is before it without reading. It takes
two minutes on two cores.
"""

import pathlib
import sysconfig

from absl import flags, logging
import numpy as np
import rich.console
import rich.table

from hope import command_line

SIZES = ((128, 128), (256, 128), (1024, 512))


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_string(
    'workdir', None, 'Directory of a run.', required=True, flag_values=values
  )
  flags.DEFINE_integer(
    'files', 48, 'Files that are read.', lower_bound=2, flag_values=values
  )


def _pieces(read: int, predicted: int, count: int) -> list[bytes]:
  """Pieces of read + predicted bytes, of files at random."""
  folder = pathlib.Path(sysconfig.get_paths()['stdlib'])
  texts = [path.read_bytes() for path in sorted(folder.glob('*.py'))]
  size = read + predicted
  long = [text for text in texts if len(text) >= 3 * size]
  chosen = np.random.default_rng(0).permutation(len(long))[:count]
  starts = (len(long[i]) // 3 for i in chosen)
  return [
    long[i][start : start + size]
    for i, start in zip(chosen, starts, strict=True)
  ]


def main(values: flags.FlagValues) -> None:
  """Prints the table."""
  logging.set_verbosity(logging.WARNING)

  from hope import trained  # after the flags, as jax is slow

  model = trained.load(values.workdir)
  table = rich.table.Table(
    *('read', 'predicted', 'files', 'without', 'other text', 'this text'),
    'better than without',
  )

  def loss(predicted: bytes, state=None) -> float:
    """Nats per byte without the first one."""
    if state is not None:
      state = model.read(predicted[:1], state)
      predicted = predicted[1:]
    return model.evaluate(predicted, state)['loss']

  for read, predicted in SIZES:
    pieces = _pieces(read, predicted, values.files)
    rows = []
    for piece, other in zip(pieces, pieces[1:] + pieces[:1], strict=True):
      rest = piece[read:]
      rows.append(
        (
          loss(rest),
          loss(rest, model.read(other[:read])),
          loss(rest, model.read(piece[:read])),
        )
      )
    losses = np.array(rows)
    better = int((losses[:, 2] < losses[:, 0]).sum())
    means = [f'{mean:.3f}' for mean in losses.mean(0)]
    table.add_row(
      str(read), str(predicted), str(len(rows)), *means, str(better)
    )
  rich.console.Console(width=100).print(table)


if __name__ == '__main__':
  command_line.run(main, define_flags)
