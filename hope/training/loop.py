"""A run from its first step to its last, as a story."""

from collections.abc import Iterator
import contextlib
import itertools
import json
import math
import pathlib
import signal
from typing import Any

import jax
import ml_collections
import numpy as np

from hope import config as config_lib
from hope import data as data_lib
from hope import levels, sampling
from hope.evaluation import yardsticks
from hope.parallel import devices
from hope.training import step as step_lib
from hope.training.checkpoint import open_checkpoints
from hope.training.curves import draw_curves
from hope.training.metrics import MetricsWriter
from hope.training.progress import Progress
from hope.training.workdir import check_workdir


class NonFiniteLossError(RuntimeError):
  """The loss or its gradient stopped being a number."""


def _yardsticks(
  config: ml_collections.ConfigDict, data: data_lib.Data
) -> dict[str, float]:
  """Bits per byte of an order-2 count model and of xz on the held-out bytes."""
  if data_lib.is_synthetic(config):
    return {}
  rows = np.concatenate([batch['inputs'] for batch in data.eval_batches()])
  text = data.tokenizer.decode(rows.reshape(-1)).encode()
  train = (content for _, content in data_lib.documents(config, 'train'))
  return {
    'order-2 counts': yardsticks.order2_bits_per_byte(train, text),
    'xz -9': yardsticks.xz_bits_per_byte(text),
  }


@contextlib.contextmanager
def _termination() -> Iterator[list[int]]:
  """Collects SIGTERM instead of dying of it; the list is empty until then."""
  received = []
  before = signal.signal(
    signal.SIGTERM, lambda number, frame: received.append(number)
  )
  try:
    yield received
  finally:
    signal.signal(signal.SIGTERM, before)


def _evaluate(step, params, batches, bytes_per_token) -> dict[str, float]:
  sums = [jax.device_get(step(params, batch)) for batch in batches]
  weight = float(sum(s['weight'] for s in sums))
  values = {
    name: float(sum(s[name] for s in sums)) / weight
    for name in ('loss', 'accuracy')
  }
  return values | _bits(values['loss'], bytes_per_token)


def _bits(loss: float, bytes_per_token: float | None) -> dict[str, float]:
  if bytes_per_token is None:
    return {}
  return {'bits_per_byte': loss / math.log(2) / bytes_per_token}


def _refuse(workdir: pathlib.Path, step: int, batch, metrics) -> None:
  """Writes the batch whose loss is not finite, and raises."""
  path = workdir / f'nonfinite_batch_step_{step}.npz'
  np.savez(path, **batch)
  norms = {k: float(v) for k, v in metrics.items() if 'state_norm' in k}
  grown = ''
  if norms:
    key = max(norms, key=lambda k: norms[k] if norms[k] < np.inf else np.inf)
    name, _, layer = key.split('/')
    grown = f' The largest memory is {name} of {layer}: norm {norms[key]:.3g}.'
  raise NonFiniteLossError(
    f'step {step}: loss {float(metrics["loss"])}, gradient norm '
    f'{float(metrics["gradient_norm"])}. Nothing was updated; the last '
    f'checkpoint is good and the batch is in {path}.{grown} Lower '
    'optimizer.learning_rate or model.titans.eta_max and start again.'
  )


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Trains, or goes on training, until config.train.steps steps are done.

  Everything that can be wrong with the configuration, the data or the workdir
  is said before anything is compiled.

  Args:
    config: from an experiment file.
    workdir: directory of the run; one that holds a run of the same
      configuration is continued from its newest intact checkpoint.

  Raises:
    ValueError: for what the user can mend.
    NonFiniteLossError: naming the step.
    OSError: if the workdir cannot be written.
  """
  folder = pathlib.Path(workdir).absolute()
  data = data_lib.open_data(config, str(folder))
  config = config_lib.resolve(config, data.vocab_size)
  heldout, bytes_per_token = data.eval_batches(), data.bytes_per_token
  train = data.train_iterator()
  check_workdir(folder, config.to_dict())
  steps = config.train.steps

  mesh = devices.data_mesh(config.data.batch_size // config.train.accumulate)
  graph, state = step_lib.init_state(config)
  state = devices.put_everywhere(state, mesh)
  checkpoints = open_checkpoints(folder, config)
  start = 0
  if restored := checkpoints.restore_latest(state):
    state, start = restored.state, restored.step
    train.set_state(restored.data_state)
  heldout = [devices.put_batch(batch, mesh) for batch in heldout]
  update = step_lib.train_step(graph, config, mesh)
  evaluate = step_lib.eval_step(graph, mesh)
  tokens = config.data.batch_size * config.data.seq_len
  writer = MetricsWriter(folder, resume_step=start if restored else None)
  progress = Progress(steps, tokens_per_step=tokens, start=start)

  with contextlib.ExitStack() as stack:
    for resource in (contextlib.closing(train), checkpoints, writer, progress):
      stack.enter_context(resource)
    terminated = stack.enter_context(_termination())
    if start:
      progress.note(f'Going on from the checkpoint of step {start}.')
    pending: tuple[int, Any, Any] | None = None
    result: dict[str, float] | None = None

    def settle() -> None:
      """Looks at the metrics of the step dispatched before."""
      if pending is None:
        return
      number, batch, metrics = pending
      metrics = jax.device_get(metrics)
      finite = np.isfinite([metrics['loss'], metrics['gradient_norm']])
      if not finite.all():
        checkpoints.wait()
        _refuse(folder, number, batch, metrics)
      logged = number % config.train.log_every == 0 or number in (1, steps)
      if logged or number == start + 1:
        values = {k: float(v) for k, v in metrics.items()}
        values |= _bits(values['loss'], bytes_per_token)
        values['tokens'] = number * tokens
        timing = progress.update(number, values)
        if logged:  # the same lines, wherever the run was interrupted
          writer.write(number, 'train', values, timing)

    for number in range(start + 1, steps + 1):
      batch = devices.put_batch(next(train), mesh)
      state, metrics = update(state, batch)
      settle()
      pending = (number, batch, metrics)
      last = number == steps or bool(terminated)
      if number % config.train.eval_every == 0 or number == steps:
        settle()
        pending = None
        with progress.pause('evaluation'):
          result = _evaluate(evaluate, state.params, heldout, bytes_per_token)
        writer.write(number, 'eval', result | {'tokens': number * tokens})
        progress.note(
          f'held out at step {number}: '
          + '  '.join(f'{k} {v:.4f}' for k, v in result.items())
        )
      if number % config.train.checkpoint_every == 0 or last:
        settle()
        pending = None
        with progress.pause('checkpoint'):
          checkpoints.save(number, state, data_state=train.get_state())
      if terminated:
        checkpoints.wait()
        progress.note(
          f'Terminated by signal {terminated[0]}: step {number} of {steps} is '
          f'saved in {folder}; the same command goes on from there.'
        )
        return
    checkpoints.wait()

  if result is None:  # a finished run was started again
    result = _evaluate(evaluate, state.params, heldout, bytes_per_token)
  params = jax.device_put(state.params, mesh.devices.flat[0])
  _conclude(config, folder, data, graph, params, result)


def _conclude(config, folder, data, graph, params, result) -> None:
  """Prints levels, sample and results, and draws the curves."""
  marks = _yardsticks(config, data)
  curves = draw_curves(folder, marks)
  print('\nLevels, fastest first:')
  print(levels.table(config))
  if not data_lib.is_synthetic(config):
    sample = config.sample
    prompt = data.tokenizer.encode(sample.prompt)
    new = sampling.generate(
      graph,
      params,
      prompt[None],
      sample.tokens,
      temperature=sample.temperature,
      top_k=sample.top_k,
      seed=config.seed,
    )
    text = data.tokenizer.decode(itertools.chain(prompt, new[0]))
    print(f'\nA sample, prompted with {sample.prompt!r}:\n{text}')
  print(f'\nHeld-out results after {config.train.steps} steps:')
  if 'bits_per_byte' not in result:
    print(f'  accuracy {result["accuracy"]:.4f}  loss {result["loss"]:.4f}')
  else:
    rows = {'this model': result['bits_per_byte'], **marks}
    for name, value in rows.items():
      print(f'  {name:16s} {value:.4f} bits per byte')
    for name, value in marks.items():
      verdict = 'beats' if result['bits_per_byte'] < value else 'loses to'
      print(f'  The model {verdict} {name}.')
  (folder / 'results.json').write_text(
    json.dumps({'heldout': result, 'yardsticks': marks}, indent=2)
  )
  print(
    f'\nDone. In {folder}: results.json, {curves.name}, metrics.jsonl, '
    'tensorboard/, checkpoints/.\nMore text: python -m hope.generate '
    f'--workdir={folder} --prompt="..."'
  )
