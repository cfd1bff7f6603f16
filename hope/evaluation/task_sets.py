"""The examples of several tasks, and a model's scores on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from hope.data.pipeline import Batch
from hope.data.tokenization import Tokenizer
from hope.evaluation import heldout, position_sets, text_sets
from hope.evaluation.intervals import Estimate
from hope.evaluation.position_sets import PositionSet
from hope.evaluation.specs import Spec
from hope.evaluation.text_sets import TextSet
from hope.tasks import TASKS

Sets = dict[str, PositionSet | TextSet]


def open_sets(
  named: Mapping[str, Spec],
  config: ml_collections.FrozenConfigDict,
  tokenizer: Tokenizer,
  rows: Sequence[int] | None = None,
) -> Sets:
  """Opens tasks, by the names of their results.

  Args:
    named: of `specs.parse_all`.
    config: of the model, resolved, `model.vocab_size` filled in.
    tokenizer: of the model.
    rows: of each batch that this process reads. None: all.

  Raises:
    ValueError: for data or options from which no example can be made, or that
      the model cannot read.
  """
  return {
    label: position_sets.open_position_set(spec, config, rows)
    if spec.name in TASKS
    else text_sets.open_text_set(spec, tokenizer)
    for label, spec in named.items()
  }


def evaluate(
  sets: Sets,
  params: Any,
  step: Callable[[str | None], Callable[[Any, Any], heldout.Sums]],
  put: Callable[[Batch], Any],
  read: Callable[[str, TextSet], dict[str, Estimate]],
) -> dict[str, dict[str, Estimate]]:
  """The metrics of each task, by name.

  Args:
    sets: of `open_sets`.
    params: of the model.
    step: metric -> `hope.training.step.eval_step` of it.
    put: places a batch on the devices.
    read: (name of the results, examples of texts) -> their metrics.
  """
  return {
    label: position_sets.evaluate(examples, step(examples.metric), params, put)
    if isinstance(examples, PositionSet)
    else read(label, examples)
    for label, examples in sets.items()
  }
