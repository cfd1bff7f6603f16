"""What the experiments with optimizers learn.

Images of clothes by a small ViT and text by a small Hope; and tasks that
change: digits whose pixels or classes are permuted anew, text whose bytes are.
"""

from collections.abc import Callable
import gzip
import importlib
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope import data as data_lib
from hope.config import base_config, resolve
from hope.model import Hope


class Task(NamedTuple):
  """What is learned.

  Attributes:
    build: from a seed to a model.
    loss: (model, batch) -> (mean loss, accuracy).
    train: tree of [examples, ...].
    test: the same, held out.
    batch: examples of a step.
  """

  build: Callable[[int], nnx.Module]
  loss: Callable[[Any, Any], tuple[jax.Array, jax.Array]]
  train: Any
  test: Any
  batch: int


class EncoderBlock(nnx.Module):
  """Attention and MLP of a Transformer's encoder, normalised before."""

  def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
    self.heads = heads
    self.norm_1, self.norm_2 = (nnx.LayerNorm(width, rngs=rngs) for _ in '12')
    self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
    self.output = nnx.Linear(width, width, rngs=rngs)
    self.up = nnx.Linear(width, 4 * width, rngs=rngs)
    self.down = nnx.Linear(4 * width, width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [b, t, width], mixed."""
    qkv = self.qkv(self.norm_1(x))
    q, k, v = jnp.split(qkv.reshape(*x.shape[:2], self.heads, -1), 3, axis=-1)
    y = jax.nn.dot_product_attention(q, k, v)
    x += self.output(y.reshape(x.shape))
    return x + self.down(jax.nn.gelu(self.up(self.norm_2(x))))


class ViT(nnx.Module):
  """Images [b, 28, 28] to logits [b, 10], by the mean over 49 patches."""

  def __init__(self, width: int = 64, blocks: int = 4, *, rngs: nnx.Rngs):
    self.embed = nnx.Linear(16, width, rngs=rngs)
    place = 0.02 * jax.random.normal(rngs.params(), (49, width))
    self.place = nnx.Param(place)
    self.blocks = nnx.List(
      [EncoderBlock(width, 4, rngs=rngs) for _ in range(blocks)]
    )
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Returns the logits of images [b, 28, 28]."""
    b = images.shape[0]
    patches = images.reshape(b, 7, 4, 7, 4).transpose(0, 1, 3, 2, 4)
    x = self.embed(patches.reshape(b, 49, 16)) + self.place[...]
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x).mean(axis=1))


def mean_loss(logits: jax.Array, labels: jax.Array) -> tuple[Any, Any]:
  """Cross-entropy and accuracy, means over all of labels."""
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return loss.mean(), jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def _idx(folder: pathlib.Path, name: str, skip: int) -> np.ndarray:
  file = folder / name
  if not file.exists():
    raise ValueError(
      f'{file} is missing: install the Debian package dataset-fashion-mnist, '
      'or name the folder of its four files by --images.'
    )
  with gzip.open(file) as stream:
    return np.frombuffer(stream.read(), np.uint8, offset=skip)


def vit(folder: pathlib.Path) -> Task:
  """10,000 images to learn from, 2,000 held out."""

  def split(name, count):
    images = _idx(folder, f'{name}-images-idx3-ubyte.gz', 16)
    labels = _idx(folder, f'{name}-labels-idx1-ubyte.gz', 8)[:count]
    images = images.reshape(-1, 28, 28)[:count] / np.float32(255) - 0.3
    return {'images': jnp.asarray(images), 'labels': jnp.asarray(labels, int)}

  return Task(
    lambda seed: ViT(rngs=nnx.Rngs(seed)),
    lambda model, batch: mean_loss(model(batch['images']), batch['labels']),
    split('train', 10_000),
    split('t10k', 2_000),
    128,
  )


def lm(steps: int, seq_len: int = 128, batch_size: int = 8) -> Task:
  """Sequences of bytes of this Python's sources, enough for `steps`."""
  config = base_config()
  config.model.num_layers, config.model.width = 2, 64
  config.compute.remat = False
  config.model.titans.chunk_size = 16
  config.model.titans.projection_chunk_size = 16
  config.data.seq_len, config.data.batch_size = seq_len, batch_size
  config.evals.batches = 16
  data = data_lib.open_data(config)
  config = resolve(config, data.vocab_size)
  stream = iter(data.train_iterator())
  join = lambda batches: jax.tree.map(
    lambda *x: jnp.concatenate(x),
    *[{k: b[k] for k in ('inputs', 'targets')} for b in batches],
  )
  return Task(
    lambda seed: Hope(config, rngs=nnx.Rngs(seed)),
    lambda model, batch: mean_loss(model(batch['inputs'])[0], batch['targets']),
    join([next(stream) for _ in range(steps)]),
    join(data.eval_batches()),
    batch_size,
  )


class Changing(NamedTuple):
  """What is learned anew whenever a permutation is drawn.

  Attributes:
    init: from a seed to parameters, a nested dict.
    loss: (params, batch, permutation) -> mean loss.
    data: tree of [examples, ...].
    symbols: length of a permutation.
    batch: examples of a step.
  """

  init: Callable[[int], Any]
  loss: Callable[[Any, Any, jax.Array], jax.Array]
  data: Any
  symbols: int
  batch: int


def perceptron(
  images: np.ndarray, labels: np.ndarray, width: int, permuted: str
) -> Changing:
  """Images [n, pixels] to 10 classes, by two hidden layers.

  Args:
    images: float.
    labels: int [n].
    width: of the hidden layers.
    permuted: 'pixels' or 'labels'.
  """
  pixels = images.shape[-1]
  sizes = {'first': pixels, 'second': width, 'head': width}

  def init(seed):
    rngs = nnx.Rngs(seed)
    layers = {
      name: nnx.Linear(size, 10 if name == 'head' else width, rngs=rngs)
      for name, size in sizes.items()
    }
    return nnx.to_pure_dict(nnx.state(nnx.Dict(layers), nnx.Param))

  def loss(params, batch, permutation):
    x, labels = batch['images'], batch['labels']
    if permuted == 'pixels':
      x = x[:, permutation]
    else:
      labels = permutation[labels]
    for name in sizes:
      x = x @ params[name]['kernel'] + params[name]['bias']
      x = x if name == 'head' else jax.nn.relu(x)
    return mean_loss(x, labels)[0]

  data = {
    'images': jnp.asarray(images, jnp.float32),
    'labels': jnp.asarray(labels, int),
  }
  symbols = pixels if permuted == 'pixels' else 10
  return Changing(init, loss, data, symbols, 128)


def digits(permuted: str) -> Changing:
  """1,797 images of handwritten digits, standardised."""
  try:
    datasets = importlib.import_module('sklearn.datasets')
  except ImportError as error:
    raise ValueError(
      'The digits are those of scikit-learn: pip install scikit-learn.'
    ) from error
  images, labels = datasets.load_digits(return_X_y=True)
  images = (images - images.mean()) / images.std()
  return perceptron(images, labels, 64, permuted)


def hope(steps: int) -> Changing:
  """Sequences of 32 bytes of this Python's sources, enough for `steps`."""
  text = lm(steps, seq_len=32, batch_size=8)
  graph, _ = nnx.split(nnx.eval_shape(lambda: text.build(0)), nnx.Param)

  def loss(params, batch, permutation):
    batch = jax.tree.map(lambda x: permutation[x], batch)
    return text.loss(nnx.merge(graph, params), batch)[0]

  return Changing(
    lambda seed: nnx.to_pure_dict(nnx.state(text.build(seed), nnx.Param)),
    loss,
    text.train,
    257,
    text.batch,
  )
