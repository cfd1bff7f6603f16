"""A linear classifier of words: the cheapest model of a text, for references.

Features are TF-IDF as scikit-learn's `TfidfVectorizer` has it with
`ngram_range=(1, ngrams)`: words of two letters or more, in lower case, and runs
of at most `ngrams` such words; tf * (ln((1 + n) / (1 + df)) + 1); scaled to a
norm of 1.
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


def _terms(text: str, ngrams: int) -> list[str]:
  """Runs of 1 to `ngrams` words."""
  words = _WORD.findall(text.lower())
  return [
    ' '.join(words[i : i + n])
    for n in range(1, ngrams + 1)
    for i in range(len(words) - n + 1)
  ]


class TfIdf:
  """Terms, runs of words, and their weights.

  Choice: they are of all training texts, without their labels, also of those of
  tasks to come: fixed features, as those of a pre-trained model.

  Attributes:
    weights: ln((1 + n) / (1 + df)) + 1 by term, in the order of the terms.
  """

  def __init__(self, texts: Sequence[str], ngrams: int = 1):
    """Counts the terms of texts.

    Args:
      texts: of training.
      ngrams: most words of a term.
    """
    self._ngrams = ngrams
    counts = collections.Counter(
      term for text in texts for term in set(_terms(text, ngrams))
    )
    self.weights = {
      term: math.log((1 + len(texts)) / (1 + counts[term])) + 1
      for term in sorted(counts)
    }
    self._places = {term: i for i, term in enumerate(self.weights)}

  def most(self, texts: Sequence[str]) -> int:
    """Most different known terms of a text, at least 1."""
    return max(1, *(len(self._counts(text)) for text in texts))

  def _counts(self, text: str) -> collections.Counter[str]:
    """How often each known term is in a text."""
    terms = _terms(text, self._ngrams)
    return collections.Counter(x for x in terms if x in self._places)

  def encode(self, texts: Sequence[str], most: int) -> Rows:
    """Features as terms and their values; 0 in the places that are left.

    Args:
      texts: any.
      most: different known terms that a text may have.

    Returns:
      'terms', int32 [n, most], and 'values', float32 [n, most], of a norm of 1;
      all 0 for a text of no known term.

    Raises:
      ValueError: for a text of more terms.
    """
    terms = np.zeros((len(texts), most), np.int32)
    values = np.zeros((len(texts), most), np.float32)
    for i, text in enumerate(texts):
      counts = self._counts(text)
      if len(counts) > most:
        raise ValueError(
          f'The text {text[:40]!r}... has {len(counts)} different terms; '
          f'raise most={most}.'
        )
      for j, (term, count) in enumerate(counts.items()):
        terms[i, j] = self._places[term]
        values[i, j] = count * self.weights[term]
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return {'terms': terms, 'values': values / np.maximum(norms, 1e-30)}


def model(
  known: TfIdf,
  classes: int,
  optimizer: optax.GradientTransformation,
  most: int,
) -> Model:
  """logits = f @ kernel + bias of TF-IDF features f, all 0 at the start.

  Args:
    known: terms and their weights.
    classes: number of them.
    optimizer: of kernel and bias.
    most: different terms of a text; `known.most(texts)` counts them.
  """
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
    kernel = params['kernel'][rows['terms']]
    return jnp.einsum('nt,ntc->nc', rows['values'], kernel) + params['bias']

  def losses(params, rows) -> tuple[jax.Array, jax.Array]:
    nats = optax.softmax_cross_entropy_with_integer_labels(
      scores(params, rows), rows['label']
    )
    return nats, jnp.ones_like(nats)

  def features(params, rows) -> jax.Array:
    """[n, terms]."""
    del params
    number = jnp.arange(len(rows['terms']))[:, None]
    empty = jnp.zeros((len(rows['terms']), vocabulary))
    return empty.at[number, rows['terms']].add(rows['values'])

  return Model(
    params=params,
    optimizer=optimizer,
    encode=encode,
    losses=losses,
    scores=scores,
    features=features,
  )
