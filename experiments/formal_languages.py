"""Table 5 (state tracking): six formal languages, and the parity of a string.

  hope-train --config=formal_languages:language=parity
  hope-train --config=formal_languages:language=anbn,mixer=attention,seed=1
  hope-train --config=formal_languages:language=parity_of_string \
    --config.evals.longer="(100, 256)"

Languages: parity, aa_star, abab_star, anbn, anbncn, shuffle2 (Table 5) and
parity_of_string; `hope/tasks/formal_languages.py` says what is asked. A run
trains on lengths of 2 to 50 (Bin0) and reports accuracy and exact match, the
share of strings that are right at every position, of Bin0 and of 51 to 100
(Bin1); parity_of_string trains on 1 to 40 and reports 41 to 256, and so do
even_pairs, cycle_navigation and modular_arithmetic (`hope/tasks/chomsky.py`).

2 layers, width 32, 2 heads, batches of 32, AdamW at 3e-3 without weight decay.
Arguments: language, mixer (titans, attention, delta), steps, seed. The paper:
Hope has 100% of everything.

mixer=titans has linear memories with chunks of one token, and static k, v, eta
and alpha. Its layers turn a state around: a memory learns its own M(v) for k,
at rates up to 4, so that with v = -k its M(k) changes sign, and the bounds of
targets and errors keep its size. (What the default learns, v itself, does not
carry over: it was at chance from 41 bits on.) For languages that count, anbn,
anbncn and shuffle2, the first layer counts: it adds, and neither forgets nor
erases.
"""

from hope.config import base_config, parse_arg
from hope.fields import Field
from hope.tasks import TASKS, chomsky, formal_languages

_STATIC = 'hidden_multiple=0, self_modifying=False, momentum=False'
_COUNTS = "objective='dot', retention=False, erase=False"
_TURNS = "objective='l2', target='self', anchor='zero', eta_max=4.0"
_COUNTING = ('anbn', 'anbncn', 'shuffle2')
_LANGUAGES = formal_languages.LANGUAGES | chomsky.LANGUAGES
# Shortest and longest in training, and the longest in evaluation.
_LENGTHS = (2, 50, 100)
_LENGTHS_OF_WHOLE_STRINGS = (1, 40, 256)


def get_config(arg: str = ''):
  """A small model and a language."""
  args = parse_arg(
    arg,
    language=Field('parity', 'To learn.', choices=tuple(_LANGUAGES)),
    mixer='titans',
    steps=Field(1000, 'Updates.', minimum=1),
    seed=0,
  )
  config = base_config()
  config.seed = args.seed
  data, model, optimizer = config.data, config.model, config.optimizer
  whole = _LANGUAGES[args.language].mark != ''
  low, high, longest = _LENGTHS_OF_WHOLE_STRINGS if whole else _LENGTHS
  data.source = f'synthetic:{args.language}'
  data.batch_size = 32
  data.task.min_length, data.task.max_length = low, longest
  # Attention sees all of the longest string.
  model.attention.max_context = TASKS[args.language].least(data.task).seq_len
  data.task.max_length = high
  least = TASKS[args.language].least(data.task)
  data.seq_len, data.task.vocab_size = least.seq_len, least.vocab_size
  config.evals.longer = (longest,)
  model.pattern = f'{args.mixer}+cms'
  if args.mixer == 'titans':
    model.pattern = ', '.join(
      f'titans({_STATIC}, {what})+cms'
      for what in (_COUNTS if args.language in _COUNTING else _TURNS, _TURNS)
    )
  model.num_layers, model.width, model.num_heads = 2, 32, 2
  model.tied_head = False
  model.titans.chunk_size = model.titans.projection_chunk_size = 1
  config.compute.remat = False
  config.train.steps = args.steps
  optimizer.learning_rate, optimizer.weight_decay = 3e-3, 0.0
  optimizer.warmup_steps = min(20, args.steps)
  config.log.every = 20
  config.evals.every = config.checkpoint.every = 200
  return config
