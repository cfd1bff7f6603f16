"""Parts of `hope.accelerator`, run one by one until a deadline."""

from collections.abc import Callable, Sequence
import datetime
import json
import multiprocessing
import os
import pathlib
import sys
import time
import traceback
from typing import Any

from absl import flags
import jax
import rich.console

from hope import compilation_cache
from hope.profiling import accelerator_report
from hope.profiling.accelerator_parts import (
  RUNNERS,
  Part,
  SkippedError,
  plan,
  small_plan,
)
from hope.profiling.topologies import one_line

# A part is not begun with less time, in seconds.
_LEAST = 5


def serve(pipe: Any) -> None:
  """Runs the parts that come through a pipe, until it is closed.

  Sends (status, value): 'stage' and its name, any number of times, then 'done'
  and the result, or 'skipped' or 'failed' and the reason.
  """
  config: Any = jax.config
  wanted = config.jax_platforms
  more = wanted and 'cpu' not in wanted.split(',')
  if more:
    # The CPU computes what the device is compared with.
    config.update('jax_platforms', f'{wanted},cpu')
  compilation_cache.use()
  while True:
    try:
      part = pipe.recv()
    except EOFError:
      return
    try:
      if jax.default_backend() == 'cpu' and more:
        raise RuntimeError(f'JAX_PLATFORMS={wanted}, but jax sees only a CPU.')
      result = RUNNERS[part.kind](
        **part.arguments, note=lambda stage: pipe.send(('stage', stage))
      )
      pipe.send(('done', result))
    except SkippedError as reason:
      pipe.send(('skipped', str(reason)))
    except Exception as error:
      traceback.print_exc()
      pipe.send(('failed', f'{type(error).__name__}: {one_line(error)}'))


class Worker:
  """A process that runs parts; one that takes too long is ended."""

  def __init__(self, serve: Callable[[Any], None] = serve):
    """Takes what runs in the process, with its end of the pipe."""
    self._serve = serve
    self._process: Any = None
    self._pipe: Any = None

  def _start(self) -> None:
    context = multiprocessing.get_context('spawn')
    self._pipe, end = context.Pipe()
    self._process = context.Process(
      target=self._serve, args=(end,), daemon=True
    )
    self._process.start()
    end.close()

  def close(self, seconds: float = 0) -> int | None:
    """Ends the process, if there is one, after so many seconds at the latest.

    Returns:
      Its exit code; None if there was none.
    """
    process, self._process = self._process, None
    if process is None:
      return None
    self._pipe.close()
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode

  def run(self, part: Part, seconds: float) -> dict[str, Any]:
    """Runs a part; returns its 'status', and its 'result' or the 'reason'."""
    end = time.monotonic() + seconds
    if self._process is None:
      self._start()
    stage = 'start'
    try:
      self._pipe.send(part)
      while self._pipe.poll(max(end - time.monotonic(), 0)):
        status, value = self._pipe.recv()
        if status == 'stage':
          stage = value
          continue
        key = 'result' if status == 'done' else 'reason'
        return {'status': status, key: value}
    except (EOFError, OSError):
      code = self.close(5)
      reason = f'its process ended with exit code {code} during: {stage}'
      return {'status': 'failed', 'reason': reason}
    self.close()
    reason = f'ended after {seconds:.0f} s, its deadline, during: {stage}'
    return {'status': 'skipped', 'reason': reason}


def run_parts(
  parts: Sequence[Part],
  run: Callable[[Part, float], dict[str, Any]],
  end: float,
  seconds: float,
  finished: Callable[[dict[str, Any]], None],
  clock: Callable[[], float] = time.monotonic,
) -> None:
  """Runs parts in order, each in its share of the time and in what is left.

  Args:
    parts: the most important first.
    run: (part, seconds) -> outcome, as `Worker.run`.
    end: of all, by the clock.
    seconds: that a part's share is of.
    finished: is given each part's outcome: name, kind, status, seconds, and
      the result or the reason.
    clock: in seconds.
  """
  for part in parts:
    begin = clock()
    left = end - begin
    if left < _LEAST:
      outcome = {'status': 'skipped', 'reason': 'no time was left'}
    else:
      outcome = run(part, min(part.share * seconds, left))
    head = {'name': part.name, 'kind': part.kind}
    finished({**head, 'seconds': clock() - begin, **outcome})


def add_shares(outcomes: list[dict[str, Any]]) -> None:
  """Adds to results what share they are of the measured peaks.

  share_of_matmul_peak: model FLOP/s over the rate of bfloat16 matmuls.
  share_of_bandwidth: of training, the traffic of main memory that the compiled
    program states; of decoding, what a token cannot do without: parameters
    read once, states read and written once.

  Args:
    outcomes: of `run_parts`; unchanged if the peaks are not among them.
  """
  results = [(x['kind'], x['result']) for x in outcomes if 'result' in x]
  peaks = next((result for kind, result in results if kind == 'peaks'), None)
  if peaks is None:
    return
  bandwidth = peaks['memory_bytes_per_second']
  for kind, x in results:
    if kind == 'training':
      peak = peaks['matmul_bfloat16_flops_per_second']
      x['share_of_matmul_peak'] = x['model_flops_per_second'] / peak
      if traffic := x['main_memory_traffic_bytes']:
        x['share_of_bandwidth'] = traffic / x['step_seconds'] / bandwidth
    if kind == 'decoding':
      moved = x['parameter_bytes'] + 2 * x['state_bytes']
      for length in ('short', 'long'):
        rate = moved / x[f'seconds_per_token_{length}']
        x[f'share_of_bandwidth_{length}'] = rate / bandwidth


def failures(outcomes: Sequence[dict[str, Any]]) -> list[str]:
  """Names of the parts that failed, or whose results are not equal."""
  return [
    x['name']
    for x in outcomes
    if x['status'] == 'failed' or not x.get('result', {}).get('equal', True)
  ]


def _write(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes JSON so that the file is whole at any time."""
  new = path.with_suffix('.new')
  new.write_text(json.dumps(content, indent=1) + '\n')
  os.replace(new, path)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  flags.DEFINE_float(
    'minutes',
    6,
    'Time for all of it.',
    lower_bound=0.1,
    upper_bound=1e6,
    flag_values=values,
  )
  flags.DEFINE_string(
    'output',
    'runs/accelerator',
    'Folder of the results.',
    flag_values=values,
  )
  flags.DEFINE_bool(
    'small',
    None,
    'The small form; by default on a CPU, and only there.',
    flag_values=values,
  )


def execute(
  folder: pathlib.Path,
  minutes: float,
  small: bool | None,
  worker: Worker,
  console: rich.console.Console,
) -> int:
  """Runs what there is time for, prints it and writes it.

  Args:
    folder: of the results; made if it is not there.
    minutes: for all of it.
    small: whether in the small form; None: on a CPU.
    worker: that runs the parts.
    console: to print on.

  Returns:
    The exit code: 1 if something is not equal or failed.
  """
  seconds = 60 * minutes
  end = time.monotonic() + seconds
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'accelerator.json'
  content: dict[str, Any] = {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'minutes': minutes,
    'complete': False,
    'parts': [],
  }

  def finished(outcome: dict[str, Any]) -> None:
    content['parts'].append(outcome)
    add_shares(content['parts'])
    _write(path, content)
    spent = seconds - (end - time.monotonic())
    line = f'{spent:4.0f} s  {outcome["name"]}: {outcome["status"]}'
    if 'reason' in outcome:
      line += f', {outcome["reason"]}'
    console.print(line, markup=False)

  try:
    first = Part('machine', 'machine', {}, 0.4)
    run_parts([first], worker.run, end, seconds, finished)
    machine = content['parts'][0].get('result')
    if machine:
      if small is None:
        small = machine['platform'] == 'cpu'
        if small:
          console.print('jax sees no GPU or TPU: the small form, on the CPU.')
      content['small'] = small
      parts = small_plan() if small else plan(machine)
      run_parts(parts, worker.run, end, seconds, finished)
  finally:
    worker.close()
  content['complete'] = True
  content['failed'] = failures(content['parts'])
  _write(path, content)
  accelerator_report.show(content, console)
  console.print(f'Written to {path}', markup=False)
  if content['failed']:
    names = '; '.join(content['failed'])
    print(f'error: not equal, or failed: {names}', file=sys.stderr)
  return 1 if content['failed'] else 0


def main(values: flags.FlagValues) -> None:
  """Runs `execute` with the flags and exits with its code."""
  folder = pathlib.Path(values.output)
  console = rich.console.Console(highlight=False)
  sys.exit(execute(folder, values.minutes, values.small, Worker(), console))
