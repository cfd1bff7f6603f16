"""Tasks that are evaluated while a model is trained (`evals.tasks`)."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import ml_collections

from hope.data.pipeline import Batch
from hope.data.tokenization import Tokenizer
from hope.evaluation import heldout, runner, specs, task_sets
from hope.evaluation.intervals import Estimate
from hope.evaluation.language_model import LanguageModel
from hope.evaluation.task_sets import Sets
from hope.evaluation.text_sets import TextSet
from hope.tasks import TASKS


def open_sets(
  config: ml_collections.FrozenConfigDict,
  tokenizer: Tokenizer,
  rows: Sequence[int],
) -> Sets:
  """Opens the tasks of `evals.tasks`, by the names of their results.

  Args:
    config: resolved, `model.vocab_size` filled in.
    tokenizer: of the run.
    rows: of each batch that this process reads.

  Raises:
    ValueError: as `task_sets.open_sets`; for a task of texts in a run of
      several processes.
  """
  try:
    named = specs.parse_all(config.evals.tasks)
    for spec in named.values():
      if spec.name not in TASKS and jax.process_count() > 1:
        raise ValueError(
          f'task {spec.text!r} is read on one device, and the run has '
          f'{jax.process_count()} processes, none of which has all parameters; '
          'leave it out, and evaluate checkpoints with hope-evaluate.'
        )
    return task_sets.open_sets(named, config, tokenizer, rows)
  except ValueError as error:
    raise ValueError(f'evals.tasks: {error}') from None


def evaluate(
  sets: Sets,
  model: LanguageModel,
  mesh: Mesh,
  step: Callable[[str | None], Callable[[Any, Any], heldout.Sums]],
  put: Callable[[Batch], Any],
) -> dict[str, float]:
  """The metrics of tasks, as 'tasks/s2/accuracy'.

  Tasks of texts are read on the mesh's first device, as samples are drawn: a
  copy of the parameters is there while they are.

  Args:
    sets: of `open_sets`.
    model: in training; its parameters are laid out on the mesh.
    mesh: of the run.
    step: metric -> `hope.training.step.eval_step` of it.
    put: places a batch on the devices.
  """

  @functools.cache
  def alone() -> LanguageModel:
    params = jax.device_put(model.params, mesh.devices.flat[0])
    return model._replace(params=params)

  def read(label: str, texts: TextSet) -> dict[str, Estimate]:
    del label
    return runner.evaluate(alone(), texts)

  found = task_sets.evaluate(sets, model.params, step, put, read)
  return {
    f'tasks/{label}/{name}': estimate.value
    for label, metrics in found.items()
    for name, estimate in metrics.items()
  }
