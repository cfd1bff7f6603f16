"""Hope, a model whose memories go on learning while it reads.

An implementation of *Nested Learning* (Behrouz, Razaviyayn, Zhong, Mirrokni,
2025; arXiv:2512.24695) in JAX and Flax: self-referential Titans, a Continuum
Memory System, and optimizers that are memories themselves.

Train a model, and let what it has become learn from a text:

  import hope

  config = hope.experiment('smoke')    # or 'mqar:seed=1', or 'my/file.py'
  hope.train(config, 'runs/smoke')     # called again, it goes on
  model = hope.load('runs/smoke')
  state = model.read(text)             # its memories learn from the text
  model.evaluate(more, state)          # loss, accuracy, bits per byte
  print(model.generate('def ', state=state))
  model.save_state('read.npz', state)  # model.load_state('read.npz') reads it

From a shell, use hope-train, hope-generate, hope-evaluate and hope-describe;
--help lists the flags of each.

Where to go on:

  experiment    the configuration of an included experiment, or of a file
  base_config   all settings with their defaults
  resolve       fills and checks a configuration
  train         trains, or goes on training
  load          a trained model: call it, read, generate, evaluate, keep a state
  Hope          the model itself, a Flax NNX module
  describe      what learns in a model, and how often, as a table
  match_parameters, count_parameters    models of equal size
  MIXERS, FEEDFORWARD    the parts that a block can be made of, by name
  TASKS         the generated tasks that a model can be trained on, by name

Below that: `hope.memory` has the equations of the inner learning as functions
of arrays (chunk_update, token_update), `hope.mixers` and `hope.feedforward` the
parts of a block, `hope.data` what is read, `hope.profiling` how fast it is. The
optimizers are a package of their own, `optimizers`.

Names are imported when they are first used: `import hope` does not load jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hope.config import base_config as base_config
  from hope.config import resolve as resolve
  from hope.experiment_files import experiment as experiment
  from hope.fast_state import FastState as FastState
  from hope.feedforward import FEEDFORWARD as FEEDFORWARD
  from hope.levels import table as describe  # noqa: F401
  from hope.matching import count_parameters as count_parameters
  from hope.matching import match_parameters as match_parameters
  from hope.mixers import MIXERS as MIXERS
  from hope.model import Hope as Hope
  from hope.tasks import TASKS as TASKS
  from hope.trained import TrainedModel as TrainedModel
  from hope.trained import evaluate as evaluate
  from hope.trained import generate as generate
  from hope.trained import load as load
  from hope.training.loop import run as train  # noqa: F401
  from hope.version import __version__ as __version__

# Where each public name is; the imports above say the same to type checkers.
_PLACES = {
  'FEEDFORWARD': 'hope.feedforward:FEEDFORWARD',
  'FastState': 'hope.fast_state:FastState',
  'Hope': 'hope.model:Hope',
  'MIXERS': 'hope.mixers:MIXERS',
  'TASKS': 'hope.tasks:TASKS',
  'TrainedModel': 'hope.trained:TrainedModel',
  '__version__': 'hope.version:__version__',
  'base_config': 'hope.config:base_config',
  'count_parameters': 'hope.matching:count_parameters',
  'describe': 'hope.levels:table',
  'evaluate': 'hope.trained:evaluate',
  'experiment': 'hope.experiment_files:experiment',
  'generate': 'hope.trained:generate',
  'load': 'hope.trained:load',
  'match_parameters': 'hope.matching:match_parameters',
  'resolve': 'hope.config:resolve',
  'train': 'hope.training.loop:run',
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
  """Imports a public name when it is first used."""
  if name not in _PLACES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, _, attribute = _PLACES[name].partition(':')
  value = getattr(importlib.import_module(module), attribute)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """The public names, and what every module has."""
  return sorted({*_PLACES, *(x for x in globals() if x.startswith('__'))})
