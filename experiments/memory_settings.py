"""Tasks and settings of `experiments.memories`.

A setting is a mixer with options, as `model.pattern` says it.
"""

from typing import Any

from experiments import formal_languages, mqar, smoke, text_memory
from hope import matching
from hope.config import resolve
from hope.tasks.formal_languages import LANGUAGES

_STATIC = {'self_modifying': False}
_PLAIN = {'output_gate': False}
_FROZEN = _PLAIN | {'objective': 'l2', 'momentum': True, 'target': 'self'}
_DELTA = _PLAIN | {'objective': 'delta', 'momentum': False, 'target': 'slow'}
_LINEAR = _DELTA | _STATIC | {'hidden_multiple': 0}
_NEGATIVE = {'step': 'relative', 'eta_max': 2.0}
_GATE = {'output_gate': True}
_Q_FAST = {'q_memory': True, 'projection_rate': 0.73}
TASKS = (
  *('text', 'main', 'recall-8', 'recall-16', 'remapping', 'aliases'),
  *('s3', 's5', *LANGUAGES),
)
# Mixer and options by the name of a setting.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
  # All gradients frozen over a chunk, momentum, self-generated targets.
  'frozen': ('titans', _FROZEN),
  'frozen-static': ('titans', _FROZEN | _STATIC),
  # Published, with its output gate; and what is nearest to it in Titans.
  'gated_deltanet': ('delta', {'rule': 'gated_deltanet'}),
  'linear-dot': ('titans', _LINEAR | {'objective': 'dot'}),
  'linear-dot-gate': ('titans', _LINEAR | _GATE | {'objective': 'dot'}),
  'linear-delta': ('titans', _LINEAR | {'step': 'relative'}),
  'linear-negative': ('titans', _LINEAR | _NEGATIVE),
  'delta': ('titans', _DELTA),
  'delta-static': ('titans', _DELTA | _STATIC),
  'delta-static-self': ('titans', _DELTA | _STATIC | {'target': 'self'}),
  'delta-static-mixed': ('titans', _DELTA | _STATIC | {'target': 'mixed'}),
  'delta-self': ('titans', _DELTA | {'target': 'self'}),
  'delta-mixed': ('titans', _DELTA | {'target': 'mixed'}),
  'delta-momentum': ('titans', _DELTA | {'momentum': True}),
  'delta-after': ('titans', _DELTA | {'read': 'after'}),
  'delta-gate': ('titans', _DELTA | _GATE),
  'delta-gate-static': ('titans', _DELTA | _GATE | _STATIC),
  'delta-gate-static-after': (
    'titans',
    _DELTA | _GATE | _STATIC | {'read': 'after'},
  ),
  'delta-gate-static-relative': (
    'titans',
    _DELTA | _GATE | _STATIC | {'step': 'relative'},
  ),
  'delta-gate-static-16': (
    'titans',
    _DELTA | _GATE | _STATIC | {'chunk_size': 16, 'projection_chunk_size': 16},
  ),
  'frozen-gate': ('titans', _FROZEN | _GATE),
  'delta-relative': ('titans', _DELTA | {'step': 'relative'}),
  'delta-negative': ('titans', _DELTA | _NEGATIVE),
  'delta-negative-static': ('titans', _DELTA | _NEGATIVE | _STATIC),
  # What the memories that generate learn, and how fast.
  'delta-slow-projections': ('titans', _DELTA | {'projection_target': 'slow'}),
  'delta-fast-projections': ('titans', _DELTA | {'projection_rate': 0.73}),
  'delta-l2-projections': ('titans', _DELTA | {'projection_objective': 'l2'}),
  'delta-q': ('titans', _DELTA | {'q_memory': True}),
  'delta-gate-q': ('titans', _DELTA | _GATE | {'q_memory': True}),
  'delta-gate-self': ('titans', _DELTA | _GATE | {'target': 'self'}),
  'delta-gate-static-self': (
    'titans',
    _DELTA | _GATE | _STATIC | {'target': 'self'},
  ),
  'delta-gate-mixed': ('titans', _DELTA | _GATE | {'target': 'mixed'}),
  'delta-gate-static-mixed': (
    'titans',
    _DELTA | _GATE | _STATIC | {'target': 'mixed'},
  ),
  'delta-gate-q-fast': ('titans', _DELTA | _GATE | _Q_FAST),
  'delta-gate-q-self': (
    'titans',
    _DELTA | _GATE | {'q_memory': True, 'target': 'self'},
  ),
  'delta-gate-q-fast-self': (
    'titans',
    _DELTA | _GATE | _Q_FAST | {'target': 'self'},
  ),
  'off': ('titans', _DELTA | {'eta_max': 0.0}),
}


def task_config(name: str, seed: int, steps: int):
  """The configuration of a task, without its setting.

  Args:
    name: of the task.
    seed: of parameters and data.
    steps: updates; 0: as many as the task has.

  Raises:
    ValueError: if there is no such task.
  """
  if name == 'text':
    config = text_memory.get_config(f'seed={seed},steps=200')
    model = config.model
    model.num_layers, model.width, model.num_heads = 2, 128, 2
    model.titans.chunk_size = model.titans.projection_chunk_size = 64
  elif name == 'main':
    config = smoke.get_config()
    config.unlock()
    config.seed = seed
  elif name in ('recall-8', 'recall-16'):
    config = mqar.get_config(f'seed={seed}')
    if name == 'recall-16':
      config.data.task.num_pairs, config.data.seq_len = 16, 128
      config.data.batch_size, config.train.steps = 16, 1000
  elif name in LANGUAGES:
    config = formal_languages.get_config(f'language={name},seed={seed}')
  elif name in ('remapping', 'aliases'):
    config = mqar.get_config(f'seed={seed}')
    config.data.source, config.data.batch_size = f'synthetic:{name}', 16
    config.data.seq_len, config.data.task.vocab_size = 128, 64
    config.train.steps = 1000
    if name == 'aliases':  # a name may stand for one of a few tokens before
      # One layer, so that names are not followed from layer to layer.
      config.model.num_layers = 1
      config.data.seq_len, config.data.task.num_pairs = 36, 4
      config.data.task.vocab_size = 24
      config.data.batch_size, config.model.width = 32, 32
      titans = config.model.titans
      titans.chunk_size = titans.projection_chunk_size = 1
  elif name in ('s3', 's5'):
    config = formal_languages.get_config(f'seed={seed}')
    config.data.source, config.data.task.max_length = f'synthetic:{name}', 32
    config.data.seq_len, config.data.task.vocab_size = 32, 121
    config.evals.longer = (64,)
  else:
    raise ValueError(f'--task={name} is none of {", ".join(TASKS)}.')
  if steps:
    config.train.steps = steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps)
  return config


def with_setting(config, setting: str, vocab_size: int, like: int | None):
  """A resolved configuration of a setting.

  Args:
    config: of the task.
    setting: in SETTINGS.
    vocab_size: of the data.
    like: parameters that it should have; None: as they are.
  """

  def build(hidden: float):
    mixer, options = SETTINGS[setting]
    said = ', '.join(f'{name}={x!r}' for name, x in options.items())
    config.model.pattern = f'{mixer}({said})+cms(hidden_multiple={hidden!r})'
    return resolve(config, vocab_size)

  first = build(1.0)
  if like is None:
    return first
  # The number of parameters is linear in the width of the feed-forward.
  one, two = matching.size(first), matching.size(build(2.0))
  found = build(round(1 + (like - one) / (two - one), 4))
  if abs(matching.size(found) / like - 1) > 0.01:
    raise ValueError(f'{setting!r} cannot have {like:,} parameters.')
  return found
