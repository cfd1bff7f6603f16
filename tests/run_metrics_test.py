"""Tests of what a run writes, draws and shows."""

import errno
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
from matplotlib import image
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from hope.run import curves, metrics, progress

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write_steps(workdir, first, last, resume_step=None):
  with metrics.MetricsWriter(workdir, resume_step=resume_step) as writer:
    for step in range(first, last + 1):
      values = {'loss': np.float32(1 / step), 'tokens': 8 * step}
      writer.write(step, 'train', values, {'seconds': os.times().elapsed})
      if step % 3 == 0:
        writer.write(step, 'eval', {'loss': 2 / step, 'tokens': 8 * step})


def test_one_object_a_line(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(
      1,
      'train',
      {
        'loss': jnp.float32(0.1),
        'tokens': np.int64(2**40),
        'bad': jnp.nan,
        'worse': np.float32(-np.inf),
        'half': jnp.bfloat16(0.5),
      },
      {'seconds': 1.5, 'tokens_per_second': float('inf')},
    )
    # Already in the file, whatever becomes of the process.
    text = (tmp_path / 'metrics.jsonl').read_text()
    writer.write(1, 'eval', {'loss': 2})
  assert text == (
    '{"step": 1, "kind": "train", "loss": 0.10000000149011612, '
    '"tokens": 1099511627776, "bad": "nan", "worse": "-inf", "half": 0.5}\n'
  )
  assert [json.loads(line) for line in (tmp_path / 'timing.jsonl').open()] == [
    {'step': 1, 'kind': 'train', 'seconds': 1.5, 'tokens_per_second': 'inf'}
  ]
  assert metrics.read_metrics(tmp_path)[1] == {
    'step': 1,
    'kind': 'eval',
    'loss': 2,
  }


@pytest.mark.parametrize(
  'line',
  [
    '{"step": 2, "loss": 1.0}',
    '{"step": 2, "kind": "other", "loss": 1.0}',
    '{"step": 2, "kind": ["train"], "loss": 1.0}',
    '{"step": true, "kind": "train", "loss": 1.0}',
    '{"step": 2, "kind": "train", "loss": "low"}',
    '{"step": 2, "kind": "train", "loss": null}',
    '{"step": 2, "kind": "train", "loss": [1.0]}',
    '["step", "kind"]',
    '3',
  ],
)
def test_a_line_that_no_run_writes_is_damaged(tmp_path, line):
  write_steps(tmp_path, 1, 1)
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write(line + '\n')
  assert [r['step'] for r in metrics.read_metrics(tmp_path)] == [1]
  curves.draw_curves(tmp_path)


def test_resumed_run_has_the_same_bytes(tmp_path):
  write_steps(tmp_path / 'whole', 1, 12)
  write_steps(tmp_path / 'killed', 1, 9)
  with (tmp_path / 'killed' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 10, "kind": "train", "lo')
  write_steps(tmp_path / 'killed', 7, 12, resume_step=6)
  whole = (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
  assert (tmp_path / 'killed' / 'metrics.jsonl').read_bytes() == whole
  steps = [
    json.loads(line)['step']
    for line in (tmp_path / 'killed' / 'timing.jsonl').open()
  ]
  assert steps == list(range(1, 13))
  assert not list(tmp_path.glob('*/*.tmp'))


def test_run_that_starts_anew_keeps_no_lines(tmp_path):
  write_steps(tmp_path, 1, 5)
  write_steps(tmp_path, 1, 2)
  assert [record['step'] for record in metrics.read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
  'line',
  ['', '{"step": 2', '[1]', '{"kind": "train"}', '{"step": "2"}', '\0\0\0'],
)
def test_damaged_lines_are_dropped(tmp_path, line, caplog):
  good = '{"step": 1, "kind": "train", "loss": 1.0}\n'
  path = tmp_path / 'metrics.jsonl'
  path.write_text(good + line + '\n' + good)
  metrics.MetricsWriter(tmp_path, resume_step=1).close()
  assert path.read_text() == 2 * good
  assert f'Dropped 1 damaged line(s) of {path}' in caplog.text


def test_last_line_without_its_end_is_completed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "kind": "train"}')
  metrics.MetricsWriter(tmp_path, resume_step=2).close()
  assert path.read_text().endswith('{"step": 2, "kind": "train"}\n')


def test_killed_while_writing(tmp_path):
  program = """
    import os, signal, sys
    from hope.run import metrics
    writer = metrics.MetricsWriter(sys.argv[1])
    for step in range(1, 8):
      writer.write(step, 'train', {'loss': 1 / step})
    os.kill(os.getpid(), signal.SIGKILL)
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program), str(tmp_path)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr.decode()
  assert len(metrics.read_metrics(tmp_path)) == 7


def events(workdir):
  """The events of all files of a run, oldest file first."""
  found = []
  paths = (workdir / 'tensorboard').iterdir()
  for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
    with path.open('rb') as file:
      data = file.read()
    while data:
      size = int.from_bytes(data[:8], 'little')
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def test_tensorboard(tmp_path):
  with metrics.MetricsWriter(tmp_path, resume_step=4) as writer:
    writer.write(5, 'train', {'loss': 0.5, 'bad': np.nan}, {'seconds': 2})
    version, start, event = events(tmp_path)
  assert version.file_version == 'brain.Event:2'
  # Hides the events of steps 5 and later in older files.
  assert start.step == 5
  assert start.session_log.status == event_pb2.SessionLog.START
  values = {value.tag: value.simple_value for value in event.summary.value}
  assert event.step == 5
  assert values.pop('train/bad') != 0
  assert values == {'train/loss': 0.5, 'train/seconds': 2}


def test_writes_nothing_if_not_enabled(tmp_path):
  with metrics.MetricsWriter(tmp_path, enabled=False) as writer:
    writer.write(1, 'train', {'loss': 1})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'kind, values, message',
  [
    ('test', {}, "kind='test' is not one of train, eval"),
    ('train', {'step': 1}, "'step' cannot be the name"),
    ('eval', {'kind': 1}, "'kind' cannot be the name"),
  ],
)
def test_wrong_names(tmp_path, kind, values, message):
  with metrics.MetricsWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match=message):
      writer.write(1, kind, values)


@pytest.mark.skipif(
  not pathlib.Path('/dev/full').exists(), reason='no /dev/full here'
)
def test_full_disk(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    writer._files['metrics.jsonl'].close()
    writer._files['metrics.jsonl'] = open('/dev/full', 'wb', buffering=0)
    with pytest.raises(OSError, match='step 3 could not be written') as error:
      writer.write(3, 'train', {'loss': 1})
  assert error.value.errno == errno.ENOSPC
  assert 'Free some space' in str(error.value)


def test_full_disk_of_tensorboard(tmp_path, monkeypatch, caplog):
  def fail():
    raise OSError(errno.ENOSPC, 'No space left on device')

  with pytest.raises(OSError, match='step 3 could not be written') as error:
    with metrics.MetricsWriter(tmp_path) as writer:
      writer.write(2, 'train', {'loss': 1})
      monkeypatch.setattr(writer._events, 'flush', fail)
      monkeypatch.setattr(writer._events, 'close', fail)
      writer.write(3, 'train', {'loss': 1})
  assert error.value.errno == errno.ENOSPC
  assert caplog.text == ''  # the same is not said twice
  assert [r['step'] for r in metrics.read_metrics(tmp_path)] == [2, 3]
  with metrics.MetricsWriter(tmp_path, resume_step=2) as writer:
    writer.write(3, 'train', {'loss': 1})
  assert [r['step'] for r in metrics.read_metrics(tmp_path)] == [2, 3]


def write_curves(workdir, steps, layers):
  with metrics.MetricsWriter(workdir) as writer:
    for step in range(1, steps + 1):
      values = {'loss': 5 / step, 'bits_per_byte': 7 / step, 'tokens': step}
      values |= {
        f'{memory}/{norm}_norm/layer_{i}': i
        for memory in ('memory', 'k')
        for norm in ('write', 'state')
        for i in range(layers)
      }
      writer.write(step, 'train', values)
    writer.write(steps, 'eval', {'bits_per_byte': 2, 'tokens': steps})


@pytest.mark.parametrize('steps, layers', [(1, 0), (1, 1), (150, 2), (5, 12)])
def test_draws_curves(tmp_path, steps, layers):
  write_curves(tmp_path, steps, layers)
  path = curves.draw_curves(tmp_path, {'gzip': 2.5, 'bigram': 3.5, 'xz': 2.51})
  assert path == tmp_path / 'curves.png'
  pixels = image.imread(path)
  assert pixels.shape == (630, 1350, 4)
  assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 50
  memories = curves.draw_memories(tmp_path)
  if layers:
    assert memories == tmp_path / 'memories.png'
    # A row of panels for each memory.
    pixels = image.imread(memories)
    assert pixels.shape == (660, 1350, 4)
    # The last panel has a curve, and no frame, which would be black.
    corner = pixels[330:, 675:].reshape(-1, 4)
    assert len(np.unique(corner, axis=0)) > 50
    assert corner[:, :3].sum(axis=1).min() > 0.2
  else:
    assert memories is None
  assert not list(tmp_path.glob('*.tmp'))


@pytest.mark.parametrize('memories, layers', [(5, 4), (4, 12), (1, 1)])
def test_draws_inner_losses(tmp_path, memories, layers):
  assert curves.draw_inner_losses(tmp_path) is None
  names = ['memory', 'k', 'v', 'eta', 'cms_level_0'][:memories]
  falling = {
    f'{name}/inner_loss/layer_{i}': [i + 4 / (1 + t) for t in range(100)]
    + [None]
    for name in names
    for i in range(layers)
  }
  (tmp_path / 'inner_losses.json').write_text(
    json.dumps({'tokens': [8] * 100 + [0], 'by_position': falling})
  )
  path = curves.draw_inner_losses(tmp_path)
  assert path == tmp_path / 'inner_losses.png'
  rows = -(-memories // 2)
  pixels = image.imread(path)
  assert pixels.shape == (90 + 300 * rows, 1350, 4)
  # The last panel has a curve.
  corner = pixels[-280:, 675:].reshape(-1, 4)
  assert len(np.unique(corner, axis=0)) > 50


def test_inner_losses_are_means_of_spans():
  y, counts = np.arange(128.0), np.repeat([2.0, 0.0], [100, 28])
  y[100:] = np.nan
  x, means = curves._means(y, counts)
  np.testing.assert_allclose(x, np.arange(50) * 2 + 0.5)
  np.testing.assert_allclose(means, x)


def test_draws_other_metrics_and_gaps(tmp_path):
  with metrics.MetricsWriter(tmp_path) as writer:
    for step in range(1, 300):
      loss = float('nan') if step > 100 else 1 / step
      writer.write(step, 'train', {'loss': loss, 'accuracy': 0.5})
    writer.write(300, 'eval', {'accuracy': float('inf')})
  assert image.imread(curves.draw_curves(tmp_path)).shape == (900, 1350, 4)


def test_smoothing_is_a_mean_without_shift():
  y = np.arange(100.0)
  np.testing.assert_allclose(curves._smooth(y)[2:-2], y[2:-2], rtol=1e-12)
  y[50] = np.nan
  assert np.isfinite(curves._smooth(y)).all()


def test_nothing_to_draw(tmp_path):
  metrics.MetricsWriter(tmp_path).close()
  with pytest.raises(ValueError, match='no bits_per_byte or loss or accuracy'):
    curves.draw_curves(tmp_path)


class Clock:
  """A clock that is set by hand."""

  now = 0.0

  def __call__(self):
    return self.now


def test_plain_lines_and_time_left():
  clock, stream = Clock(), io.StringIO()
  with progress.Progress(
    100, tokens_per_step=10, stream=stream, clock=clock
  ) as shown:
    clock.now = 60  # Compilation.
    assert shown.update(10, {'loss': 2.5}) == {'seconds': 60}
    clock.now = 65
    timing = shown.update(20, {'loss': 2, 'bits_per_byte': 2.885})
    # Ten steps took 5 s, so 80 take 40 s.
    assert timing == {'seconds': 65, 'tokens_per_second': 20}
    with shown.pause('evaluation'):
      clock.now += 15  # With compilation.
    clock.now += 5
    # Speed as before; 70 steps and the pauses of 70 steps: 35 s + 70 s * 0.5.
    assert shown.update(30, {'accuracy': 0.5})['tokens_per_second'] == 20
    with shown.pause('evaluation'):
      clock.now += 1
    clock.now += 5
    # Two evaluations in 40 steps, 1 s each: 60 steps take 30 s + 3 s.
    shown.update(40, {'loss': float('nan')})
    shown.note('step 40  held-out loss [2]')
  assert stream.getvalue().splitlines() == [
    'step 10/100  loss 2.5  ? tokens/s  ? left',
    'step 20/100  loss 2  2.885 bits/byte  20 tokens/s  40s left',
    'step 30/100  accuracy 0.5  20 tokens/s  1m 10s left',
    'step 40/100  loss nan  20 tokens/s  33s left',
    'step 40  held-out loss [2]',
  ]


def test_time_left_follows_recent_speed_after_resuming():
  clock, stream = Clock(), io.StringIO()
  shown = progress.Progress(
    1100, tokens_per_step=1, start=1000, stream=stream, clock=clock
  )
  for step in range(1001, 1051):
    clock.now += 10 if step <= 1025 else 1
    shown.update(step, {})
  assert stream.getvalue().splitlines()[-1].endswith('1 tokens/s  50s left')


def test_bar_in_a_terminal(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '100')
  stream = Terminal()
  with progress.Progress(20, tokens_per_step=1, stream=stream) as shown:
    shown.update(10, {'loss': 2.5})
    shown.note('held-out [bold]')
    shown.update(20, {'loss': 1.5})
  text = stream.getvalue()
  assert 'held-out [bold]\n' in text
  assert '20/20' in text and 'loss 1.5' in text and '\x1b[' in text


def test_shows_nothing_if_not_enabled():
  stream = io.StringIO()
  with progress.Progress(
    20, tokens_per_step=1, enabled=False, stream=stream
  ) as shown:
    assert set(shown.update(10, {'loss': 1})) == {'seconds'}
    shown.note('text')
  assert stream.getvalue() == ''


@pytest.mark.parametrize(
  'seconds, text',
  [
    (None, '?'),
    (0.4, '0s'),
    (59.6, '1m 00s'),
    (125, '2m 05s'),
    (3600 * 5 + 60 * 7, '5h 07m'),
    (86400 * 2 + 3600 * 3, '2d 03h'),
  ],
)
def test_format_duration(seconds, text):
  assert progress.format_duration(seconds) == text
