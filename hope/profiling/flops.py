"""Floating-point operations of a model, counted in its traced forward pass.

A count is of matmuls alone, two operations per multiply-add. It is of the model
and not of a run: neither recomputation nor the passes that a matmul of high
precision takes are counted, and compute.kernel='pallas' counts as the XLA form.
Masked matrices (c x c within a block of the memories or of attention) and the
places that fill a sequence's last block count in full: they are computed.
"""

from flax import nnx
import jax
from jax.interpreters import partial_eval
import jax.numpy as jnp
import ml_collections

from hope.model import Hope
from hope.profiling.roofline import matmul_flops

# Forward passes that a training step counts as: the backward pass has two
# matmuls for each matmul of the forward pass.
_PASSES = 3


def _with_xla(
  config: ml_collections.ConfigDict,
) -> ml_collections.FrozenConfigDict:
  """The configuration with compute.kernel='xla'."""
  changed = ml_collections.ConfigDict(config.to_dict())
  with changed.unlocked():
    changed.compute.kernel = 'xla'
  return ml_collections.FrozenConfigDict(changed)


def flops_per_token(
  config: ml_collections.FrozenConfigDict, seq_len: int
) -> int:
  """Operations per token of a training step: forward and backward pass.

  Embedding look-ups, norms, the depthwise convolution, activations and the
  optimizer count as nothing, as does what the logits do not depend on. The
  model is traced with shapes alone: no parameter is drawn.

  Args:
    config: a resolved configuration (`hope.config.resolve`).
    seq_len: tokens of a sequence.
  """
  config = _with_xla(config)
  model = nnx.eval_shape(lambda: Hope(config, rngs=nnx.Rngs(0)))
  graph, params = nnx.split(model)
  tokens = jax.ShapeDtypeStruct((1, seq_len), jnp.int32)

  def logits(params, tokens):
    return nnx.merge(graph, params)(tokens)[0]

  jaxpr = jax.make_jaxpr(logits)(params, tokens).jaxpr
  # Without what the logits do not depend on, which a compiler removes.
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True])
  return round(_PASSES * matmul_flops(jaxpr) / seq_len)
