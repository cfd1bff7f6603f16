"""How fast a configuration trains and decodes; see `hope.throughput`."""

from collections.abc import Callable
import functools
import json
import pathlib
import resource
import statistics
import sys
import time
from typing import Any

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np
import rich.box
import rich.console
import rich.table

from hope import blocks, command_line, compilation_cache, errors
from hope.config import resolve
from hope.parallel import devices
from hope.parallel import mesh as mesh_lib
from hope.profiling.flops import flops_per_token
from hope.profiling.hlo import Program, program_bytes
from hope.training import step as step_lib

# Tokens of the byte tokenizer.
_VOCAB_SIZE = 257
_WARMUP = 2
# Side of the square matrices, and products before and after the steps.
_PEAK_SIZE, _PEAK_REPEATS = 2048, 5
# Tokens of context that decoding is timed after.
_CONTEXTS = (64, 16_384)
# Tokens decoded per timing.
_DECODED = 16


def _seconds(fn: Callable[[], Any]) -> float:
  """Wall-clock seconds of a call, until its result is there."""
  begin = time.perf_counter()
  jax.block_until_ready(fn())
  return time.perf_counter() - begin


def _check_steps(steps: int) -> None:
  if steps < 1:
    raise ValueError(f'steps={steps} must be at least 1.')


def matmul_peak(
  size: int = _PEAK_SIZE,
  repeats: int = _PEAK_REPEATS,
  dtype: str = 'float32',
  precision: str | None = None,
) -> float:
  """Best rate of a product of two square matrices, in FLOP/s.

  Args:
    size: of a side.
    repeats: products that are timed, after one that is not.
    dtype: of the matrices.
    precision: as for `jnp.matmul`; None: jax's default, which is the model's
      as well.
  """
  a = jax.random.normal(jax.random.key(0), (size, size), dtype)
  product = jax.jit(functools.partial(jnp.matmul, precision=precision))
  jax.block_until_ready(product(a, a))
  best = min(_seconds(lambda: product(a, a)) for _ in range(repeats))
  return 2 * size**3 / best


def memory_bandwidth(size: int, repeats: int = _PEAK_REPEATS) -> float:
  """Best rate of the triad b = b + 3 c, in bytes per second.

  Args:
    size: bytes of each of the two arrays; far above the caches' size.
    repeats: triads that are timed, after one that is not.
  """
  b, c = jnp.ones((2, size // 4), jnp.float32)
  triad = jax.jit(lambda b, c: b + 3 * c, donate_argnums=0)
  times = []
  for _ in range(1 + repeats):
    begin = time.perf_counter()
    b = jax.block_until_ready(triad(b, c))
    times.append(time.perf_counter() - begin)
  return 3 * b.nbytes / min(times[1:])


def peak_memory() -> tuple[int, str]:
  """Most bytes in use so far, and of what: 'device' or 'process'.

  That of the process has the interpreter's and the compiler's in it.
  """
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    return stats['peak_bytes_in_use'], 'device'
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'process'


def _traffic(compiled: Any) -> int | None:
  """Bytes of main memory that a run moves, as the program's text says.

  None: the compiler wrote something that `hope.profiling.hlo` cannot read.
  """
  try:
    return Program(compiled.as_text() or '').main_memory_bytes()
  except (ValueError, KeyError, IndexError):
    return None


def _machine() -> dict[str, Any]:
  device = jax.local_devices()[0]
  return {
    'platform': device.platform,
    'device': device.device_kind,
    'devices': jax.local_device_count(),
    'cpus': devices.num_cores(),
    'jax': jax.__version__,
  }


def _sizes(config: ml_collections.FrozenConfigDict) -> dict[str, Any]:
  model, data = config.model, config.data
  return {
    'pattern': model.pattern,
    'dtype': model.dtype,
    'num_layers': model.num_layers,
    'width': model.width,
    'seq_len': data.seq_len,
    'batch_size': data.batch_size,
  }


class Steps:
  """Training steps of a configuration on random tokens.

  Attributes:
    compile_seconds: of the step.
    compiled: the step.
    loaded: whether it was compiled by an earlier start.
    state: after the steps so far.
    loss: of the last step.
  """

  def __init__(
    self,
    config: ml_collections.FrozenConfigDict,
    mesh: Mesh,
    note: Callable[[str], None] = lambda stage: None,
  ):
    """Draws parameters and compiles.

    Args:
      config: a resolved configuration.
      mesh: that the steps run on.
      note: is told of each stage when it begins.
    """
    shape = (config.data.batch_size, config.data.seq_len)
    self.tokens, self.loss = shape[0] * shape[1], float('nan')
    tokens = np.random.default_rng(config.seed).integers(
      config.model.vocab_size, size=(shape[0], shape[1] + 1), dtype=np.int32
    )
    batch = {
      'inputs': tokens[:, :-1],
      'targets': tokens[:, 1:],
      'weights': np.ones(shape, np.float32),
    }
    if config.data.segments:
      batch['starts'] = np.arange(shape[1]) == np.zeros((shape[0], 1))
    self._batch = mesh_lib.put_batch(batch, mesh)
    note('initial parameters')
    graph, abstract = step_lib.abstract_state(config, mesh)
    self.state = step_lib.init_state(config, abstract)
    note('compilation')
    begin = time.perf_counter()
    update = step_lib.train_step(graph, config, abstract)
    lowered = update.lower(self.state, self._batch)
    loaded = compilation_cache.loaded()
    self.compiled = lowered.compile()
    self.compile_seconds = time.perf_counter() - begin
    self.loaded = compilation_cache.loaded() > loaded

  @property
  def parameters(self) -> int:
    """Of the model."""
    return sum(x.size for x in jax.tree.leaves(self.state.params))

  def step(self) -> float:
    """Seconds of a whole step: forward, backward and optimizer."""
    begin = time.perf_counter()
    self.state, metrics = self.compiled(self.state, self._batch)
    jax.block_until_ready((self.state, metrics))
    seconds = time.perf_counter() - begin
    self.loss = float(metrics['loss'])
    return seconds

  def check(self) -> None:
    """Raises ExplainedError if a step was not finite and so did not update."""
    if not self.state.healthy:
      raise errors.ExplainedError(
        'A training step was not finite, so steps after it updated nothing; '
        'lower optimizer.learning_rate.'
      )

  def memory(self) -> int | None:
    """Bytes of the program; None: it is not known.

    Not every runtime knows it, nor of a program that was kept.
    """
    if not self.compiled.memory_analysis():
      return None
    return program_bytes(self.compiled)


def time_steps(
  config: ml_collections.FrozenConfigDict,
  steps: int,
  mesh: Mesh,
  note: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
  """Times whole training steps: forward, backward and optimizer.

  Args:
    config: a resolved configuration.
    steps: that are timed, after two that are not.
    mesh: that they run on.
    note: is told of each stage when it begins.

  Returns:
    What is measured, by name with its unit; see the keys.

  Raises:
    ValueError: if steps is below 1.
    ExplainedError: if a step was not finite and so did not update.
  """
  _check_steps(steps)
  of = Steps(config, mesh, note)
  note('steps')
  times = [of.step() for _ in range(_WARMUP + steps)]
  of.check()
  memory, memory_of = peak_memory()
  seconds = statistics.median(times[_WARMUP:])
  rate = of.tokens / seconds
  flops = flops_per_token(config, config.data.seq_len)
  return {
    'tokens_per_second': rate,
    'step_seconds': seconds,
    'steps': steps,
    'flops_per_token': flops,
    'model_flops_per_second': rate * flops,
    'program_bytes': of.memory(),
    'main_memory_traffic_bytes': _traffic(of.compiled),
    'peak_memory_bytes': memory,
    'peak_memory_of': memory_of,
    'compile_seconds': of.compile_seconds,
    'compiled': 'by an earlier start' if of.loaded else 'now',
    'loss': of.loss,
    'parameters': of.parameters,
    **_sizes(config),
  }


def measure(
  config: ml_collections.FrozenConfigDict, steps: int
) -> dict[str, Any]:
  """`time_steps`, beside the peak of matmuls before and after them.

  Args and Raises: as `time_steps`; the mesh is that of the configuration.

  Returns:
    What is measured, by name with its unit; see the keys.
  """
  _check_steps(steps)
  peaks = [matmul_peak()]
  mesh = mesh_lib.make_mesh(config)
  # The cores of a CPU work on one product together.
  units = 1 if mesh.devices.flat[0].platform == 'cpu' else mesh.size
  result = time_steps(config, steps, mesh)
  peaks.append(matmul_peak())
  share = result['model_flops_per_second'] / (max(peaks) * units)
  return {
    **result,
    'matmul_flops_per_second': max(peaks),
    'matmul_flops_per_second_before': peaks[0],
    'matmul_flops_per_second_after': peaks[1],
    'share_of_matmul_peak': share,
    **_machine(),
  }


def measure_decode(
  config: ml_collections.FrozenConfigDict,
  steps: int,
  contexts: tuple[int, int] = _CONTEXTS,
  batch_size: int = 1,
  note: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
  """Times greedy decoding of some streams after a short and a long context.

  Timings of the two contexts take turns, so that a busy machine slows both
  alike. Attention always keeps and reads max_context keys, so its ratio says
  nothing about a longer cache.

  Args:
    config: a resolved configuration.
    steps: timings of each context, of 16 tokens each.
    contexts: tokens read before decoding, short and long, in pieces of
      data.seq_len tokens.
    batch_size: streams; each gets a token in `seconds_per_token`.
    note: is told of each stage when it begins.

  Returns:
    What is measured, by name with its unit; see the keys.

  Raises:
    ValueError: if steps is below 1.
  """
  _check_steps(steps)
  note('initial parameters')
  graph, params = jax.jit(lambda: step_lib.build_model(config))()

  def read(params, state, tokens):
    logits, state = nnx.merge(graph, params)(tokens, state)
    return jnp.argmax(logits[:, -1:], axis=-1).astype(jnp.int32), state

  @jax.jit
  def initial(params):
    return nnx.merge(graph, params).init_state(batch_size)

  advance = jax.jit(read, donate_argnums=1)
  piece, rng = config.data.seq_len, np.random.default_rng(config.seed)

  def prefill(length):
    tokens = rng.integers(
      config.model.vocab_size, size=(batch_size, length), dtype=np.int32
    )
    note(f'reading {length:,} tokens')
    state = initial(params)
    token = jnp.asarray(tokens[:, :1])
    for start in range(0, length, piece):
      token, state = advance(params, state, tokens[:, start : start + piece])
    return token, state

  def decode(stream):
    token, state = stream
    for _ in range(_DECODED):
      token, state = advance(params, state, token)
    return jax.block_until_ready((token, state))

  streams = [prefill(length) for length in contexts]
  note('decoding')
  times = [[], []]
  for repeat in range(1 + steps):
    for j in range(2):
      begin = time.perf_counter()
      streams[j] = decode(streams[j])
      if repeat:
        times[j].append((time.perf_counter() - begin) / _DECODED)
  short, long = map(statistics.median, times)
  return {
    'seconds_per_token_short': short,
    'seconds_per_token_long': long,
    'context_short': contexts[0],
    'context_long': contexts[1],
    'ratio': long / short,
    'steps': steps,
    'parameter_bytes': sum(x.nbytes for x in jax.tree.leaves(params)),
    'state_bytes': sum(x.nbytes for x in jax.tree.leaves(streams[0][1])),
    **_sizes(config),
    'batch_size': batch_size,
    **_machine(),
  }


def _format(name: str, value: Any) -> str:
  """A value for people, with the unit that its name ends in."""
  if not isinstance(value, int | float):
    return str(value)
  if 'flops_per_second' in name:
    return f'{value / 1e9:,.1f} GFLOP/s'
  if name.startswith('share'):
    return f'{value:.1%}'
  if name.endswith('bytes'):
    return f'{value / 2**20:,.0f} MiB'
  if name.startswith('seconds_per_token'):
    return f'{value * 1e3:.3f} ms'
  if name.endswith('seconds'):
    return f'{value:.3f} s'
  if isinstance(value, int):
    return f'{value:,}'
  return f'{value:,.0f}' if value >= 100 else f'{value:.3f}'


def report(result: dict[str, Any]) -> None:
  """Prints a result as a table and, on the last line, as JSON."""
  table = rich.table.Table('measure', box=rich.box.SIMPLE_HEAD)
  table.add_column('value', justify='right', overflow='fold')
  for name, value in result.items():
    table.add_row(name.replace('_', ' '), _format(name, value))
  rich.console.Console(highlight=False).print(table, markup=False)
  print(json.dumps(result), flush=True)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags."""
  command_line.define_config(values)
  flags.DEFINE_integer(
    'steps', 5, 'Training steps, or decodings, timed.', flag_values=values
  )
  flags.DEFINE_string(
    'json', None, 'File to write the result to as well.', flag_values=values
  )
  flags.DEFINE_bool(
    'decode', False, 'Time decoding rather than training.', flag_values=values
  )


def main(values: flags.FlagValues) -> None:
  """Measures what the flags say, keeps it and prints it."""
  command_line.check_output(values.json)
  devices.use_all_cores()
  config = resolve(values.config, _VOCAB_SIZE)
  devices.check_memory(config, blocks.least_parameters(config))
  run = measure_decode if values.decode else measure
  result = run(config, values.steps)
  if values.json:
    pathlib.Path(values.json).write_text(json.dumps(result) + '\n')
  report(result)
