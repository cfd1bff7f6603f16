"""Examples of a generated task, answered at their positions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from hope.data import generated
from hope.data.pipeline import Batch, heldout_batches
from hope.data.tokenization import NumberTokenizer
from hope.evaluation import heldout
from hope.evaluation.intervals import Estimate, of_share
from hope.evaluation.specs import POSITION_FIELDS, Spec
from hope.fields import shown
from hope.tasks import TASKS


class PositionSet(NamedTuple):
  """Examples of a task.

  Attributes:
    batches: of the rows that this process reads; beyond the examples, weights
      are 0.
    metric: by which the task is scored.
  """

  batches: list[Batch]
  metric: str | None


def open_position_set(
  spec: Spec,
  config: ml_collections.FrozenConfigDict,
  rows: Sequence[int] | None = None,
) -> PositionSet:
  """Draws the held-out examples of a task of TASKS.

  Options that are not given are those of the run, and `seq_len`, where the run
  was of another task, the least that holds an example.

  Args:
    spec: the task and its options.
    config: of the model, resolved.
    rows: of each batch that this process reads. None: all.

  Raises:
    ValueError: for options from which no example can be drawn, or that the
      model cannot read; said of the spec.
  """
  try:
    changed, number = _config(spec, config)
    size = changed.data.batch_size
    tokenizer = NumberTokenizer(changed.data.task.vocab_size)
    found = heldout_batches(changed, tokenizer, -(-number // size), rows=rows)
  except ValueError as error:
    raise ValueError(f'task {shown(spec.text)}: {error}') from None
  place = np.arange(size) if rows is None else np.asarray(rows)
  for i, batch in enumerate(found.batches):
    beyond = i * size + place >= number
    batch['weights'] = np.where(beyond[:, None], 0, batch['weights']).astype(
      batch['weights'].dtype
    )
  return PositionSet(found.batches, generated.metric(changed))


def _config(
  spec: Spec, config: ml_collections.FrozenConfigDict
) -> tuple[ml_collections.ConfigDict, int]:
  """(the run's configuration with the task's data, number of examples)."""
  decodes = spec.name == 'compression'
  if config.model.decoder != decodes:
    raise ValueError(
      'compression is the task of models with model.decoder=True, and no other '
      f'task is; this model has model.decoder={config.model.decoder}.'
    )
  changed = ml_collections.ConfigDict(config.to_dict())
  source = f'synthetic:{spec.name}'
  options = dict(spec.options)
  number = options.pop('examples', POSITION_FIELDS['examples'].default)
  seq_len = options.pop('seq_len', None)
  changed.data.task.update(options)
  if changed.data.task.vocab_size > config.model.vocab_size:
    raise ValueError(
      f'vocab_size={changed.data.task.vocab_size} is above the '
      f'{config.model.vocab_size} tokens of the model; give at most those.'
    )
  if seq_len is None:
    seq_len = TASKS[spec.name].least(changed.data.task).seq_len
    if changed.data.source == source:
      seq_len = max(seq_len, changed.data.seq_len)
  changed.data.source, changed.data.seq_len = source, seq_len
  return changed, number


def evaluate(
  positions: PositionSet,
  step: Callable[[Any, Any], heldout.Sums],
  params: Any,
  put: Callable[[Batch], Any],
) -> dict[str, Estimate]:
  """The metrics of a task, by name, as `heldout.evaluate` has them.

  `Choice:` intervals are of shares, in as many trials as there are sequences:
  answers of one sequence may depend on each other.

  Args:
    positions: the examples.
    step: of `hope.training.step.eval_step`, of the set's metric.
    params: of the model.
    put: places a batch on the devices.
  """
  batches = [put(batch) for batch in positions.batches]
  sums = heldout.sums_of(step, params, batches)
  values = heldout.means(sums, None, positions.metric)
  rows = int(sum(s.rows for s in sums))
  return with_intervals(values, rows)


def with_intervals(
  values: Mapping[str, float], rows: int
) -> dict[str, Estimate]:
  """Values of `heldout.evaluate` with their intervals; see `evaluate`."""
  shares = ('accuracy', 'exact_match')
  return {
    name: of_share(value, rows) if name in shares else Estimate(value)
    for name, value in values.items()
  }
