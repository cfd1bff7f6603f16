"""Training on tasks of text: rows, streams, sizes, backgrounds, and a run."""

import re

from conftest import write_texts
import numpy as np
import pytest

import hope
from hope.config import base_config
from hope.data import open_data
from hope.data.background import open_background
from hope.run import metrics
from hope.tasks import TEXT_TASKS
from hope.training import loop

SEPARATOR = 256


def make_config(name, seq_len=640, **options):
  config = base_config()
  config.data.source, config.data.seq_len = f'synthetic:{name}', seq_len
  config.data.batch_size, config.evals.batches = 4, 2
  config.data.task.update(options)
  return config


@pytest.fixture
def text(tmp_path):
  """A folder with two texts: 40 sentences."""
  for name in ('a', 'b'):
    words = (
      f'{name} sentence of just ten words has the number {i}.'
      for i in range(20)
    )
    (tmp_path / f'{name}.txt').write_text('\n'.join(words))
  return str(tmp_path)


def rows(batches):
  """(prompt and answer as text, what counts as text, tokens) of each row."""
  for batch in batches:
    for inputs, targets, weights in zip(
      batch['inputs'], batch['targets'], batch['weights'], strict=True
    ):
      size = int((inputs != SEPARATOR).sum())
      assert (inputs[size:] == SEPARATOR).all()
      assert not weights[size:].any() and not targets[weights == 0].any()
      counted = targets[weights == 1]
      yield (
        bytes(inputs[:size].astype(np.uint8)).decode(),
        bytes(counted.astype(np.uint8)).decode(),
        size + 1,
      )


# ------------------------------------------------------------------------ rows


@pytest.mark.parametrize('name', list(TEXT_TASKS))
def test_a_row_is_a_prompt_and_the_right_answer(name, text):
  """What counts is the solver's answer to the rest, and a newline."""
  task = TEXT_TASKS[name]
  length = 3200 if task.score is None else 1600
  data = open_data(make_config(name, length, text=text))
  batches = [next(data.train_iterator()), *data.eval_batches()]
  assert batches[0]['inputs'].shape == (4, length)
  kinds = [batches[0][k].dtype for k in ('inputs', 'targets', 'weights')]
  assert kinds == [np.int32, np.int32, np.float32]
  for read, counted, size in rows(batches):
    assert counted[0] == ' ' and counted[-1] == '\n'
    assert read.endswith(counted[:-1])
    prompt = read.removesuffix(counted[:-1])
    assert task.solve(prompt).strip() == counted.strip()
    # Another sentence of the background would not fit.
    assert length - 100 < size <= length
  assert data.metric == 'exact_match' and data.bytes_per_token is None


def test_the_prompt_counts_where_it_is_asked_for():
  """In training, and not in evaluations."""
  data = open_data(make_config('s1', predict_prompt=True))
  plain = open_data(make_config('s1'))
  batch, answers = next(data.train_iterator()), next(plain.train_iterator())
  assert np.array_equal(batch['inputs'], answers['inputs'])
  for read, counted, _ in rows([batch]):
    assert read[1:] + '\n' == counted
  for one, two in zip(data.eval_batches(), plain.eval_batches(), strict=True):
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert one['weights'].sum() == 4 * len(' 1234567\n')


def test_a_row_is_a_function_of_seed_and_index(text):
  def read(seed, split='train', **options):
    config = make_config('mk1', 1200, text=text, **options)
    config.seed = seed
    data = open_data(config)
    batches = data.eval_batches()
    if split == 'train':
      iterator = data.train_iterator()
      batches = [next(iterator) for _ in range(2)]
    return [x for x, _, _ in rows(batches)]

  train, heldout = read(0), read(0, 'heldout')
  assert train == read(0) and heldout == read(1, 'heldout')
  assert len({*train, *heldout, *read(1)}) == 24
  epochs = read(0, examples=4)
  assert sorted(epochs[:4]) == sorted(epochs[4:])


def test_sizes_are_drawn_evenly():
  """Every size of a line of the repetition, as often."""
  config = make_config('s1', 1024, min_size=600, max_size=1000)
  config.data.batch_size, config.evals.batches = 100, 4
  sizes = [size for _, _, size in rows(open_data(config).eval_batches())]
  assert 500 < min(sizes) and max(sizes) <= 1000
  # A prompt is up to a line of 89 letters shorter than its size.
  assert np.mean(sizes) == pytest.approx(800 - 44.5, abs=4 * 120 / 20)
  counts, _ = np.histogram(sizes, 4, (570, 940))
  assert counts.min() > 60


def test_bins_of_longer_rows():
  config = make_config('s1', 640)
  config.evals.longer = (1000, 1300)
  bins = open_data(config).longer_batches()
  assert list(bins) == ['641-1000', '1001-1300']
  for name, batches in bins.items():
    least, most = map(int, name.split('-'))
    assert batches[0]['inputs'].shape[1] % 640 == 0
    for _, _, size in rows(batches):
      assert least - 100 < size <= most


def test_a_file_of_tokens(tmp_path, text):
  """A byte-pair encoding: sizes are in its tokens, and it gives all back."""
  write_texts(tmp_path / 'more', 100)
  config = base_config()
  config.data.source = f'text:{tmp_path}/more/*.txt'
  config.data.heldout_fraction = 0.2
  config.data.tokenizer = 'bpe-train:290'
  open_data(config, str(tmp_path / 'run'))
  path = tmp_path / 'run' / 'tokenizer.json'
  config = make_config('mv', 800, text=text)
  config.data.tokenizer = f'bpe:{path}'
  data = open_data(config)
  batch = next(data.train_iterator())
  for inputs, targets, weights in zip(
    batch['inputs'], batch['targets'], batch['weights'], strict=True
  ):
    filled = int(np.flatnonzero(weights)[-1]) + 1
    assert 800 - 80 < filled <= 800
    answer = data.tokenizer.decode(targets[weights == 1])
    read = data.tokenizer.decode(inputs[:filled])
    prompt = read.removesuffix(answer[:-1])
    assert f' {TEXT_TASKS["mv"].solve(prompt)}\n' == answer
  assert data.vocab_size == 290


# ----------------------------------------------------------------- backgrounds


def test_sentences_of_files(tmp_path):
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'one.txt').write_text(
    'One  is\nhere. Two? "No."  \n \nA title\n\n'
  )
  (tmp_path / 'a.txt').write_text('Zero is 0.5! And')
  (tmp_path / 'c.md').write_text('Not read.')
  found = open_background(str(tmp_path))
  assert found.sentences == (
    *('Zero is 0.5!', 'And', 'One is here.', 'Two?', '"No."', 'A title'),
  )
  again = open_background(f'{tmp_path}/**/*.txt')
  assert again == found and found.fingerprint
  (tmp_path / 'a.txt').write_text('Zero is 0.6! And')
  assert open_background(str(tmp_path)).fingerprint != found.fingerprint
  assert open_background(f'{tmp_path}/c.md').sentences == ('Not read.',)
  assert open_background(None) == ((), None)


def test_backgrounds_that_are_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'none.txt'):
    with pytest.raises(ValueError, match=r'data\.task\.text=.*no file matches'):
      open_background(str(path))
  (tmp_path / 'a.txt').write_text(' \n')
  with pytest.raises(ValueError, match='no file has a sentence'):
    open_background(str(tmp_path))
  (tmp_path / 'a.txt').write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match='not UTF-8'):
    open_background(str(tmp_path))


def test_another_background_is_another_run(tmp_path, text):
  state = open_data(make_config('s2', text=text)).train_iterator().get_state()
  open_data(make_config('s2', text=text)).train_iterator().set_state(state)
  (tmp_path / 'a.txt').write_text('This is another one. And one more of them.')
  iterator = open_data(make_config('s2', text=text)).train_iterator()
  with pytest.raises(ValueError, match='content of the background was'):
    iterator.set_state(state)


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
  ('name', 'seq_len', 'options', 'message'),
  [
    ('s2', 640, {}, r'text=None: .*none was given.*data\.task\.text'),
    ('qa1', 900, {}, r'text=None: None of the 0 .*data\.task\.text'),
    ('s1', 300, {}, r'synthetic:s1, data\.seq_len=300.*cannot hold'),
    ('s1', 640, {'min_size': 300}, r'min_size=300.*cannot hold'),
    ('papers1', 640, {}, 'cannot hold 8 records.*Rows hold 640 tokens'),
    ('s1', 640, {'min_size': 641}, 'must ascend'),
    ('s1', 640, {'min_size': 600, 'max_size': 500}, 'must ascend'),
    ('s1', 640, {'max_size': 700}, 'must ascend'),
  ],
)
def test_rows_that_cannot_be_drawn_are_refused(name, seq_len, options, message):
  with pytest.raises(ValueError, match=message):
    open_data(make_config(name, seq_len, **options)).train_iterator()


def test_other_refusals():
  config = make_config('s1')
  config.data.tokenizer = 'bpe-train:300'
  with pytest.raises(ValueError, match='no documents to train it on'):
    open_data(config)
  with pytest.raises(ValueError, match='did you mean s1|Allowed: .*patients1'):
    open_data(make_config('s9')).train_iterator()
  config = make_config('s1')
  config.evals.longer = (600,)
  with pytest.raises(ValueError, match=r'600 must be above 640.*data\.seq_len'):
    open_data(config).longer_batches()


# ----------------------------------------------------------------------- a run


def trained(workdir, steps):
  """A small model after some steps on needles, and its metrics."""
  config = make_config('s1', 512, min_size=480)
  config.model.pattern = 'attention+swiglu'
  config.model.num_layers, config.model.width = 1, 32
  config.model.num_heads = 2
  config.model.attention.max_context = 512
  config.compute.remat = False
  config.optimizer.learning_rate, config.optimizer.warmup_steps = 0.01, 2
  config.train.steps = config.evals.every = steps
  loop.run(config, str(workdir))
  (held,) = (x for x in metrics.read_metrics(workdir) if x['kind'] == 'eval')
  return hope.load(workdir), held


def test_a_run_reports_its_metrics_and_can_be_asked(tmp_path):
  model, held = trained(tmp_path / 'run', steps=2)
  assert 0 <= held['accuracy'] <= 1 and held['exact_match'] == 0
  found = model.evaluate()
  for name in ('loss', 'accuracy', 'exact_match'):
    assert found[name] == pytest.approx(held[name], rel=1e-5)
  assert 'bits_per_byte' in model.evaluate('Here we go. There and back again.')
  text = model.generate('What is the number?', tokens=4, temperature=0)
  assert text.startswith('What is the number?') and len(text) > 19


@pytest.mark.slow
def test_a_run_learns_what_answers_look_like(tmp_path):
  """A space, seven digits and a newline, of which two are always known.

  Digits cost ln 10 each at least where none is recalled, the first one ln 9.
  """
  model, held = trained(tmp_path / 'run', steps=600)
  floor = (np.log(9) + 6 * np.log(10)) / 9
  assert floor - 0.1 < held['loss'] < floor + 0.3  # ln 257 = 5.5 at the start
  assert held['accuracy'] > 2 / 9
  data = open_data(make_config('s1', 512))
  (batch, *_) = data.eval_batches()
  prompt, answer, _ = next(rows([batch]))
  prompt = prompt.removesuffix(answer[:-1])
  text = model.generate(prompt, tokens=9, temperature=0)
  assert re.fullmatch(r' [1-9]\d{6}\n', text.removeprefix(prompt))
