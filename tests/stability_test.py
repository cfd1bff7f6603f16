"""8,192 tokens at initialisation and after the main job."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import sysconfig

from flax import nnx
import jax
import numpy as np
import pytest

from hope import config as config_lib
from hope import trained as trained_lib
from hope.memory import mlp
from hope.parallel.mesh import one_device
from hope.run.checkpoint import open_checkpoints
from hope.training import step as step_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SYMBOLS = ('text', 'four', 'one')
LENGTH = 8192
CHUNK = 16


def stream_of(symbols):
  """[1, 8192] byte tokens."""
  if symbols == 'text':
    folder = pathlib.Path(sysconfig.get_paths()['stdlib'])
    text = (folder / 'argparse.py').read_bytes()[:LENGTH]
    return np.frombuffer(text, np.uint8)[None].astype(np.int32)
  if symbols == 'four':
    choices = np.frombuffer(b'abcd', np.uint8)
    return np.random.default_rng(6).choice(choices, (1, LENGTH)).astype('int32')
  return np.full((1, LENGTH), ord('a'), np.int32)


def assert_bounded_and_alive(graph, params, symbols):
  """Finite and bounded all along; every memory still learns at the end."""
  read = jax.jit(lambda p, x, s: nnx.merge(graph, p)(x, s))
  first = state = nnx.merge(graph, params).init_state(1)
  sizes, peaks, moves = [], [], []
  for piece in np.split(stream_of(symbols), 32, axis=1):
    logits, state = read(params, piece[:, :-CHUNK], state)
    moved = kernels(state)
    more, state = read(params, piece[:, -CHUNK:], state)
    moves.append(changes(moved, kernels(state)))
    logits = np.concatenate([logits, more], axis=1)
    floats = [x for x in jax.tree.leaves(state) if x.dtype == np.float32]
    assert all(np.isfinite(x).all() for x in floats)
    assert np.isfinite(logits).all()
    assert not any(denormals(x) for x in floats)
    sizes.append(max(float(np.abs(x).max()) for x in floats))
    peaks.append(float(np.abs(logits).max()))
  assert max(sizes) < 50, sizes
  assert max(sizes[16:]) < 2 * max(sizes[:16]), sizes
  assert max(peaks[16:]) < 2 * max(peaks[:16]), peaks
  # What the last chunk of each piece changes, of every kernel of every layer. A
  # single one says little, as it depends on which tokens came last.
  for moved in np.array(moves).T:
    assert moved.min() > 0, moved
    if symbols != 'one':
      assert moved[16:].mean() > 0.1 * moved[:16].mean(), moved
  if symbols == 'one':
    # Once it is learned there is little to write. Another text is written.
    text = stream_of('text')[:, :CHUNK]
    late, early = (
      changes(kernels(state), kernels(read(params, text, state)[1]))
      for state in (state, first)
    )
    assert early.min() > 0, early
    assert (late > 0.1 * early).all(), (late, early)


def changes(before, after):
  """Norms of what changed, of every array."""
  pairs = zip(before, after, strict=True)
  return np.array([np.linalg.norm(x - y) for x, y in pairs])


def kernels(state):
  """What each memory of each layer holds, up and down, as arrays."""
  found = []
  for titans, _ in state:
    for memory, count in ((titans.memory, 1), (titans.projections, 4)):
      for j in range(count):
        for leaf in jax.tree.leaves(mlp.select(memory.now, j, j + 1)):
          found += list(np.asarray(leaf))
  return found


def denormals(x):
  x = np.abs(np.asarray(x))
  return int(np.sum((x > 0) & (x < np.finfo(np.float32).tiny)))


@pytest.fixture(scope='module')
def initial():
  path = ROOT / 'experiments' / 'smoke.py'
  spec = importlib.util.spec_from_file_location('smoke', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = config_lib.resolve(module.get_config(), 257)
  return jax.jit(lambda: step_lib.build_model(config))()


@pytest.mark.parametrize(
  'symbols',
  [
    pytest.param(x, marks=pytest.mark.slow if x == 'four' else ())
    for x in SYMBOLS
  ],
)
def test_long_streams_at_initialisation(initial, symbols):
  assert_bounded_and_alive(*initial, symbols)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(graph, state) after the main job; MAIN_JOB=DIR names one that was run."""
  workdir = os.environ.get('MAIN_JOB')
  if not workdir:
    workdir = str(tmp_path_factory.mktemp('main'))
    command = [sys.executable, '-m', 'hope.main', f'--workdir={workdir}']
    subprocess.run(
      [*command, '--config=experiments/smoke.py'], cwd=ROOT, check=True
    )
  config = trained_lib.load(workdir).config
  graph, state = step_lib.abstract_state(config, one_device())
  with open_checkpoints(workdir, config) as checkpoints:
    state = checkpoints.restore_latest(state).state
  return graph, state


@pytest.mark.slow
@pytest.mark.parametrize('symbols', SYMBOLS)
def test_long_streams_after_the_main_job(trained, symbols):
  graph, state = trained
  assert_bounded_and_alive(graph, state.params, symbols)


@pytest.mark.slow
def test_no_value_is_denormal_after_the_main_job(trained):
  state = trained[1]
  leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
  found = {
    jax.tree_util.keystr(path): denormals(leaf)
    for path, leaf in leaves
    if leaf.dtype == np.float32
  }
  assert not any(found.values()), {k: v for k, v in found.items() if v}
