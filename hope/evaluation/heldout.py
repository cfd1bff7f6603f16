"""A model's loss on held-out batches, and how it compares with baselines."""

from collections.abc import Callable, Iterable
import math
from typing import Any

import jax


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
  step: Callable[[Any, Any], dict[str, jax.Array]],
  params: Any,
  batches: Iterable[Any],
  bytes_per_token: float | None,
) -> dict[str, float]:
  """Means over the targets of all batches.

  Args:
    step: of `hope.training.step.eval_step`.
    params: of the model.
    batches: held-out ones.
    bytes_per_token: as `bits_per_byte` takes it.

  Returns:
    loss (nats per token), accuracy (share of tokens), and bits_per_byte where
    tokens stand for bytes.
  """
  sums = [jax.device_get(step(params, batch)) for batch in batches]
  weight = float(sum(s['weight'] for s in sums))
  values = {
    name: float(sum(s[name] for s in sums)) / weight
    for name in ('loss', 'accuracy')
  }
  return values | bits_per_byte(values['loss'], bytes_per_token)


def comparison(result: dict[str, float], baselines: dict[str, float]) -> str:
  """Lines that say a result and whether it beats the baselines.

  Args:
    result: of `evaluate`.
    baselines: bits per byte by name; empty for synthetic tasks.
  """
  if 'bits_per_byte' not in result:
    return f'  accuracy {result["accuracy"]:.4f}  loss {result["loss"]:.4f}'
  ours = result['bits_per_byte']
  lines = [f'  {"this model":16s} {ours:.4f} bits per byte']
  for name, value in baselines.items():
    verdict = 'beats' if ours < value else 'loses to'
    lines.append(f'  {name:16s} {value:.4f}  The model {verdict} it.')
  return '\n'.join(lines)
