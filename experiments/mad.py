"""MAD (Table 4): six small tasks of recall, copying and memory.

  hope-train --config=mad:task=fuzzy_recall
  hope-train --config=mad:task=copy,mixer=attention,change=seq_len=512
  hope-train --config=mad:task=in_context_recall,scale=paper,rate=5e-4,decay=0.1

A width of 128 and two pairs of a mixer and a SwiGLU, no positions but those of
attention itself; AdamW without warm-up and clipping, and cosine to 1e-6. Tasks
and changes are those of `hope.tasks.mad.SETTINGS`; a run reports class_accuracy
on held-out examples, MAD's score. Arguments: task, change, mixer, rate, decay,
scale, steps, seed.

scale=paper is MAD's size: batches of 128, 200 epochs and 1,280 held-out
examples; it takes the best of rates 1e-4, 5e-4 and 1e-3, each without decay and
with 0.1. By default a run has 1,000 batches of 32, for a CPU; `steps` says
otherwise. The paper: Hope has 51.2, 100, 52.1, 99.7 and 85.2 (compression,
in-context and fuzzy recall, copying, memorization). The model of compression
decodes all tokens from the vector after the last one, as MAD's.
"""

from hope.config import base_config, parse_arg
from hope.fields import Field, nearest
from hope.mixers import MIXERS
from hope.tasks import mad

# Of the default scale.
_BATCH, _STEPS = 32, 1000


def get_config(arg: str = ''):
  """A small model, a task of MAD and a change of it."""
  args = parse_arg(
    arg,
    task=Field('in_context_recall', 'To learn.', choices=tuple(mad.SETTINGS)),
    change='baseline',
    mixer=Field('titans', 'Of both pairs.', choices=tuple(MIXERS)),
    rate=Field(1e-3, 'Peak learning rate.', above=0),
    decay=Field(0.0, 'Weight decay.', minimum=0),
    scale=Field('cpu', 'Batches and length.', choices=('cpu', 'paper')),
    steps=Field(0, "Updates; 0: the scale's.", minimum=0),
    seed=0,
  )
  settings = mad.SETTINGS[args.task]
  if args.change not in settings:
    raise ValueError(
      f'change={args.change} is no change of task={args.task}; allowed: '
      f'{", ".join(settings)}.{nearest(args.change, settings)}'
    )
  config = base_config()
  config.seed = args.seed
  config.data.source = f'synthetic:{args.task}'
  config.update_from_flattened_dict(settings[args.change])
  paper = args.scale == 'paper'
  config.data.batch_size = mad.BATCH if paper else _BATCH
  config.evals.batches = mad.HELDOUT // config.data.batch_size
  epochs = mad.EPOCHS * config.data.task.examples // mad.BATCH
  steps = args.steps or (epochs if paper else _STEPS)
  config.train.steps = steps
  model, optimizer = config.model, config.optimizer
  model.pattern = f'{args.mixer}+swiglu'
  model.num_layers, model.width, model.num_heads = 2, 128, 4
  model.tied_head, model.decoder = False, args.task == 'compression'
  model.titans.chunk_size = model.titans.projection_chunk_size = 16
  config.compute.remat = False
  optimizer.learning_rate, optimizer.weight_decay = args.rate, args.decay
  optimizer.final_fraction = mad.LAST_RATE / args.rate
  optimizer.warmup_steps, optimizer.b2, optimizer.clip_norm = 0, 0.999, 1e9
  config.log.every = max(1, steps // 50)
  config.evals.every = config.checkpoint.every = max(1, steps // 10)
  return config
