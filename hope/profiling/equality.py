"""What this device computes, beside float64 on the CPU of the same machine.

The reference is the token form in float64: `rule.token_update`, and layers and
models that read one token at a time; for the solve, the inverse of LAPACK. The
tests hold these equal to independent transcriptions of the equations. The
device runs what training runs: chunks, whole sequences and their gradients.

An error is the largest difference over the largest entry, of the worst array.
Its bound depends on how operands of matmuls are rounded. What jax's default
precision of float32 matmuls does differs between devices, and is measured.
"""

from collections.abc import Callable
import contextlib
import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hope import blocks
from hope import config as config_lib
from hope.layers.precision import at_least_float32
from hope.memory import rule, solve
from hope.model import Block, Hope
from hope.parallel import devices
from hope.parallel import mesh as mesh_lib

# Bounds of errors by how operands of matmuls are rounded. On a CPU with that
# rounding, the largest errors of outputs and of gradients were 1.3e-6 and 6e-6,
# 1.1e-3 and 1.2e-2, 1.1e-2 and 0.15. The largest errors of gradients are those
# of learned rates, which are sums of large terms of either sign.
BOUNDS = {
  'float32': {'output': 1e-5, 'gradient': 1e-4},
  'tf32': {'output': 5e-3, 'gradient': 5e-2},
  'bfloat16': {'output': 4e-2, 'gradient': 0.5},
}
# Settings of the model, beside the fields of Hope.
SETTINGS: dict[str, dict[str, Any]] = {
  'hope': {},
  'gated delta net': {
    'model.titans.hidden_multiple': 0,
    'model.titans.objective': 'dot',
    'model.titans.momentum': False,
    'model.titans.self_modifying': False,
    'model.titans.target': 'slow',
  },
  'attention': {'model.pattern': 'attention+cms'},
}
_IN_CONTEXT = {'model.cms.mode': 'in_context'}
_PALLAS = {'compute.kernel': 'pallas'}


class Sizes(NamedTuple):
  """Sizes of what is compared: two heads, two chunks a sequence."""

  batch: int
  chunk: int
  width: int
  vocab_size: int = 61


LARGE, SMALL = Sizes(2, 64, 128), Sizes(2, 8, 16)


class Case(NamedTuple):
  """Something to compare.

  Attributes:
    fast: (params, x) -> outputs, for the device; made of the type of matmul
      operands.
    slow: the same in another form, for float64.
    params: tree of float32 arrays; both are differentiated by them.
    x: [...], the input; they are differentiated by it too if it is a float.
  """

  fast: Callable[[str], Callable[[Any, Any], Any]]
  slow: Callable[[Any, Any], Any]
  params: Any
  x: np.ndarray


def relative_error(actual: Any, expected: Any) -> tuple[float, str]:
  """Largest difference over the largest entry, of the worst leaf; its path.

  NaN and infinity are an infinite error.
  """
  worst, where = 0.0, ''
  leaves = jax.tree_util.tree_leaves_with_path(expected)
  for a, (path, e) in zip(jax.tree.leaves(actual), leaves, strict=True):
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    if a.shape != e.shape:
      raise ValueError(f'Shapes {a.shape} and {e.shape} differ.')
    error = float(np.abs(a - e).max() / (np.abs(e).max() or 1.0))
    if not math.isfinite(error):
      return math.inf, jax.tree_util.keystr(path)
    if error > worst:
      worst, where = error, jax.tree_util.keystr(path)
  return worst, where


@functools.cache
def default_arithmetic() -> str:
  """How float32 matmuls are computed by default, a key of BOUNDS; measured.

  Raises:
    RuntimeError: if a matmul is off by more than bfloat16 explains.
  """
  a, b = np.random.default_rng(0).standard_normal((2, 256, 256))
  a, b = np.float32(a), np.float32(b)
  product = jax.jit(jnp.matmul)(a, b)
  error, _ = relative_error(product, np.matmul(a, b, dtype=np.float64))
  # It is 6e-7 in float32, 3e-4 with TF32 and 2.3e-3 with bfloat16.
  for name, bound in (('float32', 1e-5), ('tf32', 8e-4), ('bfloat16', 5e-3)):
    if error < bound:
      return name
  raise RuntimeError(f'A matmul of 256 x 256 random numbers is off by {error}.')


def _cpu() -> jax.Device:
  return jax.local_devices(backend='cpu')[0]


# For the CPU: nearly all of the time is compilation.
_compile = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
  return rng.standard_normal(shape).astype(np.float32)


def _rule_case(sizes: Sizes, update: Callable[..., Any]) -> Case:
  """Rule (A) with all of its terms."""
  rng = np.random.default_rng(0)
  b, c, i = sizes.batch, sizes.chunk, sizes.width // 2

  def rates(low, high):
    return rng.uniform(low, high, (b, c)).astype(np.float32)

  params = {
    'kernel': _normal(rng, b, i, i),
    'trace': _normal(rng, b, i, i),
    'g': _normal(rng, b, c, i),
    'eta': rates(0.1, 0.6),
    'alpha': rates(0.8, 1.0),
    'beta': rates(0.5, 0.95),
    'queries': _normal(rng, b, c, i),
  }
  return Case(
    lambda _: lambda params, u: update(u=u, **params),
    lambda params, u: rule.token_update(u=u, **params),
    params,
    _normal(rng, b, c, i) / np.float32(i**0.5),
  )


def _solve_case(sizes: Sizes) -> Case:
  """The solve, with entries of the size that random unit keys give."""
  rng = np.random.default_rng(1)
  c = sizes.chunk

  def fast(rhs, lower):
    return solve.solve_unit_lower(jnp.tril(lower, -1), rhs)

  def slow(rhs, lower):
    return jnp.linalg.inv(jnp.eye(c) + jnp.tril(lower, -1)) @ rhs

  lower = _normal(rng, sizes.batch, c, c) / np.float32(c**0.5)
  return Case(
    lambda _: fast, slow, _normal(rng, sizes.batch, c, sizes.width), lower
  )


def _whole(module: Any, x: jax.Array) -> jax.Array:
  """Outputs of a layer or model for x [b, t, ...], read at once."""
  return module(x)[0]


def _by_token(module: Any, x: jax.Array) -> jax.Array:
  """Outputs of a layer or model for x [b, t, ...], read token by token."""
  graph, params = nnx.split(module)

  def step(state, token):
    y, state = nnx.merge(graph, params)(token[:, None], state)
    return state, y[:, 0]

  state = module.init_state(x.shape[0])
  _, y = jax.lax.scan(step, state, jnp.moveaxis(x, 1, 0))
  return jnp.moveaxis(y, 0, 1)


def _module(
  sizes: Sizes, part: str, dtype: str, fields: dict[str, Any]
) -> nnx.Module:
  """A model of two layers, or the 'mixer' or 'feedforward' of a layer."""
  config = config_lib.base_config()
  config.update_from_flattened_dict(
    {
      'model.num_layers': 2,
      'model.width': sizes.width,
      'model.num_heads': 2,
      'model.titans.chunk_size': sizes.chunk,
      'model.titans.projection_chunk_size': sizes.chunk,
      'model.cms.periods': (sizes.chunk // 4, sizes.chunk),
      'data.seq_len': 2 * sizes.chunk,
      **fields,
    }
  )
  resolved: Any = config_lib.resolve(config, sizes.vocab_size)
  config = ml_collections.ConfigDict(resolved)
  config.model.dtype = dtype  # float64 is for references alone
  rngs = nnx.Rngs(0)
  if part == 'model':
    return Hope(config, rngs=rngs)
  return getattr(Block(blocks.pattern(config)[0], rngs=rngs), part)


def _module_case(
  sizes: Sizes,
  part: str,
  fields: dict[str, Any],
  read: Callable[[Any, jax.Array], jax.Array] = _whole,
) -> Case:
  """A model or a layer.

  Args:
    sizes: of it.
    part: 'model', 'mixer' or 'feedforward'.
    fields: of the configuration.
    read: how the device reads a sequence.
  """

  def run(dtype, fields, read):
    abstract = nnx.eval_shape(lambda: _module(sizes, part, dtype, fields))
    graph, _ = nnx.split(abstract)

    def outputs(params, x):
      return at_least_float32(read(nnx.merge(graph, params), x))

    return outputs

  def initial():
    _, params = nnx.split(_module(sizes, part, 'float32', fields))
    return nnx.to_pure_dict(params)

  rng = np.random.default_rng(2)
  with jax.default_device(_cpu()):
    params = _compile(initial)()
  # Moved from where they start, as a zero would hide what it multiplies.
  params = jax.tree.map(
    lambda p: np.asarray(p) + np.float32(0.1) * _normal(rng, *p.shape), params
  )
  shape = (sizes.batch, 2 * sizes.chunk)
  if part == 'model':
    x = rng.integers(sizes.vocab_size, size=shape, dtype=np.int32)
  else:
    x = _normal(rng, *shape, sizes.width)
  slow_fields = fields | {'compute.kernel': 'xla'}
  return Case(
    lambda dtype: run(dtype, fields, read),
    run('float64', slow_fields, _by_token),
    params,
    x,
  )


_CASES: dict[str, Callable[[Sizes], Case]] = {
  'rule, chunks': lambda sizes: _rule_case(sizes, rule.chunk_update),
  'rule, tokens': lambda sizes: _rule_case(sizes, rule.token_update),
  'solve': _solve_case,
  'titans layer': lambda sizes: _module_case(sizes, 'mixer', {}),
  'titans layer, pallas': lambda sizes: _module_case(sizes, 'mixer', _PALLAS),
  'in-context levels': lambda sizes: _module_case(
    sizes, 'feedforward', _IN_CONTEXT
  ),
  'hope, token by token': lambda sizes: _module_case(
    sizes, 'model', {}, _by_token
  ),
}
CASES = (*_CASES, *SETTINGS)


@functools.lru_cache(maxsize=2)
def _case(name: str, sizes: Sizes) -> Case:
  if name in SETTINGS:
    return _module_case(sizes, 'model', SETTINGS[name])
  return _CASES[name](sizes)


def _with_gradients(function, params, x, weights):
  """Outputs, and gradients of their sum with these weights."""

  def total(params, x):
    outputs = function(params, x)
    pairs = zip(jax.tree.leaves(outputs), weights, strict=True)
    return sum(jnp.sum(w * y) for y, w in pairs), outputs

  floating = np.issubdtype(x.dtype, np.floating)
  by = (0, 1) if floating else (0,)
  gradients, outputs = jax.grad(total, by, has_aux=True)(params, x)
  return outputs, gradients


def _weights(case: Case) -> list[np.ndarray]:
  rng = np.random.default_rng(3)
  outputs = jax.eval_shape(case.fast('float32'), case.params, case.x)
  return [_normal(rng, *y.shape) for y in jax.tree.leaves(outputs)]


@functools.lru_cache(maxsize=2)
def _reference(name: str, sizes: Sizes) -> tuple[Any, Any]:
  """Outputs and gradients in float64, on the CPU."""
  case = _case(name, sizes)
  weights = _weights(case)
  with jax.enable_x64(True), jax.default_device(_cpu()):
    double = jax.tree.map(
      lambda x: np.float64(x) if x.dtype == np.float32 else x,
      (case.params, case.x, weights),
    )
    run = _compile(functools.partial(_with_gradients, case.slow))
    return jax.tree.map(np.asarray, run(*double))


def compare(
  name: str,
  arithmetic: str,
  sizes: Sizes,
  note: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
  """Compares a case, its outputs and their gradients.

  Args:
    name: of CASES.
    arithmetic: 'highest' or 'default', precisions of float32 matmuls, or
      'bfloat16', the type of the model's matmul operands.
    sizes: of it.
    note: is told of each stage when it begins.

  Returns:
    Errors with their bounds, and whether they are within; see the keys.
  """
  note('float64 on the CPU')
  expected = _reference(name, sizes)
  note('compilation and run')
  case = _case(name, sizes)
  fast = case.fast('bfloat16' if arithmetic == 'bfloat16' else 'float32')
  precision: Any = contextlib.nullcontext()
  if arithmetic == 'highest':
    precision = jax.default_matmul_precision('highest')
  with precision:
    run = jax.jit(
      functools.partial(_with_gradients, fast),
      compiler_options=devices.compiler_options(mesh_lib.one_device()),
    )
    actual = run(case.params, case.x, _weights(case))
  rounded = {'highest': 'float32', 'bfloat16': 'bfloat16'}.get(arithmetic)
  rounded = rounded or default_arithmetic()
  result: dict[str, Any] = {'case': name, 'arithmetic': arithmetic}
  names = ('output', 'gradient')
  for kind, a, e in zip(names, actual, expected, strict=True):
    error, where = relative_error(a, e)
    bound = BOUNDS[rounded][kind]
    result[f'{kind}_error'], result[f'{kind}_bound'] = error, bound
    result[f'{kind}_worst'] = where
  result['equal'] = all(
    result[f'{kind}_error'] <= result[f'{kind}_bound'] for kind in names
  )
  return result
