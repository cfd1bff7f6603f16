"""Which checkpoints are kept."""

import jax.numpy as jnp

from hope.run import checkpoint


def test_keeps_every_tenth_and_the_best(tmp_path):
  options = {'keep': 1, 'keep_every': 10, 'keep_best': 2}
  losses = {4: 1.0, 6: 3.0, 8: 2.0, 10: 4.0, 12: None, 14: 5.0, 16: None}
  with checkpoint.Checkpointer(tmp_path, **options) as saver:
    for step, loss in losses.items():
      saver.save(step, {'x': jnp.float32(step)}, data_state={}, loss=loss)
  kept = sorted(int(path.name) for path in tmp_path.iterdir())
  assert kept == [4, 8, 10, 16]
