"""A model's loss on held-out batches, and how it compares with baselines."""

from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from hope.tasks import mean_over_classes


class Sums(NamedTuple):
  """What one batch adds up to.

  Attributes:
    loss: [], of the targets, by weight, in nats.
    accuracy: [], the weight of the targets that were predicted.
    weight: [], of all targets.
    exact_match: [], rows of which every target that counts was predicted.
    rows: [], with a target that counts.
    of_classes: [3, v], counts of `hope.tasks.mean_over_classes`; None where
      the task is scored by something else.
    inner_losses: [t] by name, as 'memory/inner_loss/layer_0': of the tokens at
      each position of their document.
    tokens: [t], how many those are.
  """

  loss: jax.Array
  accuracy: jax.Array
  weight: jax.Array
  exact_match: jax.Array
  rows: jax.Array
  of_classes: jax.Array | None
  inner_losses: dict[str, jax.Array]
  tokens: jax.Array


class InnerLosses(NamedTuple):
  """How well memories know what they learn, by position in the document.

  Choice: means over tokens, all of which a memory learns, not over targets.

  Attributes:
    by_position: float64 [t] by name, as 'memory/inner_loss/layer_0'; NaN where
      no document is that long.
    tokens: float64 [t], over which the means are.
  """

  by_position: dict[str, np.ndarray]
  tokens: np.ndarray

  def to_dict(self) -> dict[str, Any]:
    """For a file: lists of six digits, None for NaN."""

    def plain(values: np.ndarray) -> list[float | None]:
      return [float(f'{x:.6g}') if np.isfinite(x) else None for x in values]

    return {
      'tokens': plain(self.tokens),
      'by_position': {k: plain(x) for k, x in self.by_position.items()},
    }

  def means(self) -> dict[str, float]:
    """Over all tokens, by name."""
    seen = self.tokens > 0
    return {
      name: float(np.average(values[seen], weights=self.tokens[seen]))
      for name, values in self.by_position.items()
    }


def bits_per_byte(
  loss: float, bytes_per_token: float | None
) -> dict[str, float]:
  """{'bits_per_byte': ...} of a loss; empty where tokens stand for no bytes.

  Args:
    loss: nats per token.
    bytes_per_token: None: tokens of a synthetic task.
  """
  if bytes_per_token is None:
    return {}
  return {'bits_per_byte': loss / math.log(2) / bytes_per_token}


def evaluate(
  step: Callable[[Any, Any], Sums],
  params: Any,
  batches: Iterable[Any],
  bytes_per_token: float | None,
  longer: Mapping[str, Iterable[Any]] | None = None,
  metric: str | None = None,
) -> tuple[dict[str, float], InnerLosses]:
  """Means over the targets of all batches, and of the inner losses.

  Args:
    step: of `hope.training.step.eval_step`, of the same metric.
    params: of the model.
    batches: held-out ones.
    bytes_per_token: as `bits_per_byte` takes it.
    longer: batches of bins of longer strings, by their names, as '51-100'.
      None: no bins.
    metric: of the task, in `hope.tasks.METRICS`. None: of texts.

  Returns:
    (values, inner losses); values: loss (nats per token), accuracy (share of
    tokens), and bits_per_byte where tokens stand for bytes, else exact_match
    (share of rows whose every target was predicted), and class_accuracy of
    tasks that are scored by it; of bins of longer strings
    the same by names as 'exact_match/51-100'. Inner losses are of `batches`.
  """
  sums = sums_of(step, params, batches)
  values = means(sums, bytes_per_token, metric)
  for name, more in (longer or {}).items():
    found = means(sums_of(step, params, more), None, metric)
    values |= {f'{metric}/{name}': value for metric, value in found.items()}

  def total(arrays: list[jax.Array]) -> np.ndarray:
    return np.stack(arrays).astype(np.float64).sum(axis=0)

  tokens = total([s.tokens for s in sums])
  with np.errstate(invalid='ignore'):
    by_position = {
      name: total([s.inner_losses[name] for s in sums]) / tokens
      for name in sums[0].inner_losses
    }
  inner = InnerLosses(by_position, tokens)
  return values, inner


def sums_of(
  step: Callable[[Any, Any], Sums], params: Any, batches: Iterable[Any]
) -> list[Sums]:
  """What each batch adds up to, on the host; arguments as in `evaluate`."""
  return [jax.device_get(step(params, batch)) for batch in batches]


def means(
  sums: list[Sums], bytes_per_token: float | None, metric: str | None
) -> dict[str, float]:
  """Metrics of all batches; arguments and names as in `evaluate`."""

  def total(name: str) -> float:
    return float(sum(getattr(s, name) for s in sums))

  weight = total('weight')
  values = {name: total(name) / weight for name in ('loss', 'accuracy')}
  if bytes_per_token is None:
    values['exact_match'] = total('exact_match') / total('rows')
  if metric == 'class_accuracy':
    counts = np.sum([np.asarray(s.of_classes, np.float64) for s in sums], 0)
    values[metric] = mean_over_classes(counts)
  return values | bits_per_byte(values['loss'], bytes_per_token)


def comparison(result: dict[str, float], baselines: dict[str, float]) -> str:
  """Lines that say a result and whether it beats the baselines.

  Args:
    result: of `evaluate`.
    baselines: bits per byte by name; empty for synthetic tasks.
  """
  if 'bits_per_byte' not in result:
    return _of_task(result)
  ours = result['bits_per_byte']
  lines = [f'  {"this model":16s} {ours:.4f} bits per byte']
  for name, value in baselines.items():
    verdict = 'beats' if ours < value else 'loses to'
    lines.append(f'  {name:16s} {value:.4f}  The model {verdict} it.')
  return '\n'.join(lines)


def _of_task(result: dict[str, float]) -> str:
  """A line for the lengths of training, and for each bin of longer ones."""
  bins = dict.fromkeys(name.partition('/')[2] for name in result)
  lines = []
  for name in bins:
    suffix = f'/{name}' if name else ''
    line = '  '.join(
      f'{metric.replace("_", " ")} {result[metric + suffix]:.4f}'
      for metric in ('accuracy', 'class_accuracy', 'exact_match', 'loss')
      if metric + suffix in result
    )
    lines.append(f'  {f"lengths {name}: " if name else ""}{line}')
  return '\n'.join(lines)
