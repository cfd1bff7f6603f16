"""A trained model, to read and learn from texts, generate, and evaluate."""

from collections.abc import Iterable, Sequence
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from flax import nnx
import jax
import ml_collections
import numpy as np

from hope import data as data_lib
from hope import fast_state, sampling, state_file
from hope.config import check_fields
from hope.data import tokenization
from hope.data.pipeline import changes
from hope.evaluation import (
  baselines,
  heldout,
  rolling,
  runner,
  specs,
  task_sets,
)
from hope.evaluation.intervals import Estimate
from hope.evaluation.language_model import LanguageModel
from hope.evaluation.text_sets import TextSet
from hope.fast_state import FastState
from hope.parallel import mesh as mesh_lib
from hope.run import manifest
from hope.run.checkpoint import open_checkpoints
from hope.run.mirror import Mirror
from hope.run.workdir import config_fingerprint
from hope.training import step as step_lib

# A text, or tokens: integers [t] or [b, t].
Text = str | bytes | np.ndarray | jax.Array | list[int]


class TrainedModel:
  """The model of a run, with its parameters at one checkpoint.

  Reading changes the fast state of the model and never its parameters. States
  are values: a method takes one and returns the next; None is the state before
  the first token.

    model = hope.load('runs/smoke')
    state = model.read(text)                 # it learns from the text
    model.evaluate(more, state)              # how well it knows what follows
    print(model.generate('def ', state=state))
    model.save_state('read.npz', state)      # and model.load_state('read.npz')

  A text is a str or bytes, or tokens: integers [t] or, for b streams at once,
  [b, t]. Reading takes the same memory and the same compiled programs for texts
  of any length.

  Attributes:
    config: of the run, resolved.
    tokenizer: of the run.
    graph: structure of the model, for `flax.nnx.merge(graph, params)`.
    params: nested dict of its parameters, float32.
    step: of training, at which the parameters were saved.
    workdir: of the run.
  """

  def __init__(
    self,
    config: ml_collections.FrozenConfigDict,
    tokenizer: tokenization.Tokenizer,
    graph: nnx.GraphDef,
    params: Any,
    *,
    step: int,
    files: Mirror,
    data_identity: dict[str, Any],
  ):
    """Takes the attributes, and what `load` knows; call `load` instead."""
    self.config, self.tokenizer = config, tokenizer
    self.graph, self.params = graph, params
    self.step, self.workdir = step, files.workdir
    self._files, self._data_identity = files, data_identity

  def __repr__(self) -> str:
    size = sum(x.size for x in jax.tree.leaves(self.params))
    return (
      f'TrainedModel({str(self.workdir)!r}, step {self.step}, {size:,} '
      'parameters)'
    )

  def __call__(
    self, text: Text, state: FastState | None = None
  ) -> tuple[jax.Array, FastState]:
    """Predicts the token after each token of a text.

    Args:
      text: of n tokens, at least 1.
      state: before it.

    Returns:
      (logits, the state after it), logits float32 [n, v] of a text or of tokens
      [n], or [b, n, v] of tokens [b, n]. All logits are kept in memory; for a
      very long text call `read` or `evaluate`.

    Raises:
      ValueError: for an empty text, a token outside the vocabulary, or a state
        of another number of streams.
    """
    tokens, one = self._tokens(text)
    if not tokens.shape[1]:
      raise ValueError('The text is empty; give at least one token.')
    logits, state = fast_state.predict(
      self.graph, self.params, tokens, self._before(state, len(tokens))
    )
    return (logits[0] if one else logits), state

  def read(self, text: Text, state: FastState | None = None) -> FastState:
    """Reads a text, and learns from it.

    Args:
      text: of any length.
      state: before it.

    Returns:
      The state after it.

    Raises:
      ValueError: as calling the model does, but for an empty text.
    """
    tokens, _ = self._tokens(text)
    before = self._before(state, len(tokens))
    return fast_state.read(self.graph, self.params, tokens, before)

  def generate(
    self,
    prompt: str = '',
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 40,
    seed: int = 0,
    state: FastState | None = None,
  ) -> str:
    """Writes a text.

    Args:
      prompt: that it goes on from; it may be empty if a state is given.
      tokens: how many to draw.
      temperature: of the softmax; 0 takes the most likely token.
      top_k: number of candidates; 0: all.
      seed: the same seed gives the same text.
      state: before the prompt.

    Returns:
      The prompt and what follows it.

    Raises:
      ValueError: for an empty prompt without a state, or an option that is out
        of range.
    """
    options = {'temperature': temperature, 'top_k': top_k, 'seed': seed}
    sampling.check_options(prompt, tokens=tokens, **options)
    before = None
    if state is not None:
      given = self._before(state, 1)
      before = given.logits, given.memories
    return sampling.continue_text(
      self.tokenizer,
      self.graph,
      self.params,
      prompt,
      tokens,
      before=before,
      **options,
    )

  def evaluate(
    self, text: Text | None = None, state: FastState | None = None
  ) -> dict[str, float]:
    """Measures how well the model predicts.

    Args:
      text: to predict, each token from all before it; without a state the first
        one is not counted, as nothing is before it. None: the held-out data of
        the run, in the rows and batches of its training.
      state: before the text.

    Returns:
      loss (nats per token), accuracy (share of tokens that were the most likely
      ones), and bits_per_byte, which only tokens that stand for bytes have. Of
      the held-out examples of a task also exact_match (share of those whose
      every answer was the most likely one), of some class_accuracy (mean of
      the accuracies of the classes), and the same of each bin of
      `evals.longer`, as 'exact_match/51-100'.

    Raises:
      ValueError: for a text of which no token counts, or where the run's data
        have changed or are not there.
    """
    if text is None:
      if state is not None:
        raise ValueError(
          'The held-out data are rows that start from no state; give a text to '
          'evaluate after a state.'
        )
      return self._evaluate_heldout()
    tokens, _ = self._tokens(text)
    counted = slice(1 if state is None else 0, None)
    if not tokens[:, counted].size:
      raise ValueError(
        'The text has no token to predict; give more of it, or a state before '
        'it.'
      )
    scores, _ = fast_state.score(
      self.graph, self.params, tokens, self._before(state, len(tokens))
    )
    losses = scores.losses[:, counted].astype(np.float64)
    loss = float(losses.mean())
    bytes_per_token = None
    numbers = self.tokenizer.document_separator is None
    if isinstance(text, str | bytes) and not numbers:
      raw = text.encode() if isinstance(text, str) else text
      sizes = self.tokenizer.sizes(raw, tokens[0])[counted]
      bytes_per_token = float(sizes.sum()) / losses.size
    return {
      'loss': loss,
      'accuracy': float(scores.correct[:, counted].mean()),
      **heldout.bits_per_byte(loss, bytes_per_token),
    }

  def evaluate_stream(self, texts: Iterable[str]) -> rolling.Rolling:
    """Measures how well the model predicts a text of any length.

    Args:
      texts: whose strings, joined, are the text; they are never in memory as a
        whole.

    Returns:
      What `evaluate` does, and the same by how much was read before.

    Raises:
      ValueError: for a text of which no token counts, or a model of numbers.
    """
    return rolling.evaluate(self.language_model, texts)

  def evaluate_tasks(
    self,
    tasks: Sequence[str],
    *,
    batch: int = 8,
    folder: str | os.PathLike[str] | None = None,
  ) -> dict[str, dict[str, Estimate]]:
    """Scores the model on tasks.

    Args:
      tasks: with their options, as 's2:size=4096,text=notes.txt'; see
        `hope.evaluation.specs`.
      batch: examples of texts that are read at once.
      folder: where a file keeps the scores of each task of texts; a call that
        was killed goes on from there, and progress is shown. None: neither.

    Returns:
      Metrics by name, each with its 95% interval where one is known, by task.

    Raises:
      ValueError: for a task that is not known, options from which no example
        can be made, or a folder with scores of something else; before anything
        is compiled, but for the last.
    """
    named = specs.parse_all(tasks)
    sets = task_sets.open_sets(named, self.config, self.tokenizer)
    mesh = mesh_lib.one_device()

    def read(label: str, texts: TextSet) -> dict[str, Estimate]:
      if folder is None:
        return runner.evaluate(self.language_model, texts, batch)
      return runner.evaluate_into(
        self.language_model,
        texts,
        pathlib.Path(folder) / runner.file_name(named[label], self.step),
        {'model': self.fingerprint, 'step': self.step},
        label=label,
        batch=batch,
      )

    return task_sets.evaluate(
      sets,
      self.params,
      functools.cache(functools.partial(step_lib.eval_step, self.graph, mesh)),
      functools.partial(mesh_lib.put_batch, mesh=mesh),
      read,
    )

  def baselines(self) -> dict[str, float]:
    """Bits per byte of the run's held-out data by what needs no training.

    Returns:
      By name: 'order-2 counts' and 'xz -9'; empty for synthetic tasks.
    """
    return baselines.of_data(self._data)

  def save_state(self, path: str | os.PathLike[str], state: FastState) -> None:
    """Writes a state into a file, which `load_state` reads.

    It is of the format .npz and names the model by a fingerprint of its
    configuration and numbers.

    Args:
      path: of the file; one that is there is replaced when the new one is
        complete.
      state: of this model.

    Raises:
      ValueError: if it is a state of another model.
      OSError: if the file cannot be written.
    """
    self._before(state, state.logits.shape[0])
    written_by = f'step {self.step} of {self.workdir}'
    header = state_file.Header(self.fingerprint, written_by)
    state_file.write(path, state, header)

  def load_state(self, path: str | os.PathLike[str]) -> FastState:
    """Reads a state that `save_state` wrote.

    Raises:
      ValueError: for a file that is damaged, no state, or one of another model.
      OSError: if there is no such file.
    """
    header, arrays = state_file.read(path)
    if header.model != self.fingerprint:
      raise ValueError(
        f'{path} is a state of another model: {header.written_by} wrote it, '
        f'and this is step {self.step} of {self.workdir}. Load that one, or '
        'read the text anew.'
      )
    logits = np.atleast_1d(arrays.get('logits', 0))
    state = state_file.fill(self._abstract(max(1, len(logits))), arrays)
    if state is None:
      raise ValueError(
        f'{path} does not fit the model, whose fingerprint it has; write it '
        'anew with save_state.'
      )
    return state

  @property
  def language_model(self) -> LanguageModel:
    """What the evaluators of texts ask of the model."""
    return LanguageModel(self.graph, self.params, self.tokenizer)

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of the configuration and of every number of the parameters."""
    numbers = manifest.fingerprints(manifest.leaves_by_path(self.params))
    content = [config_fingerprint(self.config), sorted(numbers.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  @functools.cached_property
  def _data(self) -> data_lib.Data:
    """The data of the run, which must be those that it was trained on."""
    data = data_lib.open_data(self.config, str(self._files.local))
    identity = json.loads(json.dumps(data.identity))
    if changed := changes(self._data_identity, identity):
      raise ValueError(
        f'the data of {self.workdir} have changed: {changed}. Restore them, '
        'or give a text to evaluate.'
      )
    return data

  def _evaluate_heldout(self) -> dict[str, float]:
    mesh = mesh_lib.one_device()
    put = functools.partial(mesh_lib.put_batch, mesh=mesh)
    longer = self._data.longer_batches()
    result, _ = heldout.evaluate(
      step_lib.eval_step(self.graph, mesh, self._data.metric),
      self.params,
      [put(batch) for batch in self._data.eval_batches()],
      self._data.bytes_per_token,
      {name: [put(b) for b in batches] for name, batches in longer.items()},
      self._data.metric,
    )
    return result

  def _tokens(self, text: Text) -> tuple[np.ndarray, bool]:
    """(tokens int32 [b, t], whether one stream was given without its axis)."""
    if isinstance(text, str | bytes):
      return self.tokenizer.encode(text)[None], True
    tokens = np.asarray(text)
    if tokens.ndim not in (1, 2) or (
      tokens.size and not np.issubdtype(tokens.dtype, np.integer)
    ):
      raise ValueError(
        f'{tokens.dtype} {tokens.shape} are not tokens; give integers [t] or '
        '[b, t], or a text.'
      )
    sampling.check_tokens('The text', tokens, self.params)
    one = tokens.ndim == 1
    return (tokens[None] if one else tokens).astype(np.int32), one

  def _abstract(self, batch: int) -> FastState:
    """Shapes and dtypes of a state of `batch` streams."""
    return jax.eval_shape(
      lambda params: fast_state.begin(self.graph, params, batch), self.params
    )

  def _before(self, state: FastState | None, batch: int) -> FastState:
    """A checked copy of a state of `batch` streams; None: the initial one."""
    if state is None:
      return fast_state.begin(self.graph, self.params, batch)
    given = jax.tree.leaves(state)[-1].shape[0]
    if given != batch:
      raise ValueError(
        f'The state is of {given} streams and the text of {batch}; give as '
        'many of both.'
      )
    if _structure(state) != _structure(self._abstract(batch)):
      raise ValueError(
        'The state is of another model; give one that this model returned.'
      )
    return fast_state.copied(state)


def _structure(state: FastState) -> dict[str, Any]:
  """Shape and dtype of every array by its path, as JSON values."""
  return {
    name: {'shape': list(x.shape), 'dtype': str(x.dtype)}
    for name, x in manifest.leaves_by_path(state).items()
  }


def load(workdir: str | os.PathLike[str]) -> TrainedModel:
  """Loads the model of a run at its newest intact checkpoint.

  Choice: the memories run with kernel='xla', as decoding does anyway, so that a
  run trained on a TPU can be loaded on any machine.

  Args:
    workdir: of the run; also in a bucket, as gs://BUCKET/run.

  Raises:
    ValueError: if workdir holds no run or no checkpoint.
    hope.run.checkpoint.CheckpointError: if all checkpoints are damaged.
  """
  files = Mirror(os.fspath(workdir), reading=True)
  folder = files.workdir
  path = folder / 'config.json'
  if not path.is_file():
    raise ValueError(
      f'{folder} holds no run: there is no config.json. Train one with '
      f'hope-train --config=smoke --workdir={workdir}'
    )
  try:
    config = ml_collections.ConfigDict(json.loads(path.read_text()))
    check_fields(config)
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(f'{path}: {error}') from None
  config.compute.kernel = 'xla'  # the fingerprint is of other fields
  config = ml_collections.FrozenConfigDict(config)
  tokenizer = tokenization.open_tokenizer(config, str(files.local))
  graph, params = step_lib.abstract_params(config, mesh_lib.one_device())
  with open_checkpoints(folder, config) as checkpoints:
    restored = checkpoints.restore_latest({'params': params}, partly=True)
  if restored is None:
    raise ValueError(f'{folder} has no checkpoint yet; train it further.')
  return TrainedModel(
    config,
    tokenizer,
    graph,
    restored.state['params'],
    step=restored.step,
    files=files,
    data_identity=restored.data_state['identity'],
  )


def _loaded(run: TrainedModel | str | os.PathLike[str]) -> TrainedModel:
  return run if isinstance(run, TrainedModel) else load(run)


def generate(
  run: TrainedModel | str | os.PathLike[str],
  prompt: str = '',
  *,
  tokens: int = 200,
  temperature: float = 0.8,
  top_k: int = 40,
  seed: int = 0,
) -> str:
  """Writes a text with a trained model.

  Args:
    run: a workdir, or what `load` returned.
    prompt: as in `TrainedModel.generate`, like all that follow.
    tokens: how many to draw.
    temperature: of the softmax.
    top_k: number of candidates.
    seed: of the draws.

  Returns:
    The prompt and what follows it.

  Raises:
    ValueError: as `load` and `TrainedModel.generate`; options that are out of
      range before anything is loaded.
  """
  options = {'temperature': temperature, 'top_k': top_k, 'seed': seed}
  sampling.check_options(prompt, tokens=tokens, **options)
  return _loaded(run).generate(prompt, tokens=tokens, **options)


def evaluate(
  run: TrainedModel | str | os.PathLike[str], text: Text | None = None
) -> dict[str, float]:
  """Measures a trained model on its held-out data, or on a text.

  Args:
    run: a workdir, or what `load` returned.
    text: see `TrainedModel.evaluate`.

  Returns:
    loss (nats per token), accuracy and, where tokens stand for bytes,
    bits_per_byte; of held-out examples of a task also exact_match.
  """
  return _loaded(run).evaluate(text)
