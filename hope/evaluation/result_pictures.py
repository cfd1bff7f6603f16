"""Pictures of the results of an evaluation."""

from collections.abc import Iterable, Mapping, Sequence
import json
import pathlib
from typing import Any

from matplotlib import figure
import numpy as np

from hope.evaluation import pictures
from hope.evaluation.intervals import Estimate
from hope.evaluation.specs import Spec

# Parts of a text whose needles are counted together.
_PARTS = 5


def by_length(
  found: Mapping[str, Mapping[str, Estimate]], named: Mapping[str, Spec]
) -> figure.Figure | None:
  """Accuracy by the length that was asked for, a curve for each task.

  Args:
    found: metrics by name, by the name of the results.
    named: what was asked, by the same names.

  Returns:
    None where no task was asked for with its length.
  """
  accuracies: dict[str, dict[int, float]] = {}
  intervals: dict[str, dict[int, tuple[float, float]]] = {}
  for label, metrics in found.items():
    spec = named[label]
    length = spec.options.get('size', spec.options.get('seq_len'))
    if length is None:
      continue
    estimate = metrics['accuracy']
    accuracies.setdefault(spec.name, {})[length] = estimate.value
    if estimate.low is not None and estimate.high is not None:
      interval = (estimate.low, estimate.high)
      intervals.setdefault(spec.name, {})[length] = interval
  if not accuracies:
    return None
  return pictures.accuracy_by_length(accuracies, intervals)


def by_depth(
  scores: Mapping[int, Iterable[Mapping[str, Any]]],
) -> figure.Figure:
  """Accuracy by length and by the depth of what was asked for.

  Args:
    scores: of the examples, by their length. Those without a single depth do
      not count.
  """
  sizes = sorted(scores)
  shares = np.full((_PARTS, len(sizes)), np.nan)
  for column, size in enumerate(sizes):
    parts: list[list[float]] = [[] for _ in range(_PARTS)]
    for example in scores[size]:
      if len(depths := example.get('depths', ())) == 1:
        parts[min(int(depths[0] * _PARTS), _PARTS - 1)].append(
          example['accuracy']
        )
    for row, values in enumerate(parts):
      if values:
        shares[row, column] = np.mean(values)
  depths = (np.arange(_PARTS) + 0.5) / _PARTS
  return pictures.accuracy_by_depth(shares, sizes, depths.tolist())


def confusion(scores: Sequence[Mapping[str, Any]]) -> figure.Figure | None:
  """What each right answer was taken for, of tasks whose answers come again.

  Args:
    scores: of the examples.

  Returns:
    None where there are no choices, or the answers do not come twice each on
    average, as where each question has choices of its own.
  """
  pairs = [(x['answer'], x['chosen']) for x in scores if 'chosen' in x]
  answers = {answer for answer, _ in pairs}
  names = sorted(answers | {chosen for _, chosen in pairs})
  if not pairs or 2 * len(answers) > len(pairs):
    return None
  places = {name: i for i, name in enumerate(names)}
  counts = np.zeros((len(names), len(names)), np.int64)
  for answer, chosen in pairs:
    counts[places[answer], places[chosen]] += 1
  return pictures.confusion_matrix(counts, [x.strip() for x in names])


def read_scores(path: pathlib.Path) -> list[dict[str, Any]]:
  """The scores of examples in a file of `hope.evaluation.score_file`."""
  return [json.loads(line) for line in path.read_text().splitlines()[1:]]
