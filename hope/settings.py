"""Every field of a run's configuration: default, meaning, type and bounds."""

from hope.feedforward.cms import CMSOptions
from hope.fields import Field, declared
from hope.memory.stream import KERNELS
from hope.mixers.attention import AttentionOptions
from hope.mixers.titans import TitansOptions
from hope.model import PRESETS
from hope.optimizer import RULES


def _of(section: str, options: type) -> dict[str, Field]:
  """The fields of a dataclass of options, by their paths."""
  return {f'{section}.{name}': x for name, x in declared(options).items()}


# Every field by its path. Lengths are in tokens, periods and intervals in the
# field's unit. The upper bounds are far above any use: what lies beyond them
# would only fail late, or make a machine deaf.
FIELDS: dict[str, Field] = {
  'seed': Field(
    0,
    'Seed of parameters, of data order and of sampling.',
    minimum=0,
    maximum=2**32 - 1,
  ),
  # ------------------------------------------------------------------- model
  'model.preset': Field(
    'tiny',
    'Sizes that fill the fields left at None.',
    choices=tuple(PRESETS),
  ),
  'model.mixer': Field(
    'titans',
    "Sequence mixer of every block: 'titans' (Hope) or 'attention' "
    '(Hope-Attention).',
    choices=('titans', 'attention'),
  ),
  'model.num_layers': Field(
    None,
    'Number of blocks. None: from the preset.',
    of=int,
    optional=True,
    minimum=1,
    maximum=2**12,
  ),
  'model.width': Field(
    None,
    'Width of the residual stream. None: from the preset.',
    of=int,
    optional=True,
    minimum=1,
    maximum=2**17,
  ),
  'model.num_heads': Field(
    None,
    'Heads of a mixer. None: from the preset.',
    of=int,
    optional=True,
    minimum=1,
    maximum=2**17,
  ),
  'model.vocab_size': Field(
    None,
    "Tokens. None: the vocabulary of the data's tokenizer.",
    of=int,
    optional=True,
    minimum=1,
    maximum=2**24,
  ),
  'model.dtype': Field(
    'float32',
    'Type of matmul operands. Parameters and all fast states are float32 '
    'whatever it says.',
    choices=('float32', 'bfloat16'),
  ),
  'compute.remat': Field(
    True,
    'Recompute each block in the backward pass instead of keeping its values.',
  ),
  # ------------------------------------------------------------ model.titans
  **_of('model.titans', TitansOptions),
  'compute.kernel': Field(
    'xla',
    "What runs the memories over whole chunks: 'xla', or 'pallas', one kernel "
    "that keeps their state in a TPU's VMEM (interpreted, slowly, on a CPU). "
    "Decoding and prompts that do not fill a chunk are 'xla' with either.",
    choices=KERNELS,
  ),
  # --------------------------------------------------- model.attention and cms
  **_of('model.attention', AttentionOptions),
  **_of('model.cms', CMSOptions),
  # -------------------------------------------------------------------- data
  'data.source': Field(
    'stdlib',
    "'stdlib' (sources and documentation of the running Python), 'text:GLOB', "
    "'tfds:NAME[:SPLIT]' or 'synthetic:TASK' (mqar, copy, symbols).",
  ),
  'reading.tfds_dir': Field(
    None,
    "Folder of prepared TFDS data. None: TFDS' default.",
    of=str,
    optional=True,
  ),
  'data.tokenizer': Field(
    'byte',
    "'byte', 'bpe:FILE' (a tokenizer.json) or 'bpe-train:SIZE' (trained on the "
    'training documents, kept in the workdir).',
  ),
  'data.seq_len': Field(
    256, 'Length of a sequence.', unit='tokens', minimum=1, maximum=2**24
  ),
  'data.batch_size': Field(
    8,
    'Sequences per training step, over all processes.',
    unit='sequences',
    minimum=1,
    maximum=2**24,
  ),
  'data.segments': Field(
    False,
    'Reset every fast state where a document starts, so that each computes as '
    "if it were alone; documents then start at multiples of the memories' "
    'blocks. False: states cross the documents of a row. Rows of synthetic '
    'tasks hold one document each.',
  ),
  'data.heldout_fraction': Field(
    0.02,
    'Share of documents held out, chosen by a hash of their name.',
    above=0,
    below=1,
  ),
  'reading.ahead': Field(
    0,
    'Batches that a thread reads ahead; 0 reads when they are needed.',
    unit='batches',
    minimum=0,
    maximum=2**12,
  ),
  'data.task.vocab_size': Field(
    256, 'Tokens of a synthetic task.', minimum=1, maximum=2**24
  ),
  'data.task.num_pairs': Field(
    8,
    'Pairs to recall, tokens to copy, or distinct symbols of a synthetic task.',
    minimum=1,
    maximum=2**20,
  ),
  'data.task.power': Field(
    0.01,
    'Of mqar: gap g is drawn in proportion to (g + 1)^(power - 1).',
    minimum=-10,
    maximum=10,
  ),
  # --------------------------------------------------------------- optimizer
  'optimizer.name': Field(
    'adamw',
    "The rule. 'muon', 'm3' and 'delta_gradient_descent' are of matrices; "
    'other parameters take AdamW.',
    choices=tuple(RULES),
  ),
  'optimizer.options': Field(
    '', "Arguments of the rule, as 'period=4,alpha=0.3'."
  ),
  'optimizer.learning_rate': Field(
    3e-3,
    'Peak learning rate, reached after warmup_steps, then cosine to '
    'final_fraction of it at train.steps.',
    above=0,
  ),
  'optimizer.other_learning_rate': Field(
    None,
    'Of parameters that are left to AdamW. None: the same.',
    of=float,
    optional=True,
    above=0,
  ),
  'optimizer.normalize_updates': Field(
    False,
    'Scale the updates of each level and rule to a global norm of 1 before the '
    'learning rate: a control that compares directions alone.',
  ),
  'optimizer.warmup_steps': Field(
    20, 'At most train.steps.', unit='updates', minimum=0
  ),
  'optimizer.final_fraction': Field(
    0.1, 'Last learning rate as a share of the peak.', minimum=0
  ),
  'optimizer.weight_decay': Field(
    0.1,
    "Of matrices, the embedding and the convolution; 'delta_gradient_descent' "
    'has its retention instead.',
    minimum=0,
  ),
  'optimizer.b1': Field(0.9, "AdamW's.", minimum=0, below=1),
  'optimizer.b2': Field(0.95, "AdamW's.", minimum=0, below=1),
  'optimizer.eps': Field(1e-8, "AdamW's.", above=0),
  'optimizer.clip_norm': Field(
    1.0, 'Gradients are scaled down to this global norm.', above=0
  ),
  # ------------------------------------------------------------------- train
  'train.steps': Field(200, 'Length of the run.', unit='updates', minimum=1),
  'train.accumulate': Field(
    1,
    'Micro-batches whose gradients are averaged into one update.',
    minimum=1,
  ),
  'log.every': Field(10, 'Interval of log lines.', unit='updates', minimum=1),
  'evals.every': Field(
    100, 'Interval of evaluations.', unit='updates', minimum=1
  ),
  'checkpoint.every': Field(
    50, 'Interval of checkpoints.', unit='updates', minimum=1
  ),
  'checkpoint.keep': Field(3, 'Newest checkpoints kept.', minimum=1),
  'checkpoint.keep_every': Field(
    0,
    'Also keep checkpoints at multiples of this step (0: off).',
    unit='updates',
    minimum=0,
  ),
  'checkpoint.keep_best': Field(
    0,
    'Also keep so many checkpoints of the lowest held-out loss, where it was '
    'evaluated at their step.',
    minimum=0,
  ),
  'evals.batches': Field(
    16, 'Batches of one evaluation.', minimum=1, maximum=2**20
  ),
  'processes.watchdog': Field(
    100,
    'Processes that are silent for longer end a run of several; 0: never.',
    unit='seconds',
    minimum=0,
  ),
  # -------------------------------------------------------------------- mesh
  'mesh.data': Field(
    None,
    'Devices along this axis; see hope.parallel.mesh. None: all that are left.',
    of=int,
    optional=True,
    minimum=1,
    maximum=2**20,
  ),
  'mesh.fsdp': Field(1, 'Devices along it.', minimum=1, maximum=2**20),
  'mesh.seq': Field(1, 'Devices along it.', minimum=1, maximum=2**20),
  'mesh.tensor': Field(1, 'Devices along it.', minimum=1, maximum=2**20),
  'mesh.slices': Field(
    1,
    'Slices, joined by a slow network, that the data axis crosses.',
    minimum=1,
    maximum=2**20,
  ),
  # ------------------------------------------------------------------ sample
  'sample.prompt': Field(
    'def ', 'Of the text at the end of the run.', maximum=2**17
  ),
  'sample.tokens': Field(
    200, 'Length of that text.', unit='tokens', minimum=1, maximum=2**20
  ),
  'sample.temperature': Field(
    0.8, 'Of the softmax; 0 takes the most likely token.', minimum=0
  ),
  'sample.top_k': Field(
    40, 'Most likely tokens to choose from; 0: all.', minimum=0
  ),
}
