"""The loss of a batch: next-token cross-entropy, and what is logged with it."""

import jax
import jax.numpy as jnp
import optax

from hope.model import Hope


def loss_and_metrics(
  model: Hope, batch: dict[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sum of the weighted cross-entropies of a batch, in nats.

  Args:
    model: that predicts.
    batch: inputs, targets int32 [b, t], weights float32 [b, t]; with
      `data.segments` also starts, bool [b, t].

  Returns:
    (loss, metrics): the sum, and sums and norms to report.
  """
  logits, state = model(batch['inputs'], starts=batch.get('starts'))
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['targets']
  )
  weights = batch['weights']
  correct = jnp.argmax(logits, axis=-1) == batch['targets']
  loss = jnp.sum(weights * losses)
  return loss, {
    'loss': loss,
    'accuracy': jnp.sum(weights * correct),
    **model.metrics(state),
  }
