"""Hope as the model of a learner: what comes after a text.

Classes are answers to a query: their names (`answer='name'`), which the model
scores by their log-likelihood, or one new token for each (`answer='token'`),
which makes the output layer a linear classifier of the last hidden state.

Choice: in learning as in scoring, a query has separators of documents before it
up to a fixed length. So all rows end together, and a query is read once for all
classes. A longer one loses its beginning.
"""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from hope.config import resolve
from hope.continual.learner import Model, Rows
from hope.data.tokenization import ByteTokenizer, Tokenizer
from hope.model import Hope
from hope.optimizer import make_optimizer, needs_inputs
from hope.tasks.datasets import intents

ANSWERS = ('name', 'token')


class _Built:
  """A model apart from its parameters."""

  def __init__(self, config: ml_collections.ConfigDict, vocab_size: int):
    resolved = resolve(config, vocab_size)
    if needs_inputs(resolved):
      raise ValueError(
        "optimizer.name='delta_gradient_descent' reads the inputs of layers, "
        'which a continual learner does not keep; choose another rule.'
      )
    self.graph, params = nnx.split(Hope(resolved, rngs=nnx.Rngs(config.seed)))
    self.params = nnx.to_pure_dict(params)
    self.optimizer = make_optimizer(resolved)

  def __call__(self, params) -> Hope:
    return nnx.merge(self.graph, params)

  def losses(self, params, rows) -> tuple[jax.Array, jax.Array]:
    """(nats [n], targets [n]) of inputs, targets and weights [n, t]."""
    logits, _ = self(params)(rows['inputs'])
    nats = optax.softmax_cross_entropy_with_integer_labels(
      logits, rows['targets']
    )
    return (rows['weights'] * nats).sum(-1), rows['weights'].sum(-1)


def _rows(
  contexts: Sequence[np.ndarray],
  answers: Sequence[np.ndarray],
  pad: int,
  before: int,
  after: int,
) -> Rows:
  """Contexts that end at `before` tokens, answers of at most `after` more."""
  tokens = np.full((len(contexts), before + after), pad, np.int32)
  weights = np.zeros((len(contexts), before + after), np.float32)
  for i, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
    context, answer = context[-before:], answer[:after]
    tokens[i, before - len(context) : before] = context
    tokens[i, before : before + len(answer)] = answer
    weights[i, before : before + len(answer)] = 1
  return {
    'inputs': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'weights': weights[:, 1:],
  }


def _separator(tokenizer: Tokenizer) -> int:
  if tokenizer.document_separator is None:
    raise ValueError(
      'The tokenizer has no separator of documents, which fills what is left '
      'of a row; choose one that has.'
    )
  return tokenizer.document_separator


def classifier(
  config: ml_collections.ConfigDict,
  classes: Sequence[str],
  *,
  answer: str = 'token',
  length: int = 64,
  tokenizer: Tokenizer | None = None,
) -> Model:
  """A model of queries and their classes.

  Args:
    config: of a run: model, optimizer and seed are used.
    classes: their names.
    answer: one of ANSWERS.
    length: tokens of a query that are read.
    tokenizer: None: bytes.

  Raises:
    ValueError: for a configuration that cannot work, or another answer.
  """
  tokenizer = tokenizer or ByteTokenizer()
  pad, size = _separator(tokenizer), tokenizer.vocab_size
  if answer not in ANSWERS:
    raise ValueError(f'answer={answer!r}; choose one of {", ".join(ANSWERS)}.')
  if answer == 'name':
    names = [tokenizer.encode(intents.continuation(x)) for x in classes]
  else:
    names = [np.array([size + i], np.int32) for i in range(len(classes))]
    size += len(classes)
  after = max(map(len, names))
  # Every name as the end of a row: [classes, after].
  of_names = _rows([np.array([], np.int32)] * len(names), names, pad, 1, after)
  built = _Built(config, size)

  def encode(examples) -> Rows:
    texts = [tokenizer.encode(intents.prompt(text)) for text, _ in examples]
    labels = np.array([label for _, label in examples], np.int32)
    rows = _rows(texts, [names[i] for i in labels], pad, length, after)
    return rows | {'label': labels}

  def scores(params, rows) -> jax.Array:
    """Log-likelihoods of the classes [n, classes]."""
    logits, state = built(params)(rows['inputs'][:, :length], last_only=True)
    first, rest = of_names['targets'][:, 0], of_names['targets'][:, 1:]
    found = jax.nn.log_softmax(logits[:, 0])[:, first]
    if not rest.size:
      return found
    number = len(found)

    def of_all(x: jax.Array) -> jax.Array:
      # Positions, [layers], are those of all rows.
      return x if x.ndim == 1 else jnp.repeat(x, len(names), axis=1)

    inputs = jnp.tile(of_names['targets'][:, :-1], (number, 1))
    logits, _ = built(params)(inputs, jax.tree.map(of_all, state))
    nats = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.tile(rest, (number, 1))
    )
    weights = jnp.tile(of_names['weights'][:, 1:], (number, 1))
    return found - (weights * nats).sum(-1).reshape(number, -1)

  def features(params, rows) -> jax.Array:
    """The last hidden state of the query [n, width]."""
    return built(params).features(rows['inputs'][:, :length])

  return Model(
    params=built.params,
    optimizer=built.optimizer,
    encode=encode,
    losses=built.losses,
    scores=scores,
    features=features,
  )


def answerer(
  config: ml_collections.ConfigDict,
  *,
  before: int = 128,
  after: int = 128,
  tokenizer: Tokenizer | None = None,
) -> Model:
  """A model of prompts and their answers, measured by its loss on answers.

  Examples are `hope.tasks.text.Request`s.

  Args:
    config: of a run: model, optimizer and seed are used.
    before: tokens of a prompt that are read; a longer one loses its beginning.
    after: tokens of an answer that count; a longer one loses its end.
    tokenizer: None: bytes.
  """
  tokenizer = tokenizer or ByteTokenizer()
  pad = _separator(tokenizer)
  built = _Built(config, tokenizer.vocab_size)

  def encode(requests) -> Rows:
    texts = [tokenizer.encode(x.context) for x in requests]
    answers = [tokenizer.encode(x.continuation) for x in requests]
    return _rows(texts, answers, pad, before, after)

  return Model(built.params, built.optimizer, encode, built.losses)


def reader(
  config: ml_collections.ConfigDict,
  *,
  length: int = 128,
  tokenizer: Tokenizer | None = None,
) -> Model:
  """A model of texts, measured by its loss on every token of theirs.

  Args:
    config: of a run: model, optimizer and seed are used.
    length: tokens of a text; of a longer one the first ones count.
    tokenizer: None: bytes.
  """
  tokenizer = tokenizer or ByteTokenizer()
  pad = _separator(tokenizer)
  built = _Built(config, tokenizer.vocab_size)

  def encode(texts) -> Rows:
    nothing = [np.array([], np.int32)] * len(texts)
    tokens = [tokenizer.encode(text) for text in texts]
    return _rows(nothing, tokens, pad, 1, length)

  return Model(built.params, built.optimizer, encode, built.losses)
