"""The loss of a batch: next-token cross-entropy, and what is logged with it."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from hope.memory.segments import since_start
from hope.model import Hope
from hope.parts import InnerLosses
from hope.tasks import exact_matches


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
  sums, _, state = _sums(model, batch)
  return sums['loss'], sums | model.metrics(state)


def _sums(
  model: Hope, batch: dict[str, jax.Array]
) -> tuple[dict[str, jax.Array], jax.Array, Any]:
  """(loss and accuracy, sums; the predictions, int [b, t]; states)."""
  logits, state = model(batch['inputs'], starts=batch.get('starts'))
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['targets']
  )
  weights = batch['weights']
  predictions = jnp.argmax(logits, axis=-1)
  correct = predictions == batch['targets']
  sums = {
    'loss': jnp.sum(weights * losses),
    'accuracy': jnp.sum(weights * correct),
  }
  return sums, predictions, state


def _of_classes(
  predictions: jax.Array, batch: dict[str, jax.Array], vocab_size: int
) -> jax.Array:
  """The counts that `hope.tasks.mean_over_classes` takes, [3, vocab_size]."""
  targets, weights = batch['targets'], batch['weights']
  counts = jnp.zeros((3, vocab_size), jnp.float32)
  counts = counts.at[0, targets].add(weights * (predictions == targets))
  return counts.at[1, targets].add(weights).at[2, predictions].add(weights)


def with_inner_losses(
  model: Hope, batch: dict[str, jax.Array], classes: bool
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
  """The metrics of a batch, with the inner losses of the model's memories.

  Args:
    model: that predicts; it is changed in place.
    batch: as `loss_and_metrics` takes it.
    classes: whether classes are counted.

  Returns:
    (metrics, sums, counts): loss and accuracy as in `loss_and_metrics`,
    exact_match and rows of `hope.tasks.exact_matches`, and where they are
    asked for of_classes, [3, v]
    counts of `hope.tasks.mean_over_classes`; by name, as
    'memory/inner_loss/layer_0', sums [t] over the tokens that are at each
    position of their document; how many those are, [t].
  """
  model.set_attributes(measures=True, raise_if_not_found=False)
  metrics, predictions, _ = _sums(model, batch)
  correct = predictions == batch['targets']
  matches, rows = exact_matches(correct, batch['weights'])
  metrics |= {
    'exact_match': matches,
    'rows': rows,
  }
  if classes:
    metrics['of_classes'] = _of_classes(
      predictions, batch, model.embed.num_embeddings
    )
  shape = batch['inputs'].shape
  starts = batch.get('starts')
  position = jnp.broadcast_to(jnp.arange(shape[1]), shape)
  if starts is not None:
    position = since_start(starts, 0)

  def by_position(x: jax.Array) -> jax.Array:
    """Sums [..., t] of x [..., b, t]."""
    if starts is None:
      return x.sum(-2)
    zeros = jnp.zeros((*x.shape[:-2], shape[1]), x.dtype)
    return zeros.at[..., position].add(x)

  measured = nnx.to_pure_dict(nnx.pop(model, InnerLosses))
  of_blocks = measured.get('inner_losses', ())
  sums = model.by_layer(jax.tree.map(by_position, of_blocks))
  return metrics, sums, by_position(jnp.ones(shape))
