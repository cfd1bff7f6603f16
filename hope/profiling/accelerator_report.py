"""The results of `hope.accelerator` as tables."""

from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table


def _table(title: str, *columns: str) -> rich.table.Table:
  """A table whose first column is of names and the others of numbers."""
  table = rich.table.Table(
    title=title, title_justify='left', box=rich.box.SIMPLE_HEAD
  )
  for j, column in enumerate(columns):
    table.add_column(column, justify='right' if j else 'left', overflow='fold')
  return table


def _share(result: dict[str, Any], name: str) -> str:
  return f'{result[name]:.1%}' if name in result else '?'


def _gib(size: float | None) -> str:
  return '?' if size is None else f'{size / 2**30:,.2f} GiB'


def _machine(content: dict[str, Any], machine: dict[str, Any]):
  table = _table('Machine', 'what', '')
  rows = {
    'date': content['date'],
    'device': f'{machine["device"]} ({machine["platform"]})',
    'devices used': f'{machine["devices_used"]} of {machine["devices"]}',
    'memory for jax': _gib(machine['memory_limit_bytes']),
    'runtime': machine['runtime'],
    'driver': machine['driver'] or '?',
    'system': f'{machine["os"]}, Python {machine["python"]}',
    'packages': ', '.join(f'{k} {v}' for k, v in machine['versions'].items()),
    'variables': ', '.join(f'{k}={v}' for k, v in machine['variables'].items())
    or 'none set: the defaults of jax and XLA',
    'float32 matmuls': 'jax_default_matmul_precision='
    f'{machine["jax_default_matmul_precision"]}',
  }
  for name, value in rows.items():
    table.add_row(name, value)
  return table


def _peaks(results: Sequence[dict[str, Any]]):
  table = _table('Peaks', 'of', 'measured')
  for result in results:
    default = result['default_float32_matmuls_are']
    for name, kind in (
      ('bfloat16', 'bfloat16'),
      ('float32_default', f'float32, default precision ({default})'),
      ('float32_highest', 'float32, highest precision'),
    ):
      rate = result[f'matmul_{name}_flops_per_second'] / 1e12
      table.add_row(f'matmul, {kind}', f'{rate:,.2f} TFLOP/s')
    rate = result['memory_bytes_per_second'] / 1e9
    table.add_row('memory, b = b + 3 c', f'{rate:,.1f} GB/s')
  return table


def _equality(results: Sequence[dict[str, Any]]):
  table = _table(
    'Equality with float64',
    *('case', 'arithmetic', 'output', 'bound', 'gradient', 'bound', 'equal'),
  )
  for x in results:
    numbers = (
      *(x['output_error'], x['output_bound']),
      *(x['gradient_error'], x['gradient_bound']),
    )
    table.add_row(
      x['case'],
      x['arithmetic'],
      *(f'{number:.1e}' for number in numbers),
      'yes' if x['equal'] else 'NO',
    )
  return table


def _training(outcomes: Sequence[dict[str, Any]]):
  lengths = sorted({x['result']['seq_len'] for x in outcomes})
  table = _table(
    'Training steps (forward, backward, AdamW), sequences of '
    f'{", ".join(map(str, lengths))} tokens.\n'
    'Shares are of the bfloat16 matmul peak and of the memory bandwidth.',
    *('model', 'batch', 'tokens/s', 'ms', 'matmul', 'memory', 'GiB'),
    'compile',
  )
  for outcome in outcomes:
    x = outcome['result']
    size = x['program_bytes']
    table.add_row(
      outcome['name'],
      f'{x["batch_size"]}',
      f'{x["tokens_per_second"]:,.0f}',
      f'{x["step_seconds"] * 1e3:,.1f}',
      _share(x, 'share_of_matmul_peak'),
      _share(x, 'share_of_bandwidth'),
      '?' if size is None else f'{size / 2**30:,.2f}',
      f'{x["compile_seconds"]:.1f} s' if x['compiled'] == 'now' else 'before',
    )
  return table


def _decoding(outcomes: Sequence[dict[str, Any]]):
  table = _table(
    'Decoding: ms per token of all streams, and share of the memory '
    'bandwidth,\nafter a short and a long context.',
    *('model', 'short', 'ms', 'memory', 'long', 'ms', 'memory'),
  )
  for outcome in outcomes:
    x = outcome['result']
    cells = []
    for length in ('short', 'long'):
      cells += [
        f'{x[f"context_{length}"]:,}',
        f'{x[f"seconds_per_token_{length}"] * 1e3:.3f}',
        _share(x, f'share_of_bandwidth_{length}'),
      ]
    table.add_row(outcome['name'], *cells)
  return table


def show(content: dict[str, Any], console: rich.console.Console) -> None:
  """Prints the results, and what was skipped or failed with the reason.

  Args:
    content: of OUTPUT/accelerator.json.
    console: to print on.
  """
  by_kind: dict[str, list[dict[str, Any]]] = {}
  for outcome in content['parts']:
    if outcome['status'] == 'done':
      by_kind.setdefault(outcome['kind'], []).append(outcome)

  def only(kind):
    return [x['result'] for x in by_kind.get(kind, [])]

  tables = [_machine(content, x) for x in only('machine')]
  if 'peaks' in by_kind:
    tables.append(_peaks(only('peaks')))
  if 'equality' in by_kind:
    tables.append(_equality(only('equality')))
  if 'training' in by_kind:
    tables.append(_training(by_kind['training']))
  if 'decoding' in by_kind:
    tables.append(_decoding(by_kind['decoding']))
  for table in tables:
    console.print(table, markup=False)
  for outcome in by_kind.get('training', []):
    if too_large := outcome['result']['too_large_batch_sizes']:
      sizes = ', '.join(map(str, too_large))
      line = f'{outcome["name"]}: a batch of {sizes} did not fit'
      console.print(line, markup=False)
  for outcome in content['parts']:
    if outcome['status'] != 'done':
      line = f'{outcome["status"]}: {outcome["name"]}: {outcome["reason"]}'
      console.print(line, markup=False)
