"""What `data.segments` does to the held-out loss, on short and long documents.

  python -m experiments.segments --workdir=runs/segments

The documents are cut from this Python's library: functions of 300 to 600 bytes,
and whole modules of 4,000 to 8,191 bytes. A byte-level Hope of width 64 and 2
blocks is trained on both, with rows of 256 and of 1,024 bytes, with the option
off and on, for the same number of steps of 2,048 bytes. Each model then reads
the same held-out documents, and every byte and every document's end is scored
once, in three ways:

  alone    each document by itself, from fresh states, in one pass
  reset    in rows as those of training with the option
  crossed  in rows as those of training without it

Results are kept by run in WORKDIR/results.json; a run that is there is not
trained again. Half an hour on two cores.

Bits per byte with the option off and on: mean (seed 0, seed 1), with the order
of documents before 2026-11-27:

  rows of 256
    short, alone    off 2.633 (2.650 2.616)   on 2.620 (2.633 2.607)
    short, reset    off 2.644                 on 2.630
    short, crossed  off 2.645 (2.660 2.629)   on 2.639 (2.653 2.624)
    long, alone     off 2.856 (2.905 2.807)   on 2.855 (2.900 2.810)
    long, reset     off 2.866                 on 2.864
    long, crossed   off 2.864                 on 2.863
  rows of 1,024
    short, alone    off 2.736 (2.722 2.751)   on 2.733 (2.717 2.749)
    short, crossed  off 2.739                 on 2.756
    long, alone     off 2.960 (2.970 2.950)   on 2.965 (2.982 2.948)
    long, crossed   off 2.964                 on 2.968

The differences are within 0.02 and smaller than those between seeds, so the
default stays False: states cross documents, and nothing is padded. Set the
option if documents must be independent of each other.
"""

import ast
import json
import math
import pathlib
import statistics
import sysconfig
from typing import Any

from absl import app, flags
import numpy as np

from hope import data as data_lib
from hope.config import base_config, resolve
from hope.data.encoding import encode_document
from hope.data.packing import Packing
from hope.data.tokenization import ByteTokenizer
from hope.parallel import mesh as mesh_lib
from hope.training import step as step_lib

_TOKENS = 2048  # of a training step
# Sizes in bytes, and how many held-out documents are read.
_KINDS = {'short': (300, 600, 100), 'long': (4000, 8191, 8)}
_WAYS = ('alone', 'reset', 'crossed')


def write_documents(folder: pathlib.Path) -> None:
  """Cuts the documents, a file each, into new folders short and long."""
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  for kind in _KINDS:
    (folder / kind).mkdir(parents=True)
  for path in sorted(root.rglob('*.py')):
    name = path.relative_to(root).with_suffix('').as_posix().replace('/', '.')
    if 'site-packages' in name or '.test' in f'.{name}':
      continue
    try:
      text = path.read_text('utf-8')
      functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
      ]
    except (UnicodeDecodeError, SyntaxError):
      continue
    pieces = [(f'{name}.py', 'long', text)]
    for node in functions:
      piece = ast.get_source_segment(text, node) or ''
      pieces.append((f'{name}.{node.name}.{node.lineno}.py', 'short', piece))
    for file, kind, piece in pieces:
      least, most, _ = _KINDS[kind]
      if least <= len(piece.encode()) <= most:
        (folder / kind / file).write_text(piece, 'utf-8')


def make_config(folder: pathlib.Path, length: int, segments: bool, seed: int):
  """The configuration of a run with rows of `length` bytes."""
  config = base_config()
  config.seed = seed
  config.model.num_layers, config.model.width = 2, 64
  config.compute.remat = False
  config.model.titans.chunk_size = 16
  config.model.titans.projection_chunk_size = 16
  config.data.source = f'text:{folder}/*/*.py'
  config.data.heldout_fraction = 0.1
  config.data.seq_len, config.data.batch_size = length, _TOKENS // length
  config.data.segments = segments
  config.optimizer.learning_rate = 8e-3
  config.train.steps = flags.FLAGS.steps
  return config


def heldout(config) -> dict[str, list[np.ndarray]]:
  """The tokens of the held-out documents that are read, of each kind."""
  documents: dict[str, list[np.ndarray]] = {kind: [] for kind in _KINDS}
  for name, text in data_lib.documents(config, 'heldout'):
    kind = name.partition('/')[0]
    if len(documents[kind]) < _KINDS[kind][2]:
      documents[kind].append(encode_document(ByteTokenizer(), text))
  return documents


def rows(
  config, documents: list[np.ndarray], way: str
) -> dict[str, np.ndarray]:
  """Rows that score every token of documents once, each in a way of _WAYS."""
  config = config.copy_and_resolve_references()
  config.data.segments = True
  if way == 'alone':
    config.data.seq_len = -(-max(map(len, documents)) // 16) * 16
  packing = Packing(config)
  laid = [packing.lay_out(x) for x in documents]
  if way == 'crossed':
    laid = [x[: len(d)] for x, d in zip(laid, documents, strict=True)]
  length = config.data.seq_len
  if way != 'alone':
    joined = np.concatenate(laid)
    laid = np.split(joined, range(length, len(joined), length))
  pad = lambda x: np.pad(x, ((0, length - len(x)), (0, 0)))
  batch = packing.rows({'tokens': np.stack(list(map(pad, laid)))})
  if way == 'crossed':
    del batch['starts']
  return batch


def bits_per_byte(config, graph, params) -> dict[str, float]:
  """Bits per byte of a model on the held-out documents."""
  step = step_lib.eval_step(graph, mesh_lib.one_device())
  results = {}
  for kind, documents in heldout(config).items():
    size = sum(len(x) - 1 for x in documents)
    for way in _WAYS:
      batch = rows(config, documents, way)
      count, length = batch['inputs'].shape
      at_once, total = max(1, 8192 // length), 0.0
      fill = -count % at_once
      batch = {k: np.pad(x, ((0, fill), (0, 0))) for k, x in batch.items()}
      for j in range(0, count, at_once):
        part = {k: x[j : j + at_once] for k, x in batch.items()}
        total += float(step(params, part).loss)
      results[f'{kind}, {way}'] = total / math.log(2) / size
  return results


def train(config) -> dict[str, Any]:
  """Trains a run; returns its results."""
  data = data_lib.open_data(config)
  stream = data.train_iterator()
  resolved = resolve(config, data.vocab_size)
  graph, abstract = step_lib.abstract_state(resolved, mesh_lib.one_device())
  state = step_lib.init_state(resolved, abstract)
  update = step_lib.train_step(graph, resolved, abstract)
  losses, scored = [], 0.0
  for _ in range(config.train.steps):
    batch = next(stream)
    state, metrics = update(state, batch)
    losses.append(float(metrics['loss']))
    scored += float(batch['weights'].mean()) / config.train.steps
  return {
    'train_loss': statistics.mean(losses[-len(losses) // 10 :]),
    'scored': scored,
    'bits_per_byte': bits_per_byte(config, graph, state.params),
  }


def report(results: dict[str, Any]) -> str:
  """A table: for each row length and way, off and on, over the seeds."""
  lines = []
  for length in flags.FLAGS.lengths:
    for key in (f'{kind}, {way}' for kind in _KINDS for way in _WAYS):
      cells = []
      for option in ('off', 'on'):
        found = [
          run['bits_per_byte'][key]
          for name, run in results.items()
          if name.startswith(f'{length} {option} ')
        ]
        if not found:
          continue
        each = ' '.join(f'{x:.3f}' for x in found)
        cells.append(f'{option} {statistics.mean(found):.3f} ({each})')
      lines.append(f'T={length:5}  {key:15}  ' + '   '.join(cells))
  return '\n'.join(lines)


def main(argv: list[str]) -> None:
  """Trains what is not yet there, and prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  options = flags.FLAGS
  workdir = pathlib.Path(options.workdir).absolute()
  folder, file = workdir / 'documents', workdir / 'results.json'
  if not folder.exists():
    write_documents(folder)
  results = json.loads(file.read_text()) if file.exists() else {}
  for seed in range(options.seeds):
    for length in map(int, options.lengths):
      for segments in (False, True):
        name = f'{length} {"on" if segments else "off"} seed {seed}'
        if name not in results:
          results[name] = train(make_config(folder, length, segments, seed))
          file.write_text(json.dumps(results, indent=2))
          print(name, results[name], flush=True)
  print(report(results))


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'Folder of the results.', required=True)
  flags.DEFINE_integer('steps', 200, 'Updates of each run.', lower_bound=10)
  flags.DEFINE_integer('seeds', 2, 'Runs of each setting.', lower_bound=1)
  flags.DEFINE_list('lengths', ['256', '1024'], 'Bytes of a row.')
  app.run(main)
