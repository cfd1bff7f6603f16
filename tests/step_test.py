"""The optimizer of a run: levels of the CMS move at their own periods."""

import jax
import jax.numpy as jnp
import numpy as np

from hope import config as config_lib
from hope.training import step as step_lib


def test_levels_move_at_their_periods():
  config = config_lib.base_config()
  config.model.cms.periods = (1, 3)
  config.optimizer.warmup_steps = 0
  config = config_lib.resolve(config, 16)
  kernel = {'up': {'kernel': jnp.ones((2, 2))}}
  params = {
    'embed': {'embedding': jnp.ones((3, 2))},
    'blocks': {'cms': {'level_0': kernel, 'level_1': kernel}},
  }
  tx = step_lib.make_optimizer(config)
  state, moved = tx.init(params), {'embed': [], 'level_0': [], 'level_1': []}
  for t in range(7):
    updates, state = tx.update(params, state, params)
    levels = {'embed': updates['embed'], **updates['blocks']['cms']}
    for name, tree in levels.items():
      if any(np.any(x) for x in jax.tree.leaves(tree)):
        moved[name].append(t)
  assert moved['embed'] == moved['level_0'] == list(range(7))
  assert moved['level_1'] == [2, 5]
