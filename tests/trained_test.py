"""A trained model: called, read into, asked for text, measured, kept."""

import json
from typing import Any

from conftest import write_texts
from flax import nnx
import jax
import numpy as np
import optax
import pytest
from readme_test import blocks

import hope
from hope import data as data_lib
from hope import fast_state, trained
from hope.parallel.mesh import one_device
from hope.run.checkpoint import open_checkpoints
from hope.run.workdir import check_workdir
from hope.training import step as step_lib

pytestmark = pytest.mark.xdist_group('trained')
TEXT = 'the kernel learns slowly and the memory forgets'
# Pieces of a stream are the whole, up to rounding.
BAR = 1e-4


def tiny_config(folder, mixer):
  """A small run of the texts in a folder."""
  config = hope.base_config()
  config.model.pattern = f'{mixer}+cms'
  config.model.attention.max_context = 64
  config.model.num_layers, config.model.width = 2, 16
  config.model.num_heads = 1
  config.model.cms.periods = (1, 3)
  titans = config.model.titans
  titans.chunk_size = titans.projection_chunk_size = 4
  config.data.source = f'text:{folder}/*.txt'
  config.data.heldout_fraction = 0.2
  config.data.seq_len, config.data.batch_size = 32, 4
  config.evals.batches = 2
  return config


@pytest.fixture(
  scope='module',
  params=['attention', pytest.param('titans', marks=pytest.mark.slow)],
)
def home(request, tmp_path_factory):
  """A folder with texts and a run of them, saved before its first step."""
  folder = tmp_path_factory.mktemp('home')
  write_texts(folder / 'text', 100)
  config, workdir = tiny_config(folder / 'text', request.param), folder / 'run'
  data = data_lib.open_data(config)
  config = hope.resolve(config, data.vocab_size)
  check_workdir(workdir, config.to_dict())
  _, abstract = step_lib.abstract_state(config, one_device())
  with open_checkpoints(workdir, config) as checkpoints:
    checkpoints.save(
      3,
      step_lib.init_state(config, abstract),
      data_state=data.train_iterator().get_state(),
    )
  return folder


@pytest.fixture(scope='module')
def model(home):
  """The model of that run."""
  return hope.load(home / 'run')


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
  """Texts of this test have several pieces, and a rest."""
  monkeypatch.setattr(fast_state, 'PIECE', 8)


@pytest.fixture(scope='module')
def whole(model):
  """Logits of one pass over the text."""
  tokens = model.tokenizer.encode(TEXT)[None]
  return jax.jit(nnx.merge(model.graph, model.params))(tokens)[0][0]


def changed(model):
  """The same model with one number of its parameters changed."""
  leaves, structure = jax.tree.flatten(model.params)
  leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].add(1.0)
  return trained.TrainedModel(
    model.config,
    model.tokenizer,
    model.graph,
    jax.tree.unflatten(structure, leaves),
    step=7,
    files=model._files,
    data_identity=model._data_identity,
  )


def test_it_says_what_it_is(model):
  size = sum(x.size for x in jax.tree.leaves(model.params))
  assert repr(model).endswith(f"run', step 3, {size:,} parameters)")
  assert model.config.model.vocab_size == 257


@pytest.mark.parametrize('length', [1, 7, 8, 23])
def test_logits_are_those_of_one_pass(model, whole, length):
  logits, _ = model(model.tokenizer.encode(TEXT)[:length])
  assert logits.shape == (length, 257)
  np.testing.assert_allclose(logits, whole[:length], atol=BAR)


def test_a_text_goes_on_from_a_state(model, whole):
  _, last = model(TEXT)
  state = model.read(TEXT[:5])
  state = model.read(TEXT[5:21], state)
  for _ in range(2):  # a state is a value: it is not used up
    logits, end = model(TEXT[21:], state)
    np.testing.assert_allclose(logits, whole[21:], atol=BAR)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=BAR), end, last
    )
  assert jax.tree.structure(model.read('', state)) == jax.tree.structure(state)


def test_reading_learns_and_leaves_the_parameters(model):
  before = jax.tree.map(np.asarray, model.params)
  start, state = model.read(''), model.read(TEXT)
  moved = jax.tree.map(
    lambda x, y: float(abs(x - y).max()), start.memories, state.memories
  )
  assert max(jax.tree.leaves(moved)) > 1e-3
  jax.tree.map(np.testing.assert_array_equal, model.params, before)


def test_streams_beside_each_other_are_apart(model):
  rows = np.stack([model.tokenizer.encode(TEXT)[i : i + 20] for i in (0, 9)])
  logits, state = model(rows)
  assert logits.shape == (2, 20, 257)
  for row, found in zip(rows, logits, strict=True):
    np.testing.assert_allclose(found, model(row)[0], atol=BAR)
  after, _ = model(rows[:, :3], state)
  np.testing.assert_allclose(
    after[1], model(np.append(rows[1], rows[1, :3]))[0][20:], atol=BAR
  )
  assert set(model.evaluate(rows)) == {'loss', 'accuracy'}


def test_a_text_is_measured(model, whole):
  tokens = model.tokenizer.encode(TEXT)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    whole[:-1], tokens[1:]
  )
  hits = np.argmax(whole[:-1], axis=-1) == tokens[1:]
  alone = model.evaluate(TEXT)
  np.testing.assert_allclose(alone['loss'], np.mean(losses), atol=BAR)
  np.testing.assert_allclose(alone['accuracy'], np.mean(hits))
  bits = alone['loss'] / np.log(2)
  np.testing.assert_allclose(alone['bits_per_byte'], bits)
  # After a state, the first token counts as well.
  after = model.evaluate(TEXT[20:], model.read(TEXT[:20]))
  np.testing.assert_allclose(after['loss'], np.mean(losses[19:]), atol=BAR)
  np.testing.assert_allclose(after['accuracy'], np.mean(hits[19:]))


def test_changed_data_are_refused(home):
  model = hope.load(home / 'run')
  (home / 'text' / 'new.txt').write_text('another text')
  try:
    with pytest.raises(ValueError, match='the data of .* have changed: '):
      model.evaluate()
  finally:
    (home / 'text' / 'new.txt').unlink()
  assert model.evaluate(TEXT)['loss'] > 0


def test_it_writes_on_from_a_state(model):
  options = {'tokens': 6, 'temperature': 0.0}
  text = model.generate(TEXT, **options)
  assert text == hope.generate(model, TEXT, **options)
  assert text.startswith(TEXT)
  state = model.read(TEXT[:9])
  for _ in range(2):
    assert TEXT[:9] + model.generate(TEXT[9:], state=state, **options) == text
  rest = model.generate(state=model.read(TEXT), **options)
  assert TEXT + rest == text


def test_a_state_is_kept_in_a_file(model, tmp_path):
  state = model.read(TEXT)
  model.save_state(tmp_path / 'state.npz', state)
  model.save_state(tmp_path / 'state.npz', state)  # replaces it
  loaded = model.load_state(tmp_path / 'state.npz')
  jax.tree.map(np.testing.assert_array_equal, loaded, state)
  assert [x.name for x in tmp_path.iterdir()] == ['state.npz']
  same = [model.evaluate(TEXT, x) for x in (state, loaded)]
  assert same[0] == same[1]
  _, two = model(model.tokenizer.encode(TEXT[:40]).reshape(2, 20))
  model.save_state(tmp_path / 'two.npz', two)
  jax.tree.map(
    np.testing.assert_array_equal, model.load_state(tmp_path / 'two.npz'), two
  )


def test_a_state_of_another_model_is_refused(model, tmp_path):
  state, other = model.read(TEXT), changed(model)
  model.save_state(tmp_path / 'state.npz', state)
  with pytest.raises(ValueError, match='another model: step 3 of .* step 7'):
    other.load_state(tmp_path / 'state.npz')
  cut = state._replace(logits=state.logits[:, :9])
  for act in (
    lambda: model.evaluate(TEXT, cut),
    lambda: model.save_state('x', cut),
  ):
    with pytest.raises(ValueError, match='The state is of another model'):
      act()


def test_damaged_states_are_refused(model, tmp_path):
  path = tmp_path / 'state.npz'
  model.save_state(path, model.read(TEXT))
  content = path.read_bytes()
  middle = len(content) // 2
  damaged = {
    'cut short': content[:middle],
    'empty': b'',
    'text': b'a text',
    'a bit': content[:middle]
    + bytes([content[middle] ^ 1])
    + content[middle + 1 :],
  }
  for name, bad in damaged.items():
    (tmp_path / name).write_bytes(bad)
    with pytest.raises(ValueError, match=f'{name} is not a state of a model'):
      model.load_state(tmp_path / name)
  np.savez(tmp_path / 'objects.npz', hope=np.array([{}], object))
  with pytest.raises(ValueError, match='is not a state'):
    model.load_state(tmp_path / 'objects.npz')


def test_states_that_do_not_fit_are_refused(model, tmp_path):
  model.save_state(tmp_path / 'state.npz', model.read(TEXT))
  with np.load(tmp_path / 'state.npz') as file:
    arrays: dict[str, Any] = dict(file)
  others = {
    'less': {k: v for k, v in arrays.items() if k != 'logits'},
    'more': arrays | {'more': np.zeros(3)},
    'one number': arrays | {'logits': np.float32(0)},
    'shape': arrays | {'logits': arrays['logits'][:, :9]},
    'type': arrays | {'logits': arrays['logits'].astype(np.float64)},
    'streams': arrays | {'logits': np.repeat(arrays['logits'], 2, axis=0)},
  }
  for name, other in others.items():
    np.savez(tmp_path / f'{name}.npz', **other)
    with pytest.raises(ValueError, match=f'{name}.npz does not fit the model'):
      model.load_state(tmp_path / f'{name}.npz')
  header = json.dumps({'format': 0, 'model': '', 'written_by': ''})
  arrays['hope'] = np.frombuffer(header.encode(), np.uint8)
  np.savez(tmp_path / 'old.npz', **arrays)
  with pytest.raises(ValueError, match='has format 0, and this version reads'):
    model.load_state(tmp_path / 'old.npz')


@pytest.mark.parametrize(
  ('act', 'message'),
  [
    (lambda m: m(''), 'The text is empty'),
    (lambda m: m.evaluate('a'), 'no token to predict; give more'),
    (lambda m: m.generate(''), 'The prompt is empty'),
    (lambda m: m.generate('a', tokens=0), 'tokens=0 must be at least 1'),
    (lambda m: m([1, 257]), 'token 257, which is outside the vocabulary'),
    (lambda m: m([0.5]), r'float64 \(1,\) are not tokens; give integers'),
    (lambda m: m.read(np.zeros((2, 1, 3), int)), r'\(2, 1, 3\) are not tokens'),
    (
      lambda m: m.read(np.zeros((2, 3), int), m.read('a')),
      'The state is of 1 streams and the text of 2',
    ),
    (lambda m: m.evaluate(None, m.read('a')), 'rows that start from no state'),
  ],
)
def test_what_cannot_be_is_a_line(model, act, message):
  with pytest.raises(ValueError, match=message) as error:
    act(model)
  assert '\n' not in str(error.value)


def test_the_readme_loads_a_run_that_learns(
  home, tmp_path, monkeypatch, capsys
):
  (program,) = blocks('README.md', 'python')
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'smoke').symlink_to(home / 'run')
  monkeypatch.chdir(tmp_path)
  names: dict[str, Any] = {}
  exec(program, names)
  fresh, after, *written = capsys.readouterr().out.splitlines()
  assert fresh != after
  assert written[0].startswith('def ')
  state = names['model'].load_state('read.npz')
  jax.tree.map(np.testing.assert_array_equal, state, names['state'])


def test_options_are_checked_before_anything_is_loaded(tmp_path):
  with pytest.raises(ValueError, match='temperature=-1.0 must not be negative'):
    hope.generate(tmp_path, 'a', temperature=-1.0)
  with pytest.raises(ValueError, match='holds no run: there is no config.json'):
    hope.generate(tmp_path, 'a')


def test_texts_of_every_length_need_the_same_programs(model):
  model.evaluate(TEXT, model.read(TEXT))
  programs: list[Any] = [
    *(
      fast_state._whole,
      fast_state._each,
      fast_state.prefill,
      fast_state.decode,
    )
  ]
  before = [program._cache_size() for program in programs]
  for length in (1, 5, 8, 13, 30):
    model.evaluate(TEXT[:length], model.read(TEXT[:length]))
  assert [program._cache_size() for program in programs] == before
