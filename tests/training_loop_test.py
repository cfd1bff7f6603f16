"""What a run says and keeps, in runs of a second or two."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from hope import config as config_lib
from hope.parallel.mesh import one_device
from hope.run.checkpoint import open_checkpoints
from hope.training import loop
from hope.training import step as step_lib


def tiny(**fields):
  """A run of four steps of the smallest Hope-Attention."""
  config = config_lib.base_config()
  config.update_from_flattened_dict(
    {
      'model.pattern': 'attention+cms',
      'model.num_layers': 1,
      'model.width': 8,
      'compute.remat': False,
      'model.cms.periods': (1,),
      'data.source': 'synthetic:mqar',
      'data.task.num_pairs': 2,
      'data.seq_len': 16,
      'data.batch_size': 4,
      'optimizer.warmup_steps': 0,
      'train.steps': 4,
      'log.every': 1,
      'evals.batches': 2,
      'mesh.data': 1,
    }
    | fields
  )
  return config


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
  """Runs see one device, however many there are."""
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])


def test_what_is_opened_receives_a_resolved_configuration(
  tmp_path, monkeypatch
):
  """Before the mesh is made, sizes are filled in and nothing can change."""
  given = tiny()
  given.model.num_layers = None
  seen = []

  def make_mesh(config):
    seen.append(config)
    raise ValueError('seen')

  monkeypatch.setattr(loop.mesh_lib, 'make_mesh', make_mesh)
  with pytest.raises(ValueError, match='seen'):
    loop.run(given, str(tmp_path))
  (config,) = seen
  assert isinstance(config, ml_collections.FrozenConfigDict)
  assert config.model.num_layers == 4 and config.model.vocab_size is None
  assert given.model.num_layers is None


# Finite, as are losses and gradients, but for what it makes of the weights.
HUGE = {'optimizer.weight_decay': 3e38, 'optimizer.learning_rate': 10.0}


def test_an_update_that_is_not_finite_changes_nothing():
  config = config_lib.resolve(tiny(**HUGE), 256)
  graph, abstract = step_lib.abstract_state(config, one_device())
  state = step_lib.init_state(config, abstract)
  before = jax.tree.map(np.asarray, state)
  tokens = np.arange(4 * 17, dtype=np.int32).reshape(4, 17)
  batch = {
    'inputs': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'weights': np.ones((4, 16), np.float32),
  }
  update = step_lib.train_step(graph, config, abstract)
  for _ in range(2):
    state, metrics = update(state, batch)
    assert jnp.isfinite(metrics['loss'])
    assert jnp.isfinite(metrics['gradient_norm'])
    assert not metrics['healthy']
  assert not state.healthy
  jax.tree.map(np.testing.assert_array_equal, state[:3], before[:3])


def test_a_run_ends_at_an_update_that_is_not_finite(tmp_path):
  config = tiny(**HUGE)
  with pytest.raises(loop.NonFiniteLossError, match='what it would update to'):
    loop.run(config, str(tmp_path))
  resolved = config_lib.resolve(config, 256)
  with open_checkpoints(tmp_path, resolved) as checkpoints:
    _, abstract = step_lib.abstract_state(resolved, one_device())
    assert checkpoints.restore_latest(abstract) is None
  assert (tmp_path / 'nonfinite_batch_step_1.npz').exists()


def test_a_finished_run_has_the_numbers_of_its_last_step(tmp_path, capsys):
  loop.run(tiny(), str(tmp_path))
  first = capsys.readouterr().out
  result = (tmp_path / 'results.json').read_text()
  assert 'after 4 steps, 256 tokens' in first
  for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():
    assert 'healthy' not in json.loads(line)
  loop.run(tiny(**{'train.steps': 2}), str(tmp_path))
  assert 'after 4 steps, 256 tokens' in capsys.readouterr().out
  assert (tmp_path / 'results.json').read_text() == result


def test_a_batch_that_no_memory_holds(tmp_path):
  config = tiny(**{'data.batch_size': 2**24, 'data.seq_len': 2**16})
  with pytest.raises(ValueError, match='^data.batch_size=.* GiB; give smaller'):
    loop.run(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
