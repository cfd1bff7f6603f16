"""A linear classifier of words: the cheapest model of a text, for references.

Features are TF-IDF as scikit-learn's `TfidfVectorizer` has it at its defaults:
words of two letters or more, in lower case; tf * (ln((1 + n) / (1 + df)) + 1);
scaled to a norm of 1.
"""

import collections
from collections.abc import Sequence
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hope.continual.learner import Model, Rows

_WORD = re.compile(r'\b\w\w+\b')


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())


class TfIdf:
  """Words and their weights.

  Choice: they are of all training texts, without their labels, also of those of
  tasks to come: fixed features, as those of a pre-trained model.

  Attributes:
    weights: ln((1 + n) / (1 + df)) + 1 by word, in the order of the words.
  """

  def __init__(self, texts: Sequence[str]):
    """Counts the words of texts."""
    counts = collections.Counter(
      word for text in texts for word in set(_words(text))
    )
    self.weights = {
      word: math.log((1 + len(texts)) / (1 + counts[word])) + 1
      for word in sorted(counts)
    }
    self._places = {word: i for i, word in enumerate(self.weights)}

  def encode(self, texts: Sequence[str], most: int) -> Rows:
    """Features as words and their values; 0 in the places that are left.

    Args:
      texts: any.
      most: different known words that a text may have.

    Returns:
      'words', int32 [n, most], and 'values', float32 [n, most], of a norm of 1;
      all 0 for a text of no known word.

    Raises:
      ValueError: for a text of more words.
    """
    words = np.zeros((len(texts), most), np.int32)
    values = np.zeros((len(texts), most), np.float32)
    for i, text in enumerate(texts):
      counts = collections.Counter(x for x in _words(text) if x in self._places)
      if len(counts) > most:
        raise ValueError(
          f'The text {text[:40]!r}... has {len(counts)} different words; '
          f'raise most={most}.'
        )
      for j, (word, count) in enumerate(counts.items()):
        words[i, j] = self._places[word]
        values[i, j] = count * self.weights[word]
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return {'words': words, 'values': values / np.maximum(norms, 1e-30)}


def model(
  texts: Sequence[str],
  classes: int,
  optimizer: optax.GradientTransformation,
  most: int = 128,
) -> Model:
  """logits = f @ kernel + bias of TF-IDF features f, all 0 at the start.

  Args:
    texts: of training, by which words are weighted.
    classes: number of them.
    optimizer: of kernel and bias.
    most: different words of a text.
  """
  known = TfIdf(texts)
  vocabulary = len(known.weights)
  params = {
    'kernel': jnp.zeros((vocabulary, classes)),
    'bias': jnp.zeros(classes),
  }

  def encode(examples) -> Rows:
    labels = np.array([label for _, label in examples], np.int32)
    return known.encode([x for x, _ in examples], most) | {'label': labels}

  def scores(params, rows) -> jax.Array:
    """Logits [n, classes]."""
    kernel = params['kernel'][rows['words']]
    return jnp.einsum('nw,nwc->nc', rows['values'], kernel) + params['bias']

  def losses(params, rows) -> tuple[jax.Array, jax.Array]:
    nats = optax.softmax_cross_entropy_with_integer_labels(
      scores(params, rows), rows['label']
    )
    return nats, jnp.ones_like(nats)

  def features(params, rows) -> jax.Array:
    """[n, words]."""
    del params
    number = jnp.arange(len(rows['words']))[:, None]
    empty = jnp.zeros((len(rows['words']), vocabulary))
    return empty.at[number, rows['words']].add(rows['values'])

  return Model(
    params=params,
    optimizer=optimizer,
    encode=encode,
    losses=losses,
    scores=scores,
    features=features,
  )
