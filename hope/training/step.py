"""The training step: loss, gradients, and one guarded update."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import optax

from hope import blocks
from hope.evaluation.heldout import Sums
from hope.loss import loss_and_metrics, with_inner_losses
from hope.model import Hope
from hope.optimizer import make_optimizer, needs_inputs
from hope.parallel import devices, placement
from hope.training import moments as inputs_lib

Config = ml_collections.FrozenConfigDict


class TrainState(NamedTuple):
  """All that a training step changes.

  Attributes:
    params: nested dict of float32 arrays.
    opt_state: of the optimizer.
    step: int32 [], updates done.
    healthy: bool []; False from the first non-finite loss, gradient or update
      on, after which no step changes anything.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  healthy: jax.Array


def build_model(config: Config) -> tuple[nnx.GraphDef, Any]:
  """Builds the model; returns its structure and its parameters as a dict."""
  graph, params = nnx.split(Hope(config, rngs=nnx.Rngs(config.seed)))
  return graph, nnx.to_pure_dict(params)


@functools.lru_cache(maxsize=8)
def _builder(
  config: Config, mesh: Mesh
) -> Callable[[], tuple[nnx.GraphDef, TrainState]]:
  """The function that builds model and state.

  It is the same one each time, so that jax traces it once: for the shapes, and
  for the numbers.
  """

  def build():
    graph, params = build_model(config)
    opt_state = make_optimizer(config, mesh).init(params)
    return graph, TrainState(params, opt_state, jnp.int32(0), jnp.bool_(True))

  return build


def abstract_params(config: Config, mesh: Mesh) -> tuple[nnx.GraphDef, Any]:
  """The model's structure, and shapes and shardings of its parameters."""
  graph, params = jax.eval_shape(lambda: build_model(config))
  table = blocks.parameters(config)
  return graph, _laid_out(params, placement.of_params(params, mesh, table))


def _laid_out(shapes: Any, shardings: Any) -> Any:
  """Shapes and types of a tree, with a sharding for each leaf."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    shardings,
  )


def abstract_state(
  config: Config, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
  """The model's structure, and shapes and shardings of a training state.

  Raises:
    ValueError: for a parameter that no row of the model's table describes, or
      if `compute.kernel` is not written for the devices.
  """
  platform = mesh.devices.flat[0].platform
  kernel = config.compute.kernel
  if kernel == 'pallas' and platform not in ('cpu', 'tpu'):
    raise ValueError(
      "compute.kernel='pallas' is written for TPUs, and the devices are "
      f"of the platform {platform}; try compute.kernel='xla'."
    )
  graph, state = jax.eval_shape(_builder(config, mesh))
  table = blocks.parameters(config)
  everywhere: Any = NamedSharding(mesh, PartitionSpec())
  shardings = TrainState(
    placement.of_params(state.params, mesh, table),
    placement.of_opt_state(
      make_optimizer(config, mesh), state.opt_state, state.params, mesh, table
    ),
    everywhere,
    everywhere,
  )
  return graph, _laid_out(state, shardings)


def init_state(config: Config, abstract: TrainState) -> TrainState:
  """The state before the first step, laid out like `abstract` from the start.

  Args:
    config: resolved.
    abstract: of `abstract_state`.
  """
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  mesh = _mesh(abstract)
  build = jax.jit(
    _builder(config, mesh),
    out_shardings=(None, shardings),
    compiler_options=devices.compiler_options(mesh),
  )
  return build()[1]


def _mesh(state: TrainState) -> Mesh:
  sharding: Any = state.step.sharding
  return sharding.mesh


def train_step(
  graph: nnx.GraphDef, config: Config, state: TrainState
) -> jax.stages.Wrapped:
  """Returns the compiled step: (state, batch) -> (state, metrics).

  Metrics are of the batch before the update: loss (nats per token), accuracy,
  gradient_norm, norms of the memories, and healthy: whether it was updated. The
  state is donated.

  Args:
    graph: structure of the model.
    config: resolved.
    state: that it will be given, or `abstract_state`.
  """
  mesh = _mesh(state)
  tx, parts = make_optimizer(config, mesh), config.train.accumulate

  def grad(params, batch):
    """(metrics, gradients, gradients of probes), all sums."""
    (_, sums), grads, seen = inputs_lib.gradients(
      lambda model: loss_and_metrics(model, batch),
      graph,
      params,
      captured=needs_inputs(config),
    )
    return sums, grads, seen

  def step(state: TrainState, batch):
    if parts == 1:
      sums, grads, seen = grad(state.params, batch)
    else:

      def split(x):  # every part has rows of every device
        return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

      def add(total, part):
        return jax.tree.map(jnp.add, total, grad(state.params, part)), None

      micro = jax.tree.map(split, batch)
      zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(grad, state.params, jax.tree.map(lambda x: x[0], micro)),
      )
      (sums, grads, seen), _ = jax.lax.scan(add, zero, micro)
    total = jnp.maximum(batch['weights'].sum(), 1)
    grads = jax.tree.map(lambda g: g / total, grads)
    metrics = {
      k: v / (total if k in ('loss', 'accuracy') else parts)
      for k, v in sums.items()
    }
    metrics['gradient_norm'] = optax.tree.norm(grads)
    healthy = state.healthy & jnp.isfinite(metrics['loss'])
    healthy &= jnp.isfinite(metrics['gradient_norm'])
    extra = {}
    if needs_inputs(config):
      extra['inputs'] = inputs_lib.moments(state.params, seen)
    updates, opt_state = tx.update(
      grads, state.opt_state, state.params, **extra
    )
    params = optax.apply_updates(state.params, updates)
    # A weight decay or a rule may give what no gradient shows.
    healthy &= _is_finite((params, opt_state))
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(healthy, new, old),
      (params, opt_state),
      (state.params, state.opt_state),
    )
    metrics['healthy'] = healthy
    done = state.step + healthy.astype(jnp.int32)
    return TrainState(params, opt_state, done, healthy), metrics

  return jax.jit(
    _on(mesh, step),
    donate_argnums=0,
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, state),
      NamedSharding(mesh, PartitionSpec()),
    ),
    compiler_options=devices.compiler_options(mesh),
  )


def _is_finite(tree: Any) -> jax.Array:
  """Whether every number of a tree is finite, as a bool."""
  return jnp.all(
    jnp.stack(
      [
        jnp.all(jnp.isfinite(x))
        for x in jax.tree.leaves(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact)
      ]
    )
  )


def _on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
  """A function that is traced with this mesh in force."""

  @functools.wraps(function)
  def traced(*args):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(*args)

  return traced


def eval_step(
  graph: nnx.GraphDef, mesh: Mesh, metric: str | None = None
) -> jax.stages.Wrapped:
  """Returns the compiled evaluation: (params, batch) -> `heldout.Sums`.

  Args:
    graph: structure of the model.
    mesh: that it runs on.
    metric: of the task, in `hope.tasks.METRICS`; classes are counted for
      class_accuracy alone. None: of texts.
  """
  classes = metric == 'class_accuracy'

  def step(params, batch):
    metrics, losses, counts = with_inner_losses(
      nnx.merge(graph, params), batch, classes
    )
    return Sums(
      loss=metrics['loss'],
      accuracy=metrics['accuracy'],
      weight=batch['weights'].sum(),
      exact_match=metrics['exact_match'],
      rows=metrics['rows'],
      of_classes=metrics.get('of_classes'),
      inner_losses=losses,
      tokens=counts,
    )

  return jax.jit(
    _on(mesh, step),
    out_shardings=NamedSharding(mesh, PartitionSpec()),
    compiler_options=devices.compiler_options(mesh),
  )
