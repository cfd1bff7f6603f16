"""A run from its first step to its last, as a story."""

import contextlib
import functools
import io
import json
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from hope import blocks, errors, sampling
from hope import config as config_lib
from hope import data as data_lib
from hope.evaluation import baselines, heldout, in_training
from hope.evaluation.language_model import LanguageModel
from hope.parallel import devices, multihost
from hope.parallel import mesh as mesh_lib
from hope.run.checkpoint import open_checkpoints
from hope.run.metrics import MetricsWriter
from hope.run.mirror import Mirror
from hope.run.progress import Progress
from hope.run.workdir import check_workdir, full_disk_explained
from hope.training import step as step_lib


class NonFiniteLossError(errors.ExplainedError):
  """The loss, its gradient or the update stopped being a number."""


class Evaluated(NamedTuple):
  """What an evaluation found.

  Attributes:
    heldout: of `hope.evaluation.heldout.evaluate`.
    tasks: of `evals.tasks`, as 'tasks/s2/accuracy'.
  """

  heldout: dict[str, float]
  tasks: dict[str, float]


def _refuse(files: Mirror, step: int, batch, metrics) -> None:
  """Writes the batch whose loss is not finite, and raises."""
  part = ''
  if jax.process_count() > 1:
    part = f'_process_{jax.process_index()}'
  path = files.workdir / f'nonfinite_batch_step_{step}{part}.npz'
  content = io.BytesIO()
  np.savez(content, **batch)
  batch_is = f'is in {path}'
  try:
    path.write_bytes(content.getvalue())
    if multihost.is_leader():
      files.push()
  except OSError as error:  # a full disk must not hide what is wrong
    batch_is = f'could not be written ({error.strerror or error})'
  multihost.wait_for_all('refuse')  # the first to end ends the others
  norms = {k: float(v) for k, v in metrics.items() if 'state_norm' in k}
  grown = ''
  if norms:
    key = max(norms, key=lambda k: norms[k] if norms[k] < np.inf else np.inf)
    name, _, layer = key.split('/')
    grown = f' The largest memory is {name} of {layer}: norm {norms[key]:.3g}.'
  values = [float(metrics[name]) for name in ('loss', 'gradient_norm')]
  update = ''
  if np.isfinite(values).all():
    update = ', but what it would update to is not finite'
  raise NonFiniteLossError(
    f'step {step}: loss {values[0]}, gradient norm {values[1]}{update}. '
    'Nothing was updated; the last '
    f'checkpoint is good and the batch {batch_is}.{grown} Lower '
    'optimizer.learning_rate or model.titans.eta_max and start again.'
  )


def run(config: ml_collections.ConfigDict, workdir: str) -> bool:
  """Trains, or goes on training, until config.train.steps steps are done.

  Everything that can be wrong with the configuration, the data or the workdir
  is said before anything is compiled.

  Args:
    config: from an experiment file.
    workdir: directory of the run, also in a bucket, as gs://BUCKET/run; one
      that holds a run of the same configuration is continued from its newest
      intact checkpoint, on any mesh and by any number of processes.

  Returns:
    Whether the run is done; False if it was terminated, and saved.

  Raises:
    ValueError: for what the user can fix.
    NonFiniteLossError: naming the step.
    OSError: if the workdir cannot be written.
  """
  resolved = config_lib.resolve(config)
  devices.check_memory(resolved, blocks.least_parameters(resolved))
  with Mirror(workdir) as files:
    return _run(resolved, files)


def _run(config: ml_collections.FrozenConfigDict, files: Mirror) -> bool:
  """Does what `run` says of a resolved configuration, in files of its own."""
  folder = files.local
  mesh = mesh_lib.make_mesh(config)
  rows = mesh_lib.rows(mesh, config.data.batch_size)
  data = data_lib.open_data(config, str(folder), rows)
  config = config_lib.resolve(config, data.vocab_size)
  if not (
    data_lib.is_synthetic(config)
    or len(data.tokenizer.encode(config.sample.prompt))
  ):
    raise ValueError('sample.prompt is empty; give at least one letter.')
  batches, bytes_per_token = data.eval_batches(), data.bytes_per_token
  longer = data.longer_batches()
  tasks = in_training.open_sets(config, data.tokenizer, rows)
  train = data.train_iterator()
  data_lib.join_states(multihost.gather(train.get_state()))  # all read the same
  check_workdir(files.workdir, config.to_dict())

  graph, abstract = step_lib.abstract_state(config, mesh)
  checkpoints = open_checkpoints(files.workdir, config)
  start = 0
  if restored := checkpoints.restore_latest(abstract):
    state, start = restored.state, restored.step
    train.set_state(restored.data_state)
  else:
    state = step_lib.init_state(config, abstract)
  # A run that has done more is finished, and its numbers are of its last step.
  steps = max(config.train.steps, start)
  put = functools.partial(mesh_lib.put_batch, mesh=mesh)
  batches = [put(batch) for batch in batches]
  longer = {name: [put(b) for b in found] for name, found in longer.items()}
  update = step_lib.train_step(graph, config, abstract)
  steps_of = functools.cache(functools.partial(step_lib.eval_step, graph, mesh))

  def evaluate(params: Any) -> tuple[Evaluated, heldout.InnerLosses]:
    """Measures parameters on the held-out data and the tasks."""
    result, inner = heldout.evaluate(
      steps_of(data.metric),
      params,
      batches,
      bytes_per_token,
      longer,
      data.metric,
    )
    model = LanguageModel(graph, params, data.tokenizer)
    scores = in_training.evaluate(tasks, model, mesh, steps_of, put)
    return Evaluated(result, scores), inner

  tokens = config.data.batch_size * config.data.seq_len
  leader = multihost.is_leader()
  writer = MetricsWriter(
    folder, resume_step=start if restored else None, enabled=leader
  )
  progress = Progress(
    steps, tokens_per_step=tokens, start=start, enabled=leader
  )
  watchdog = multihost.Watchdog(
    config.processes.watchdog, enabled=jax.process_count() > 1
  )

  with contextlib.ExitStack() as stack:
    for resource in (
      contextlib.closing(train),
      checkpoints,
      writer,
      progress,
      watchdog,
    ):
      stack.enter_context(resource)
    terminated = stack.enter_context(multihost.termination())
    stack.enter_context(multihost.in_training())
    if start:
      progress.note(f'Going on from the checkpoint of step {start}.')
    pending: tuple[int, Any, Any] | None = None
    result: Evaluated | None = None
    inner: heldout.InnerLosses | None = None
    evaluated = start

    def settle() -> None:
      """Looks at the metrics of the step dispatched before."""
      if pending is None:
        return
      number, batch, metrics = pending
      metrics = jax.device_get(metrics)
      watchdog.beat()
      if not metrics.pop('healthy'):
        checkpoints.wait()
        _refuse(files, number, batch, metrics)
      logged = number % config.log.every == 0 or number in (1, steps)
      if logged or number == start + 1:
        values = {k: float(v) for k, v in metrics.items()}
        values |= heldout.bits_per_byte(values['loss'], bytes_per_token)
        values['tokens'] = number * tokens
        timing = progress.update(number, values)
        if logged:  # the same lines, wherever the run was interrupted
          writer.write(number, 'train', values, timing)

    for number in range(start + 1, steps + 1):
      batch = next(train)
      state, metrics = update(state, mesh_lib.put_batch(batch, mesh))
      settle()
      pending = (number, batch, metrics)
      if number == start + 1:  # the first sign of life, without another step
        settle()
        pending = None
      stop = terminated(number)
      if number % config.evals.every == 0 or number == steps:
        settle()
        pending = None
        with progress.pause('evaluation'), watchdog.patient():
          result, inner = evaluate(state.params)
        evaluated = number
        shown = result.heldout | result.tasks
        values = shown | {'tokens': number * tokens} | inner.means()
        writer.write(number, 'eval', values)
        progress.note(
          f'held out at step {number}: '
          + '  '.join(f'{k} {v:.4f}' for k, v in shown.items())
        )
      if number % config.checkpoint.every == 0 or number == steps or stop:
        settle()
        pending = None
        with progress.pause('checkpoint'), watchdog.patient():
          if leader:
            files.push()
          position = data_lib.join_states(multihost.gather(train.get_state()))
          checkpoints.save(
            number,
            state,
            data_state=position,
            loss=result.heldout['loss']
            if result and number == evaluated
            else None,
          )
      if stop:
        with watchdog.patient():
          checkpoints.wait()
        progress.note(
          f'Terminated: step {number} of {steps} is saved in {files.workdir}; '
          'the same command goes on from there.'
        )
        return False
    with watchdog.patient():
      checkpoints.wait()
    if terminated(steps + 1):
      progress.note(
        f'Terminated: all {steps} steps are saved in {files.workdir}; the same '
        'command shows the results.'
      )
      return False

  if result is None:  # a finished run was started again
    result, inner = evaluate(state.params)
  text = _sample(config, data, graph, state.params, mesh)
  if leader:
    with full_disk_explained('the results'):
      _conclude(config, files, data, text, result, inner, steps)
  multihost.wait_for_all('end')
  return True


def _sample(config, data, graph, params, mesh) -> str | None:
  """Text from the model; None for synthetic tasks."""
  if data_lib.is_synthetic(config):
    return None
  if jax.process_count() == 1:
    params = jax.device_put(params, mesh.devices.flat[0])
  sample = config.sample
  return sampling.continue_text(
    data.tokenizer,
    graph,
    params,
    sample.prompt,
    sample.tokens,
    temperature=sample.temperature,
    top_k=sample.top_k,
    seed=config.seed,
  )


# Lines of the sample that are printed, so that the results stay on the screen.
_SAMPLE_LINES = 10


def _conclude(config, files, data, text, result, inner, steps) -> None:
  """Keeps results, sample and pictures, then prints what fits one screen."""
  # Here, as it imports matplotlib, for which a start would wait.
  from hope.run.curves import draw_curves, draw_inner_losses, draw_memories

  marks = baselines.of_data(data)
  (files.local / 'results.json').write_text(
    json.dumps(
      {'heldout': result.heldout, 'tasks': result.tasks, 'baselines': marks},
      indent=2,
    )
  )
  names = ['results.json']
  if text is not None:
    (files.local / 'sample.txt').write_text(text, encoding='utf-8')
    names.append('sample.txt')
  if inner.by_position:
    (files.local / 'inner_losses.json').write_text(json.dumps(inner.to_dict()))
  pictures = [
    draw_curves(files.local, marks),
    draw_memories(files.local),
    draw_inner_losses(files.local),
  ]
  names += [picture.name for picture in pictures if picture]
  files.push()

  tokens = steps * config.data.batch_size * config.data.seq_len
  print(f'\nHeld out after {steps} steps, {tokens:,} tokens:')
  print(heldout.comparison(result.heldout, marks))
  for name, value in result.tasks.items():
    print(f'  {name} {value:.4f}')
  if text is not None:
    lines = text.splitlines()
    print(f'\nA sample, prompted with {config.sample.prompt!r}:')
    print('\n'.join(f'  {line[:76]}' for line in lines[:_SAMPLE_LINES]))
    if len(lines) > _SAMPLE_LINES:
      print('  ... (the rest is in sample.txt)')
  print(f'\nDone. In {files.workdir}:')
  print(f'  {", ".join(names)},')
  print('  metrics.jsonl, tensorboard/, checkpoints/')
  print('Next:')
  if text is not None:
    print(f'  python -m hope.generate --workdir={files.workdir} --prompt="..."')
  print('  the same command with --describe: what learns, and how often')
