"""The models of test-time training (arXiv:2407.04620) and how they learn.

The equations are in the head of `hope.mixers.ttt`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hope.memory import objectives, rule

# Of LN.
EPS = 1e-6


def gelu(x: jax.Array) -> jax.Array:
  """Of x [...], [...]; the approximation by tanh, as published."""
  return jax.nn.gelu(x, approximate=True)


def _with_one(x: jax.Array) -> jax.Array:
  """(x, 1), [..., i + 1] of [..., i]: (x, 1) @ (W; b) = x W + b."""
  return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


class Inner(NamedTuple):
  """The model f, but for its weights.

  Attributes:
    scale: [..., 1, d], of LN.
    bias: [..., 1, d], of LN.
  """

  scale: jax.Array
  bias: jax.Array

  def out(self, z: jax.Array, hidden: jax.Array) -> jax.Array:
    """f(z) [..., c, d].

    Args:
      z: [..., c, d].
      hidden: [..., c, d], outputs of the last layer.
    """
    return z + jax.nn.standardize(hidden, epsilon=EPS) * self.scale + self.bias

  def forward(self, kernels: tuple[jax.Array, ...], z: jax.Array) -> jax.Array:
    """f(z) [..., c, d] of kernels [..., i + 1, o] and z [..., c, d]."""
    u = z
    for kernel in kernels[:-1]:
      u = gelu(_with_one(u) @ kernel)
    return self.out(z, _with_one(u) @ kernels[-1])

  def errors(
    self, kernels: tuple[jax.Array, ...], k: jax.Array, v: jax.Array
  ) -> tuple[list[jax.Array], list[jax.Array]]:
    """(inputs, gradients at the outputs) of the layers, by the chain rule.

    Args:
      kernels: (W; b) of the layers, [..., i + 1, o].
      k: [..., c, d], keys.
      v: [..., c, d], wanted values.
    """
    inputs, backs, u = [], [], k
    for j, kernel in enumerate(kernels):
      inputs.append(_with_one(u))
      z = inputs[-1] @ kernel
      last = j == len(kernels) - 1
      layer = functools.partial(self.out, k) if last else gelu
      u, back = jax.vjp(layer, z)
      backs.append(back)
    g, gradients = objectives.error('l2', u, v), []
    for kernel, back in zip(kernels[::-1], backs[::-1], strict=True):
      (g,) = back(g)
      gradients.insert(0, g)
      g = g @ jnp.swapaxes(kernel[..., :-1, :], -1, -2)
    return inputs, gradients


def learn(
  inner: Inner,
  start: tuple[jax.Array, ...],
  now: tuple[jax.Array, ...],
  *,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  rate: jax.Array,
  tau: jax.Array,
  tau_end: jax.Array,
  form: rule.Form,
) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """A model learns and reads tokens of one mini-batch.

  Args:
    inner: the model.
    start: its layers at the mini-batch's start, W_0, [..., i + 1, o].
    now: the same before these tokens: W_0 - sum_s lr_s grad_s, without tau.
    q: [..., c, d], as k and v.
    k: keys.
    v: wanted values.
    rate: [..., c, 1], lr.
    tau: [..., c, 1].
    tau_end: [..., 1, 1], tau_K if the mini-batch ends with these tokens, else
      1.
    form: of the rule.

  Returns:
    (now, f(q_t) with W_t [..., c, d]).
  """
  inputs, gradients = inner.errors(start, k, v)
  decay = form.decays(jnp.ones_like(rate), None, None, True)
  new, z = [], q
  for j, (first, kernel) in enumerate(zip(start, now, strict=True)):
    query = _with_one(gelu(z) if j else z)
    kernel, _, read = form.update(
      kernel,
      None,
      inputs[j],
      gradients[j],
      eta=rate,
      decay=decay,
      erase=0.0,
      queries=query,
    )
    held = query @ first
    z = held + tau * (read - held)
    new.append(first + tau_end * (kernel - first))
  return tuple(new), inner.out(q, z)
