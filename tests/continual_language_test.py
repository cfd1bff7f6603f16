"""Hope as the model of a learner."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hope import state_file
from hope.config import base_config, resolve
from hope.continual import language, learners
from hope.continual.options import LearnerOptions
from hope.data.tokenization import ByteTokenizer
from hope.model import Hope
from hope.tasks.datasets import intents
from hope.tasks.text import Request

NAMES = ('pay_bill', 'exchange_rate', 'pin')
QUERIES = ('pay it', 'how many euros is that, if I may ask', '')


def config(pattern='attention+cms'):
  found = base_config()
  model = found.model
  model.pattern, model.width, model.num_layers = pattern, 16, 1
  model.num_heads, model.cms.periods = 2, (1,)
  model.titans.chunk_size = model.titans.projection_chunk_size = 4
  found.optimizer.warmup_steps, found.optimizer.final_fraction = 0, 1.0
  return found


def log_likelihoods(hope, query, answers, length):
  """Of each answer, in rows of its own that end with other tokens."""
  tokens = ByteTokenizer().encode(intents.prompt(query))[-length:].tolist()
  tokens = [256] * (length - len(tokens)) + tokens
  longest = max(map(len, answers))
  rows = [[*tokens, *x, *[7] * (longest - len(x))] for x in answers]
  logits, _ = hope(jnp.array(rows))
  logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
  return [
    sum(logs[i, length - 1 + k, token] for k, token in enumerate(x))
    for i, x in enumerate(answers)
  ]


@pytest.mark.parametrize(
  'pattern',
  ['attention+cms', pytest.param('titans+cms', marks=pytest.mark.slow)],
)
@pytest.mark.parametrize('answer', language.ANSWERS)
def test_scores_are_log_likelihoods(answer, pattern):
  length = 22
  model = language.classifier(
    config(pattern), NAMES, answer=answer, length=length
  )
  new = 3 if answer == 'token' else 0
  hope = Hope(resolve(config(pattern), 257 + new), rngs=nnx.Rngs(0))
  if answer == 'token':
    answers = [[257], [258], [259]]
  else:
    answers = [b' pay bill', b' exchange rate', b' pin']
  rows = model.encode([(query, i) for i, query in enumerate(QUERIES)])
  got = np.asarray(model.scores(model.params, rows))
  nats, targets = model.losses(model.params, rows)
  assert targets.tolist() == [len(x) for x in answers]
  for i, query in enumerate(QUERIES):
    wanted = log_likelihoods(hope, query, answers, length)
    np.testing.assert_allclose(got[i], wanted, atol=2e-5)
    assert float(nats[i]) == pytest.approx(-wanted[i], abs=2e-5)


def test_features_are_what_the_output_layer_reads():
  model = language.classifier(config(), NAMES, length=16)
  rows = model.encode([(query, 0) for query in QUERIES])
  features = model.features(model.params, rows)
  hope = Hope(resolve(config(), 260), rngs=nnx.Rngs(0))
  logits, _ = hope(rows['inputs'][:, :16], last_only=True)
  table = model.params['embed']['embedding']
  np.testing.assert_allclose(
    features @ table.T * hope.logit_scale, logits[:, 0], atol=1e-5
  )


def test_texts_and_answers_are_rows():
  model = language.answerer(config(), before=4, after=3)
  rows = model.encode([Request('abcdef', ' x'), Request('g', ' wxyz')])
  assert rows['inputs'].tolist() == [
    [*b'cdef', *b' x'],
    [256, 256, 256, *b'g', *b' w'],
  ]
  assert rows['targets'][:, 3:].tolist() == [[*b' x', 256], [*b' wx']]
  assert rows['weights'].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
  rows = language.reader(config(), length=3).encode(['ab', 'cdef'])
  assert rows['inputs'].tolist() == [[256, *b'ab'], [256, *b'cd']]
  assert rows['targets'].tolist() == [[*b'ab', 256], [*b'cde']]
  assert rows['weights'].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize('answer', language.ANSWERS)
def test_learns_names(answer, tmp_path):
  changed = config()
  changed.optimizer.learning_rate = 1e-2
  changed.model.cms.periods = (1, 2)
  model = language.classifier(changed, NAMES, answer=answer, length=16)
  options = LearnerOptions(batch=3, score_batch=2)
  learner = learners.make(model, options, seed=0, examples=0)
  learner.learn([(query, i) for i, query in enumerate(QUERIES)] * 150)
  assert learner.scores(QUERIES).argmax(axis=1).tolist() == [0, 1, 2]
  # It goes on from a file, optimizer and levels included.
  path, header = tmp_path / 'state.npz', state_file.Header('', '')
  state_file.write(path, learner.state(), header)
  other = learners.make(model, options, seed=0, examples=0)
  other.restore(state_file.fill(other.state(), state_file.read(path)[1]))
  for one in (learner, other):
    one.learn([(query, 1) for query in QUERIES] * 3)
  np.testing.assert_array_equal(other.scores(QUERIES), learner.scores(QUERIES))


def test_refuses():
  with pytest.raises(ValueError, match="answer='word'; choose one of name"):
    language.classifier(config(), NAMES, answer='word')
  changed = config()
  changed.optimizer.name = 'delta_gradient_descent'
  with pytest.raises(ValueError, match='reads the inputs of layers'):
    language.classifier(changed, NAMES)
