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
from hope import generate
from hope import levels
from hope.data import pipeline
from hope.data import sources
from hope.data import tokenization
from hope.evaluation import yardsticks
from hope.training import step as step_lib
from hope.training.checkpoint import Checkpointer
from hope.training.curves import draw_curves
from hope.training.metrics import MetricsWriter
from hope.training.progress import Progress
from hope.training.workdir import check_workdir
from hope.training.workdir import config_fingerprint


class NonFiniteLossError(RuntimeError):
  """The loss or its gradient stopped being a number."""


class Data:
  """The data of a run: corpus, tokenizer and batches."""

  def __init__(self, config: ml_collections.ConfigDict, workdir: str | None):
    """Opens the source that `config.data` names; ValueError if it cannot."""
    self._config = config
    self.corpus = None
    if not pipeline.is_synthetic(config):
      self.corpus = sources.open_corpus(config)
    self.tokenizer = tokenization.open_tokenizer(config, workdir, self.corpus)

  def train(self) -> pipeline.BatchIterator:
    """Endless training batches."""
    return pipeline.train_iterator(
      self._config, self.tokenizer, corpus=self.corpus
    )

  def heldout(self) -> tuple[list[pipeline.Batch], float | None]:
    """Held-out batches, and bytes per token (None: the data are no text)."""
    return pipeline.heldout_batches(
      self._config,
      self.tokenizer,
      self._config.train.eval_batches,
      corpus=self.corpus,
    )

  def yardsticks(self, heldout: list[pipeline.Batch]) -> dict[str, float]:
    """Bits per byte of an order-2 count model and of xz on the same bytes."""
    if self.corpus is None:
      return {}
    rows = np.concatenate([batch['inputs'] for batch in heldout])
    text = self.tokenizer.decode(rows.reshape(-1)).encode()
    train = (content for _, content in self.corpus.documents('train'))
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
  raise NonFiniteLossError(
    f'step {step}: loss {float(metrics["loss"])}, gradient norm '
    f'{float(metrics["gradient_norm"])}. Nothing was updated; the last '
    f'checkpoint is good and the batch is in {path}. Lower '
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
  data = Data(config, str(folder))
  config = config_lib.resolve(config, data.tokenizer.vocab_size)
  check_workdir(folder, config.to_dict())
  heldout, bytes_per_token = data.heldout()
  train = data.train()
  steps = config.train.steps

  graph, state = step_lib.init_state(config)
  checkpoints = Checkpointer(
    folder / 'checkpoints',
    keep=config.train.keep,
    config_fingerprint=config_fingerprint(config.to_dict()),
  )
  start = 0
  if restored := checkpoints.restore_latest(state):
    state, start = restored.state, restored.step
    train.set_state(restored.data_state)
  update = step_lib.train_step(graph, config)
  evaluate = step_lib.eval_step(graph)
  tokens = config.data.batch_size * config.data.seq_len
  writer = MetricsWriter(folder, resume_step=start if restored else None)
  progress = Progress(steps, tokens_per_step=tokens, start=start)

  with checkpoints, writer, progress, _termination() as terminated:
    if start:
      progress.note(f'Going on from the checkpoint of step {start}.')
    pending: tuple[int, Any, Any] | None = None

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
      if number % config.train.log_every == 0 or number in (start + 1, steps):
        values = {k: float(v) for k, v in metrics.items()}
        values |= _bits(values['loss'], bytes_per_token)
        values['tokens'] = number * tokens
        writer.write(number, 'train', values, progress.update(number, values))

    for number in range(start + 1, steps + 1):
      batch = next(train)
      state, metrics = update(state, batch)
      settle()
      pending = (number, batch, metrics)
      last = number == steps or bool(terminated)
      if number % config.train.eval_every == 0 or number == steps:
        settle()
        pending = None
        with progress.pause('evaluation'):
          values = _evaluate(evaluate, state.params, heldout, bytes_per_token)
        writer.write(number, 'eval', values | {'tokens': number * tokens})
        progress.note(
          f'held out at step {number}: '
          + '  '.join(f'{k} {v:.4f}' for k, v in values.items())
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

  _conclude(config, folder, data, heldout, graph, state.params, evaluate,
            bytes_per_token)


def _conclude(
  config, folder, data, heldout, graph, params, evaluate, bytes_per_token
) -> None:
  """Prints levels, sample and results, and draws the curves."""
  marks = data.yardsticks(heldout)
  curves = draw_curves(folder, marks)
  result = _evaluate(evaluate, params, heldout, bytes_per_token)
  print('\nLevels, fastest first:')
  print(levels.table(config))
  if data.corpus is not None:
    sample = config.sample
    prompt = data.tokenizer.encode(sample.prompt)
    new = generate.generate(
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
  if bytes_per_token is None:
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

