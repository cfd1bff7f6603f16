"""Tasks that are evaluated while a model is trained (`evals.tasks`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
import ml_collections

from hope.data.pipeline import Batch
from hope.data.tokenization import Tokenizer
from hope.evaluation import heldout, position_sets, runner, specs, text_sets
from hope.evaluation.language_model import LanguageModel
from hope.evaluation.position_sets import PositionSet
from hope.evaluation.text_sets import TextSet
from hope.tasks import TASKS

Sets = dict[str, PositionSet | TextSet]


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
    ValueError: for data or options from which no example can be made; for a
      task of texts in a run of several processes.
  """
  found: Sets = {}
  try:
    for label, spec in specs.parse_all(config.evals.tasks).items():
      if spec.name in TASKS:
        found[label] = position_sets.open_position_set(spec, config, rows)
      elif jax.process_count() > 1:
        raise ValueError(
          f'task {spec.text!r} is read on one device, and the run has '
          f'{jax.process_count()} processes, none of which has all parameters; '
          'leave it out, and evaluate checkpoints with hope-evaluate.'
        )
      else:
        found[label] = text_sets.open_text_set(spec, tokenizer)
  except ValueError as error:
    raise ValueError(f'evals.tasks: {error}') from None
  return found


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
  values = {}
  alone = None
  for label, examples in sets.items():
    if isinstance(examples, PositionSet):
      found = position_sets.evaluate(
        examples, step(examples.metric), model.params, put
      )
    else:
      if alone is None:
        params = jax.device_put(model.params, mesh.devices.flat[0])
        alone = model._replace(params=params)
      found = runner.evaluate(alone, examples)
    for name, estimate in found.items():
      values[f'tasks/{label}/{name}'] = estimate.value
  return values
