"""Tasks that a model is scored on: their options, examples, scores, files."""

import dataclasses

from evaluation_likelihood_test import logits_of, tiny_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hope
from hope import data as data_lib
from hope import fast_state, state_file, tasks
from hope.data.background import open_background
from hope.data.tokenization import ByteTokenizer, NumberTokenizer
from hope.evaluation import (
  generation,
  in_training,
  likelihood,
  position_sets,
  reading_file,
  rolling,
  runner,
  specs,
  text_sets,
)
from hope.evaluation.progress import ExampleProgress
from hope.parallel import mesh as mesh_lib
from hope.tasks import ChoiceExample, DataTask, Request, TextExample
from hope.tasks.datasets import DATA_TASKS
from hope.training import step as step_lib

WORDS = 'the memory learns slowly and the kernel forgets what it read '


@pytest.fixture(scope='module')
def model():
  """A byte model."""
  return tiny_model()


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
  """Texts of these tests have several pieces."""
  for module in (fast_state, generation, likelihood, rolling):
    monkeypatch.setattr(module, 'PIECE', 16)


# --------------------------------------------------------------------- options


def test_options_are_read_by_name():
  assert specs.parse('qa1:size=64,text=a b.txt,examples=3') == specs.Spec(
    'qa1:size=64,text=a b.txt,examples=3',
    'qa1',
    {'size': 64, 'text': 'a b.txt', 'examples': 3},
  )
  assert specs.parse('mqar').options == {}
  assert specs.parse('noisy_recall:noise=0.5').options == {'noise': 0.5}


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', "'' is not a task; choose one of mqar, .*qa1"),
    ('qa3', 'Did you mean qa'),
    ('qa1:sise=3', r"'sise' is not an option.*size, examples, text.*mean size"),
    ('qa1:size', "size='' must be a whole number"),
    ('qa1:size=x', "size='x' must be a whole number"),
    ('qa1:size=0', 'size=0 must be at least 1'),
    ('qa1:folder=x', "'folder' is not an option of it"),
    ('mqar:examples=0', 'examples=0 must be at least 1'),
    ('mqar:noise=nan', 'noise=nan must be a finite number'),
  ],
)
def test_wrong_options_are_said_in_a_line(text, message):
  with pytest.raises(ValueError, match=message) as error:
    specs.parse(text)
  assert '\n' not in str(error.value)
  config = hope.base_config()
  config.evals.tasks = (text,)
  with pytest.raises(ValueError, match=f'evals.tasks: task .*{message}'):
    hope.resolve(config)


def test_a_name_is_of_one_task():
  names = [*tasks.TASKS, *tasks.TEXT_TASKS, *DATA_TASKS]
  assert len(names) == len(set(names))


def test_a_task_that_comes_twice_has_its_options_in_its_name():
  found = specs.parse_all(['mqar', 'qa1:size=9', 'qa1:size=8'])
  assert list(found) == ['mqar', 'qa1:size=9', 'qa1:size=8']
  with pytest.raises(ValueError, match='given twice'):
    specs.parse_all(['qa1:size=9', 'qa1:size=9'])


# -------------------------------------------------------------------- examples


@pytest.fixture
def prose(tmp_path):
  """A file of background."""
  path = tmp_path / 'prose.txt'
  path.write_text(
    ' '.join(f'Sentence {i} of ten words says: {WORDS}.' for i in range(20))
  )
  return path


def open_set(text, tokenizer=None):
  return text_sets.open_text_set(
    specs.parse(text), tokenizer or ByteTokenizer()
  )


def test_drawn_examples_are_those_of_the_held_out_stream(prose):
  found = open_set(f'qa1:size=600,text={prose},examples=7')
  assert found.number == 7
  options = tasks.TextOptions(600, open_background(str(prose)).sentences, len)
  for i in (0, 6):
    rng = np.random.default_rng((1, 0, i))
    expected = tasks.TEXT_TASKS['qa1'].generate(rng, options)
    example = found.example(i)
    assert ''.join(example.pieces()) == ''.join(expected.pieces())


def test_what_cannot_be_drawn_is_said_before_anything_is_compiled(prose):
  for text, message in (
    ('qa1:size=1400', 'background sentences .* Background is what text=FILE'),
    (f'qa1:size=4,text={prose}', 'task .qa1.*Give a larger size'),
  ):
    with pytest.raises(ValueError, match=message):
      open_set(text)
  with pytest.raises(ValueError, match='task .qa1.* reads numbers, not text'):
    open_set(f'qa1:text={prose}', NumberTokenizer(9))


def test_data_of_another_content_are_another_identity(prose, monkeypatch):
  first = open_set(f'qa1:size=600,text={prose}').identity
  assert open_set(f'qa1:size=600,text={prose},examples=3').identity == first
  assert open_set(f'qa1:size=601,text={prose}').identity != first
  task = tasks.TEXT_TASKS['qa1']
  other = dataclasses.replace(task, generate=lambda rng, options: PROMPTS[0])
  with monkeypatch.context() as patch:
    patch.setitem(tasks.TEXT_TASKS, 'qa1', other)
    assert open_set(f'qa1:size=600,text={prose}').identity != first
  prose.write_text(prose.read_text() + ' Another sentence.')
  assert open_set(f'qa1:size=600,text={prose}').identity != first


# ---------------------------------------------------------------------- scores


def words_of(text):
  """A TextExample with three pieces."""
  third = len(text) // 3
  pieces = [text[:third], text[third:-third], text[-third:]]
  return TextExample(lambda: iter(pieces), '', ('e',), ())


PROMPTS = [words_of(WORDS[: 20 + 3 * i]) for i in range(11)]
CHOICES = [
  ChoiceExample(
    (Request(WORDS[:n], WORDS[n : n + 5]), Request(WORDS[:n], ' and on')), n % 2
  )
  for n in (9, 20, 31)
]
GUESSES = [ChoiceExample((Request(WORDS[:9], ' learns'),), 0)] * 2


@pytest.fixture
def made_up(monkeypatch):
  """Tasks read from a folder, whose examples are above."""

  def add(name, examples, score=None, **options):
    task = DataTask(lambda folder: examples, score, 'nowhere', **options)
    monkeypatch.setitem(DATA_TASKS, name, task)

  add(
    'prompts',
    PROMPTS,
    lambda output, example: min(1.0, len(output) / 20),
    stop=('e',),
    tokens=20,
  )
  add('choices', CHOICES)
  add('guesses', GUESSES)


def test_a_folder_must_be_named(made_up):
  with pytest.raises(ValueError, match='give folder=FOLDER.*nowhere'):
    open_set('choices')
  assert open_set('choices:folder=.').number == 3
  assert open_set('choices:folder=.,examples=2').number == 2
  assert open_set('choices:folder=.,examples=99').number == 3


def test_results_are_those_of_the_answers(model, made_up):
  found = runner.evaluate(model, open_set('choices:folder=.'), 4)
  answers = likelihood.answers(model, CHOICES)
  for name in ('accuracy', 'accuracy_norm', 'accuracy_bytes'):
    share = np.mean([x[name] for x in answers])
    assert found[name].value == share
    assert found[name].low < share < found[name].high or share in (0, 1)
  found = runner.evaluate(model, open_set('guesses:folder=.'), 4)
  (likely,) = likelihood.log_likelihoods(model, [GUESSES[0].requests[0]])
  assert found['perplexity'].value == pytest.approx(
    np.exp(-likely.log_probability), rel=1e-4
  )
  assert found['accuracy'].value == likely.greedy


def test_outputs_are_scored_by_the_task(model, made_up):
  found = {}
  groups = list(text_sets.scores(model, open_set('prompts:folder=.'), batch=4))
  assert max(map(len, groups)) == 4 or len(groups) > 2
  for group in groups:
    found |= group
  assert sorted(found) == list(range(11))
  for i, example in enumerate(PROMPTS):
    (expected,) = generation.write(
      model, [example], generation.Ending(20, ('e',))
    )
    assert found[i]['output'] == expected
    assert found[i]['accuracy'] == min(1.0, len(expected) / 20)
  result = text_sets.results([found[i] for i in range(11)])
  assert result['accuracy'].value == pytest.approx(
    np.mean([x['accuracy'] for x in found.values()])
  )
  assert set(result) == {'accuracy'}


class Killed(BaseException):
  """In the place of a signal."""


@pytest.mark.parametrize('kills', [1, 3, 10])
def test_an_evaluation_goes_on_after_a_kill(
  model, made_up, tmp_path, monkeypatch, kills, capsys
):
  examples = open_set('prompts:folder=.')

  def run(name, identity=None):
    path = tmp_path / f'{name}.jsonl'
    identity = identity or {'model': 'x'}
    found = runner.evaluate_into(
      model, examples, path, identity, label='prompts', batch=4
    )
    lines = path.read_text().splitlines()
    return found, sorted(lines[1:])

  expected = run('whole')
  assert 'prompts 11/11' in capsys.readouterr().out
  original = runner.ScoreFile.append
  written = []

  def append(self, *args):
    written.append(args)
    original(self, *args)
    if len(written) % kills == 0 and len(written) < 11:
      raise Killed

  monkeypatch.setattr(runner.ScoreFile, 'append', append)
  for _ in range(12):
    try:
      found = run('killed')
      break
    except Killed:
      pass
  assert found == expected
  assert len(written) == 11  # no example was written twice
  with pytest.raises(ValueError, match="model is 'x' there and 'y' here"):
    run('killed', {'model': 'y'})


def test_a_killed_reading_goes_on(model, tmp_path, monkeypatch):
  """The state in the file is that of the prompt, and of no other one."""
  for module in (fast_state, generation):
    monkeypatch.setattr(module, 'PIECE', 8)
  monkeypatch.setattr(reading_file, '_PIECES', 1)
  monkeypatch.setattr(reading_file, 'SECONDS', 0.0)
  path, ending = tmp_path / 'reading.npz', generation.Ending(9, ())
  example = words_of(WORDS)
  (expected,) = generation.write(model, [example], ending)
  shown = []

  def stop(pieces):
    shown.append(pieces)
    if len(shown) == 4:
      raise Killed

  keeper = reading_file.keeper(path, model, 1, ['a', 0], stop)
  with pytest.raises(Killed):
    generation.write(model, [example], ending, keeper=keeper)
  header, _ = state_file.read(path)
  assert header.written_by == '3'
  keeper = reading_file.keeper(path, model, 1, ['a', 0], shown.append)
  assert generation.write(model, [example], ending, keeper=keeper) == [expected]
  assert shown == [1, 2, 3, 4, *range(4, len(WORDS) // 8 + 1)]
  other = reading_file.keeper(path, model, 1, ['a', 1])
  assert other.load() is None
  assert reading_file.keeper(path, model, 2, ['a', 0]).load() is None


def test_progress_says_how_long_it_takes(capsys):
  now = [0.0]
  with ExampleProgress('qa1', 10, 2, clock=lambda: now[0]) as progress:
    for now[0], done in ((20.0, 3), (40.0, 5)):
      progress.update(done)
    now[0] = 41.0
    progress.reading(999)  # a second later: no line
    now[0] = 55.0
    progress.reading(4096)
    now[0] = 60.0
    progress.update(10)
  assert capsys.readouterr().out.splitlines() == [
    'qa1 3/10  ? examples/s  ? left',
    'qa1 5/10  0.1 examples/s  50s left',
    'qa1 5/10  reading a prompt: 4,096 tokens',
    'qa1 10/10  0.175 examples/s  0s left',
  ]


def test_files_of_tasks_have_names_of_their_own():
  names = {
    runner.file_name(specs.parse(text), 7)
    for text in (
      'qa1',
      'qa1:size=8',
      'qa1:text=a/b',
      'qa1:text=a_b',
      f'qa1:text={"x" * 300}',
      f'qa1:text={"x" * 301}',
    )
  }
  assert len(names) == 6 and max(map(len, names)) < 120
  assert 'qa1_step_7.jsonl' in names
  more = [specs.parse(f'qa1:examples={n}') for n in (5, 6)]
  assert runner.file_name(more[0], 7) == runner.file_name(more[1], 7)


# ------------------------------------------------------------- by the context


def test_a_text_by_its_context(model):
  text = WORDS[:43]
  tokens = list(text.encode())
  whole = jnp.zeros((1, 72), jnp.int32).at[0, : len(tokens)].set(tokens)
  logits = np.asarray(logits_of(model.graph, model.params, whole)[0], float)
  losses = [
    np.log(np.exp(logits[i - 1]).sum()) - logits[i - 1][tokens[i]]
    for i in range(1, 43)
  ]
  hits = [np.argmax(logits[i - 1]) == tokens[i] for i in range(1, 43)]
  found = rolling.evaluate(model, [text[:5], text[5:6], text[6:]])
  assert found.whole.loss == pytest.approx(np.mean(losses), abs=1e-4)
  assert found.whole.accuracy == pytest.approx(np.mean(hits))
  assert found.whole.tokens == found.whole.bytes == 42
  bins = {
    1: (1, 2),
    2: (2, 4),
    4: (4, 8),
    8: (8, 16),
    16: (16, 32),
    32: (32, 43),
  }
  assert found.by_context.keys() == bins.keys()
  for least, (start, end) in bins.items():
    part = found.by_context[least]
    expected = np.mean(losses[start - 1 : end - 1])
    assert part.loss == pytest.approx(expected, abs=1e-4)
    assert part.tokens == end - start
    values = part.to_dict()
    assert values['bits_per_byte'] == pytest.approx(
      expected / np.log(2), abs=1e-4
    )
    assert values['perplexity'] == pytest.approx(np.exp(expected), rel=1e-4)
  for short in ([], ['a']):
    with pytest.raises(ValueError, match='no token to predict'):
      rolling.evaluate(model, short)
  with pytest.raises(ValueError, match='reads numbers'):
    rolling.evaluate(model._replace(tokenizer=NumberTokenizer(9)), [text])


def test_bytes_of_tokens_that_are_not_counted_are_not_either(model):
  """'é' is two bytes: the text of three tokens has two that count."""
  found = rolling.evaluate(model, ['é.'])
  assert (found.whole.tokens, found.whole.bytes) == (2, 2)


# ------------------------------------------------------------------ by position


def synthetic(**fields):
  """A tiny resolved configuration of mqar."""
  config = hope.base_config()
  config.model.pattern = 'delta+cms'
  config.model.num_layers, config.model.width = 1, 8
  config.model.num_heads, config.model.cms.periods = 1, (1,)
  config.model.vocab_size = 40
  config.data.source, config.data.seq_len = 'synthetic:mqar', 32
  config.data.task.vocab_size, config.data.task.num_pairs = 32, 2
  config.data.batch_size = 4
  config.update_from_flattened_dict(fields)
  return hope.resolve(config)


def test_a_task_by_position_is_that_of_the_held_out_data():
  config = synthetic()
  found = position_sets.open_position_set(
    specs.parse('mqar:num_pairs=4,examples=10'), config
  )
  weights = np.concatenate([b['weights'] for b in found.batches])
  assert weights.shape == (12, 32)
  assert (weights.sum(axis=1) > 0).tolist() == [True] * 10 + [False] * 2
  mesh = mesh_lib.one_device()
  graph, params = step_lib.build_model(config)
  step = step_lib.eval_step(graph, mesh, found.metric)
  result = position_sets.evaluate(found, step, params, lambda batch: batch)
  trained = synthetic(**{'data.task.num_pairs': 4, 'evals.batches': 3})
  data = data_lib.open_data(trained)
  arrays = [
    np.concatenate([b[name] for b in data.eval_batches()])[:10]
    for name in ('inputs', 'targets', 'weights')
  ]
  logits = logits_of(graph, params, jnp.asarray(arrays[0]))
  predictions = np.argmax(logits, axis=-1)
  task = tasks.TASKS['mqar']
  score = task.score(predictions, *arrays[1:])
  assert result['accuracy'].value == pytest.approx(score, abs=1e-6)
  assert result['accuracy'].low is not None and result['loss'].low is None
  rows = position_sets.with_intervals({'accuracy': 0.5}, 10)['accuracy']
  assert result['exact_match'].high == pytest.approx(
    position_sets.of_share(result['exact_match'].value, 10).high
  )
  assert rows.low < 0.25  # of 10 rows, and not of their 40 answers


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('mqar:vocab_size=64', 'vocab_size=64 is above the 40 tokens of the model'),
    ('mqar:seq_len=8,num_pairs=4', 'data.seq_len=8 is too small for mqar'),
    ('compression', 'models with model.decoder=True'),
  ],
)
def test_what_the_model_cannot_read_is_refused(text, message):
  with pytest.raises(ValueError, match=f'task .{text[:4]}.*{message}'):
    position_sets.open_position_set(specs.parse(text), synthetic())


def test_lengths_that_are_not_given_hold_an_example():
  config = synthetic(**{'data.source': 'synthetic:copy'})
  for text, length in (
    (
      'mqar:num_pairs=4',
      tasks.TASKS['mqar']
      .least(synthetic(**{'data.task.num_pairs': 4}).data.task)
      .seq_len,
    ),
    ('copy:num_pairs=3', 32),
    ('copy:num_pairs=3,seq_len=48', 48),
  ):
    found = position_sets.open_position_set(specs.parse(text), config)
    assert found.batches[0]['inputs'].shape == (4, length)


# ------------------------------------------------------------------ in training


def test_tasks_of_texts_need_a_run_of_one_process(prose, monkeypatch):
  config = hope.base_config()
  config.evals.tasks = (f'qa1:size=600,text={prose}',)
  config = hope.resolve(config, 257)
  rows = range(8)
  assert list(in_training.open_sets(config, ByteTokenizer(), rows)) == ['qa1']
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match=r'evals.tasks: .* has 2 processes'):
    in_training.open_sets(config, ByteTokenizer(), rows)
