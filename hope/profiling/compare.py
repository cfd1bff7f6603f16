"""Mixers at one size, side by side; see `hope.compare`."""

from collections.abc import Callable, Sequence
import json
import pathlib
import statistics
from typing import Any

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
import ml_collections
import rich.box
import rich.console
import rich.table

from hope import command_line
from hope.config import resolve
from hope.matching import count_parameters, match_parameters
from hope.model import Hope
from hope.parallel import devices
from hope.parallel import mesh as mesh_lib
from hope.profiling import growth, throughput
from hope.profiling.flops import flops_per_token

# Tokens of the byte tokenizer, where the configuration says no other.
_VOCAB_SIZE = 257
# Contexts after which decoding is timed.
_CONTEXTS = (64, 512)
PATTERNS = (
  'titans+cms',
  'titans(self_modifying=False)+cms',
  'titans(lmm)+cms',
  'mac+swiglu',
  'mag+swiglu',
  'mal+swiglu',
  'titans(dla)+cms',
  'ttt+swiglu',
  "ttt(model='mlp')+swiglu",
  "delta(rule='linear_attention')+swiglu",
  "delta(rule='retnet')+swiglu",
  "delta(rule='deltanet')+swiglu",
  "delta(rule='gated_deltanet')+swiglu",
  "delta(rule='comba')+swiglu",
  'rwkv7+swiglu',
  'mamba+swiglu',
  'mamba+swiglu, attention(max_context=128)+swiglu',
  'srwm+swiglu',
  'lstm+swiglu',
  'attention+swiglu',
  'attention+cms',
)


def matched(
  config: ml_collections.ConfigDict, patterns: Sequence[str]
) -> dict[str, ml_collections.FrozenConfigDict]:
  """Resolved configurations of patterns, all as large as the first.

  Raises:
    ValueError: for a pattern that does not exist or cannot be as large.
  """
  vocab_size = config.model.vocab_size or _VOCAB_SIZE
  found, like = {}, None
  for pattern in patterns:
    this = ml_collections.ConfigDict(config.to_dict())
    this.model.pattern = pattern
    if like is None:
      like = count_parameters(this, vocab_size)
    else:
      this = match_parameters(this, like, vocab_size)
    found[pattern] = resolve(this, vocab_size)
  return found


def sizes(config: ml_collections.FrozenConfigDict) -> dict[str, int]:
  """What a model weighs; nothing is computed.

  Args:
    config: resolved.

  Returns:
    parameters; flops_per_token, of training; state_bytes, of a sequence;
    decode_bytes, that decoding a token of one sequence moves at least: the
    parameters once, in `model.dtype`, and the state read and written.
  """
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  params = nnx.state(model, nnx.Param)
  count = sum(x.size for x in jax.tree.leaves(params))
  state = jax.eval_shape(lambda: model.init_state(1))
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  width = jnp.dtype(config.model.dtype).itemsize
  return {
    'parameters': count,
    'flops_per_token': flops_per_token(config, config.data.seq_len),
    'state_bytes': held,
    'decode_bytes': width * count + 2 * held,
  }


def measure(
  configs: dict[str, ml_collections.FrozenConfigDict], rounds: int
) -> dict[str, dict[str, Any]]:
  """Times training steps of all in turn, then decoding.

  Args:
    configs: by name, resolved.
    rounds: steps of each that are timed, after two that are not.

  Returns:
    What is measured of each, by name with its unit; see the keys.

  Raises:
    ExplainedError: if a step was not finite.
  """
  runs, found, times = {}, {}, {name: [] for name in configs}
  for name, config in configs.items():
    print(f'compiling {name}', flush=True)
    runs[name] = throughput.Steps(config, mesh_lib.one_device())
  peaks = []
  for turn in range(2 + rounds):
    peaks.append(throughput.matmul_peak())
    for name, run in runs.items():
      seconds = run.step()
      if turn >= 2:
        times[name].append(seconds)
  for name, run in runs.items():
    run.check()
    config, seconds = configs[name], statistics.median(times[name])
    found[name] = sizes(config) | {
      'tokens_per_second': run.tokens / seconds,
      'program_bytes': run.memory(),
      'compile_seconds': run.compile_seconds,
    }
    flops = found[name]['flops_per_token'] * run.tokens / seconds
    found[name]['share_of_matmul_peak'] = flops / max(peaks)
  runs.clear()
  for name, config in configs.items():
    print(f'decoding with {name}', flush=True)
    decoded = throughput.measure_decode(config, rounds, _CONTEXTS)
    found[name]['seconds_per_token'] = decoded['seconds_per_token_short']
  return found


# Column, key, and how a value is written.
_COLUMNS = (
  ('parameters', 'parameters', '{:,.0f}', 1),
  ('MFLOP/token', 'flops_per_token', '{:,.1f}', 1e6),
  ('state/sequence, KiB', 'state_bytes', '{:,.0f}', 2**10),
  ('decoding moves, MiB', 'decode_bytes', '{:,.1f}', 2**20),
  ('tokens/s', 'tokens_per_second', '{:,.0f}', 1),
  ('of the matmul peak', 'share_of_matmul_peak', '{:.1%}', 1),
  ('memory, MiB', 'program_bytes', '{:,.0f}', 2**20),
  ('decoding, ms/token', 'seconds_per_token', '{:.2f}', 1e-3),
  ('compilation, s', 'compile_seconds', '{:.1f}', 1),
)


def show(found: dict[str, dict[str, Any]], console: rich.console.Console):
  """Prints a row for each model."""
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  table.add_column('model', no_wrap=True)
  columns = [x for x in _COLUMNS if x[1] in next(iter(found.values()))]
  for name, *_ in columns:
    table.add_column(name, justify='right')
  for pattern, values in found.items():
    row = [
      '-' if values[key] is None else form.format(values[key] / unit)
      for _, key, form, unit in columns
    ]
    table.add_row(pattern, *row)
  console.print(table, markup=False)


def draw(found: dict[str, dict[str, Any]], file: pathlib.Path) -> None:
  """Draws bars: speed, memory, decoding, compilation."""
  keys = (
    'tokens_per_second',
    'program_bytes',
    'seconds_per_token',
    'compile_seconds',
  )
  columns = {key: (name, unit) for name, key, _, unit in _COLUMNS}
  names = list(found)
  figure, axes = plt.subplots(
    1,
    len(keys),
    figsize=(13, 1.2 + 0.32 * len(names)),
    sharey=True,
    layout='constrained',
  )
  for axis, key in zip(axes, keys, strict=True):
    label, unit = columns[key]
    values = [(found[name][key] or 0) / unit for name in names]
    bars = axis.barh(range(len(names)), values, color='#4878a8')
    axis.bar_label(
      bars, fmt='{:,.3g}' if unit == 1e-3 else '{:,.0f}', padding=2
    )
    axis.set(title=label, yticks=range(len(names)), yticklabels=names)
    axis.margins(x=0.25)
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].invert_yaxis()
  figure.savefig(file, dpi=100)
  plt.close(figure)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  command_line.define_config(values)
  flags.DEFINE_multi_string(
    'pattern',
    list(PATTERNS),
    'A model.pattern; may be given several times.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'rounds',
    5,
    'Training steps of each model that are timed.',
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_string(
    'json', None, 'File to write the results to as well.', flag_values=values
  )
  flags.DEFINE_bool(
    'sizes', False, 'Count and time nothing.', flag_values=values
  )
  flags.DEFINE_multi_integer(
    'length',
    None,
    'Time training steps with rows of this many tokens; given at least twice, '
    'for how the cost of a token grows.',
    lower_bound=1,
    flag_values=values,
  )
  flags.register_multi_flags_validator(
    ['length', 'sizes'],
    lambda x: (
      x['length'] is None or (len(set(x['length'])) > 1 and not x['sizes'])
    ),
    '--length is given at least twice, with other numbers, or not at all; and '
    'not with --sizes.',
    flag_values=values,
  )


def main(values: flags.FlagValues) -> None:
  """Compares what the flags say, keeps it and prints it."""
  command_line.check_output(values.json)
  devices.use_all_cores()
  console = rich.console.Console(width=180, highlight=False)
  if values.length:
    grown = growth.measure(_at_lengths(values), values.rounds)
    _keep(values.json, grown, growth.draw)
    growth.show(grown, console)
    return
  configs = matched(values.config, values.pattern)
  if values.sizes:
    found = {name: sizes(config) for name, config in configs.items()}
  else:
    found = measure(configs, values.rounds)
  _keep(values.json, found, None if values.sizes else draw)
  show(found, console)


def _at_lengths(
  values: flags.FlagValues,
) -> dict[int, dict[str, ml_collections.FrozenConfigDict]]:
  """What `matched` gives for rows of each length, the shortest first."""
  found = {}
  for seq_len in sorted(set(values.length)):
    config = ml_collections.ConfigDict(values.config.to_dict())
    config.data.seq_len = seq_len
    found[seq_len] = matched(config, values.pattern)
  return found


def _keep(
  file: str | None,
  found: dict[str, Any],
  picture: Callable[[dict[str, Any], pathlib.Path], None] | None,
) -> None:
  """Writes results into the file, if there is one, and the picture beside."""
  if file is None:
    return
  path = pathlib.Path(file)
  path.write_text(json.dumps(found, indent=1) + '\n')
  if picture:
    picture(found, path.with_suffix('.png'))
