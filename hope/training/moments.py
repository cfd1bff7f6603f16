"""Second moments of the inputs of Linear layers, from the pass that trains.

Delta gradient descent needs E[u u^T] for each kernel. A probe, a variable of
zeros, is put beside the kernel of every `nnx.Linear`; the layer's output does
not depend on it, but its gradient is the sum of u u^T. So the moments come out
of the same forward and backward pass as the gradients, through scan, remat,
jit and a split batch.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp


class Probe(nnx.Variable):
  """Zeros whose gradient is a sum over the tokens that a layer reads."""


@jax.custom_vjp
def _tap(x: jax.Array, moment: jax.Array, rows: jax.Array) -> jax.Array:
  del moment, rows
  return x


def _tap_fwd(x, moment, rows):
  return x, (x, moment, rows)


def _tap_bwd(residuals, x_bar):
  x, moment, rows = residuals
  u = x.reshape(-1, x.shape[-1]).astype(moment.dtype)
  return x_bar, u.T @ u, jnp.full_like(rows, u.shape[0])


_tap.defvjp(_tap_fwd, _tap_bwd)


class _ProbedLinear(nnx.Linear):
  """A Linear layer with probes: of its moment [i, i], and of its rows []."""

  moment: Probe
  rows: Probe

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    inputs = _tap(inputs, self.moment[...], self.rows[...])
    return super().__call__(inputs, out_sharding)


def capture(model: nnx.Module) -> None:
  """Puts probes beside the kernel of every `nnx.Linear` of a model.

  Kernels may be stacked, [..., i, o], for a scan over layers.

  Args:
    model: changed in place.
  """
  for _, layer in nnx.iter_modules(model):
    if type(layer) is nnx.Linear:
      *stack, i, _ = layer.kernel.shape
      probed: Any = layer
      probed.__class__ = _ProbedLinear
      probed.moment = Probe(jnp.zeros((*stack, i, i), layer.param_dtype))
      probed.rows = Probe(jnp.zeros(stack, layer.param_dtype))


def gradients(
  loss: Callable[[Any], tuple[jax.Array, Any]],
  graph: nnx.GraphDef,
  params: Any,
  captured: bool,
) -> tuple[Any, Any, Any]:
  """Gradients of a model's loss, and of its probes where they are wanted.

  Args:
    loss: from a model to (loss, auxiliary values).
    graph: structure of the model, which has parameters only.
    params: nested dict.
    captured: whether the inputs of Linear layers are captured.

  Returns:
    ((loss, auxiliary values), gradients like params, sums for `moments`; empty
    where nothing is captured).
  """
  model = nnx.merge(graph, params)
  if captured:
    capture(model)
  graph, _, probes = nnx.split(model, nnx.Param, Probe)
  value, (grads, sums) = jax.value_and_grad(
    lambda p, q: loss(nnx.merge(graph, p, q)), argnums=(0, 1), has_aux=True
  )(params, nnx.to_pure_dict(probes))
  return value, grads, sums


def moments(params: Any, sums: Any) -> Any:
  """The `inputs` of `delta_gradient_descent`.

  Args:
    params: nested dict.
    sums: nested dict of the gradients of the probes, from `gradients`.

  Returns:
    A nested dict like params: E[u u^T] [..., i, i] for the kernel of a layer
    with probes, None for all other leaves.
  """
  if not isinstance(params, dict):
    return None
  inputs = {k: moments(v, sums.get(k, {})) for k, v in params.items()}
  if 'moment' in sums:
    rows = jnp.maximum(sums['rows'], 1)[..., None, None]
    inputs['kernel'] = sums['moment'] / rows
  return inputs
