"""The configuration of a run: every field once, with its meaning and unit.

An experiment file (`experiments/*.py`) defines `get_config(arg='')`, which
starts from `base_config()`, changes what it needs and returns the result.
Fields can be overridden on the command line:

  python -m hope.main --config=experiments/smoke.py --config.train.steps=50
"""

import math

import ml_collections
from ml_collections import config_dict

from hope.memory.stream import KERNELS, check_kernel
from hope.parallel.mesh import check_sizes
from hope.training.optimizer import RULES, parse_options


def base_config() -> ml_collections.ConfigDict:
  """Returns the default configuration of a run, locked.

  Lengths are in tokens, periods and intervals in the unit that the comment
  beside the field names. `None` is written as a typed placeholder, so that a
  value of the wrong type is refused.
  """
  config = ml_collections.ConfigDict()
  # Seed of parameters, of data order and of sampling.
  config.seed = 0

  config.model = model = ml_collections.ConfigDict()
  # A name of hope.model.PRESETS; its values fill the fields left at None.
  model.preset = 'tiny'
  # Sequence mixer of every block: 'titans' (Hope) or 'attention'
  # (Hope-Attention).
  model.mixer = 'titans'
  # Number of blocks, model width and heads. None: from the preset.
  model.num_layers = config_dict.placeholder(int)
  model.width = config_dict.placeholder(int)
  model.num_heads = config_dict.placeholder(int)
  # Tokens. None: the vocabulary of the data's tokenizer.
  model.vocab_size = config_dict.placeholder(int)
  # 'float32' or 'bfloat16': the type of matmul operands. Parameters and all
  # fast states are float32 whatever it says.
  model.dtype = 'float32'
  # Recompute each block in the backward pass instead of keeping its values.
  model.remat = True

  model.titans = titans = ml_collections.ConfigDict()
  # Tokens of a chunk: gradients and targets of the chunk's tokens are taken
  # at the state at its start. One for `memory`, one for the memories that
  # generate k, v, eta, alpha (and q). One must divide the other.
  titans.chunk_size = 64
  titans.projection_chunk_size = 64
  # Hidden width of a memory as a multiple of its head's width; 0 makes every
  # memory linear.
  titans.hidden_multiple = 1
  # Objective of the inner learning: 'l2' or 'dot'.
  titans.objective = 'l2'
  # Parts of rule (A): each can be switched off.
  titans.retention = True
  titans.momentum = True
  titans.erase = True
  # What retention and erase pull towards: 'initial' (the learned initial
  # state) or 'zero' (Eq. 88 to the letter).
  titans.anchor = 'initial'
  # State that a read sees: 'token' (before its token) or 'chunk' (at the
  # start of its chunk).
  titans.read = 'token'
  # Whether the k, v, eta and alpha memories learn within the sequence.
  titans.self_modifying = True
  # Whether the targets are self-generated, M(v) (Eq. 84), or v itself.
  titans.self_target = True
  # Largest norm of a self-generated target. None: no bound.
  titans.target_max = config_dict.placeholder(float)
  titans.target_max = 2.0
  # Largest norm of a layer's error in a memory. None: no bound.
  titans.error_max = config_dict.placeholder(float)
  titans.error_max = 2.0
  # Whether q is a memory too, rather than a slow projection.
  titans.q_memory = False
  # 'dense': slow projections mix the whole width into each head before the
  # memories; 'none': a head sees its slice of the width.
  titans.mix = 'dense'
  # Upper bound of the inner learning rate eta. None: the layer's default.
  # 0 switches inner learning off.
  titans.eta_max = config_dict.placeholder(float)
  # Tokens that the causal depthwise convolution sees.
  titans.conv_width = 4
  # What runs the memories over whole chunks: 'xla', or 'pallas', one kernel
  # that keeps their state in a TPU's VMEM (interpreted, slowly, on a CPU).
  # Decoding and prompts that do not fill a chunk are 'xla' with either.
  titans.kernel = 'xla'

  model.attention = attention = ml_collections.ConfigDict()
  # Longest context that decoding keeps, in tokens. None: data.seq_len.
  attention.max_context = config_dict.placeholder(int)

  model.cms = cms = ml_collections.ConfigDict()
  # 'outer': blocks are parameters, level l updated every periods[l] training
  # steps. 'in_context': blocks are fast weights, level l updated every
  # periods[l] tokens.
  cms.mode = 'outer'
  # 'sequential' (Eq. 70, 73) or 'independent' (Eq. 74).
  cms.variant = 'sequential'
  # One entry per level, fastest first; the unit depends on mode.
  cms.periods = (1, 1, 1, 1)
  # Hidden width of a level as a multiple of the model's width.
  # None: 1, or 17/16 beside attention, which has no memories' parameters.
  cms.hidden_multiple = config_dict.placeholder(float)
  # Objective of the inner learning of 'in_context' levels.
  cms.objective = 'l2'

  config.data = data = ml_collections.ConfigDict()
  # 'stdlib' (sources and documentation of the running Python), 'text:GLOB',
  # 'tfds:NAME[:SPLIT]' or 'synthetic:TASK' (mqar, copy, symbols).
  data.source = 'stdlib'
  # Folder of prepared TFDS data. None: TFDS' default.
  data.tfds_dir = config_dict.placeholder(str)
  # 'byte', 'bpe:FILE' (a tokenizer.json) or 'bpe-train:SIZE' (trained on the
  # training documents, kept in the workdir).
  data.tokenizer = 'byte'
  # Tokens per sequence and sequences per training step, over all processes.
  data.seq_len = 256
  data.batch_size = 8
  # Share of documents held out, chosen by a hash of their name.
  data.heldout_fraction = 0.02
  # Batches that a thread reads ahead; 0 reads when they are needed.
  data.read_ahead = 0
  # Options of the synthetic tasks.
  data.task = task = ml_collections.ConfigDict()
  task.vocab_size = 256
  task.num_pairs = 8
  task.power = 0.01

  config.optimizer = optimizer = ml_collections.ConfigDict()
  # A name of hope.training.optimizer.RULES: 'adamw', 'muon', 'm3',
  # 'delta_gradient_descent' (matrices; others take AdamW),
  # 'preconditioned_momentum', 'feature_momentum', 'delta_momentum',
  # 'deep_momentum', 'associative_momentum'.
  optimizer.name = 'adamw'
  # Arguments of the rule, as 'period=4,alpha=0.3'.
  optimizer.options = ''
  # Peak learning rate, reached after warmup_steps, then cosine to
  # final_fraction of it at train.steps.
  optimizer.learning_rate = 3e-3
  # Of parameters that are left to AdamW. None: the same.
  optimizer.other_learning_rate = config_dict.placeholder(float)
  # Scale the updates of each level and rule to a global norm of 1 before the
  # learning rate: a control that compares directions alone.
  optimizer.normalize_updates = False
  optimizer.warmup_steps = 20
  optimizer.final_fraction = 0.1
  # Of matrices, the embedding and the convolution; 'delta_gradient_descent' has
  # its retention instead.
  optimizer.weight_decay = 0.1
  # AdamW's.
  optimizer.b1 = 0.9
  optimizer.b2 = 0.95
  optimizer.eps = 1e-8
  # Gradients are scaled down to this global norm.
  optimizer.clip_norm = 1.0

  config.train = train = ml_collections.ConfigDict()
  # Updates in the run.
  train.steps = 200
  # Micro-batches whose gradients are averaged into one update.
  train.accumulate = 1
  # Steps between log lines, evaluations and checkpoints.
  train.log_every = 10
  train.eval_every = 100
  train.checkpoint_every = 50
  # Newest checkpoints kept.
  train.keep = 3
  # Beside them, every checkpoint of a multiple of so many steps (0: none), and
  # so many of the lowest held-out loss, where it was evaluated at their step.
  train.keep_every = 0
  train.keep_best = 0
  # Batches of one evaluation.
  train.eval_batches = 16

  # Processes that may be silent for this long, in seconds, before a run of
  # several ends them; 0: for ever.
  train.watchdog = 100

  config.mesh = mesh = ml_collections.ConfigDict()
  # Devices along each axis; see hope.parallel.mesh. None: all that are left.
  mesh.data = config_dict.placeholder(int)
  mesh.fsdp = 1
  mesh.seq = 1
  mesh.tensor = 1
  # Slices, joined by a slow network, that the data axis crosses.
  mesh.slices = 1

  config.sample = sample = ml_collections.ConfigDict()
  # Prompt, tokens and sampling of the text at the end of the run.
  sample.prompt = 'def '
  sample.tokens = 200
  sample.temperature = 0.8
  # Most likely tokens to choose from; 0: all.
  sample.top_k = 40

  config.lock()
  return config


def parse_arg(arg: str, **defaults) -> ml_collections.ConfigDict:
  """Reads the part of `--config=file.py:a=1,b=x` that follows the colon.

  Args:
    arg: comma-separated `name=value` pairs.
    **defaults: the names allowed, with their defaults; a value is read as the
      type of its default.

  Raises:
    ValueError: for a name that has no default or a value of another type.
  """
  values = ml_collections.ConfigDict(defaults)
  for pair in filter(None, arg.split(',')):
    name, _, text = pair.partition('=')
    if name not in defaults:
      raise ValueError(
        f'{name!r} is not an argument of this config; allowed: '
        f'{", ".join(sorted(defaults))}.'
      )
    kind = type(defaults[name])
    try:
      values[name] = (
        {'true': True, 'false': False}[text.lower()]
        if kind is bool
        else kind(text)
      )
    except (KeyError, ValueError):
      raise ValueError(
        f'{pair!r}: {name} must be of type {kind.__name__}.'
      ) from None
  return values


_CHOICES = {
  'model.mixer': ('titans', 'attention'),
  'model.dtype': ('float32', 'bfloat16'),
  'model.titans.objective': ('l2', 'dot'),
  'model.titans.anchor': ('initial', 'zero'),
  'model.titans.read': ('token', 'chunk'),
  'model.titans.mix': ('dense', 'none'),
  'model.titans.kernel': KERNELS,
  'model.cms.mode': ('outer', 'in_context'),
  'model.cms.variant': ('sequential', 'independent'),
  'model.cms.objective': ('l2', 'dot'),
  'optimizer.name': tuple(RULES),
}

_POSITIVE = (
  'model.num_layers',
  'model.width',
  'model.num_heads',
  'model.vocab_size',
  'model.titans.chunk_size',
  'model.titans.projection_chunk_size',
  'model.titans.conv_width',
  'data.seq_len',
  'data.batch_size',
  'train.steps',
  'train.accumulate',
  'train.log_every',
  'train.eval_every',
  'train.checkpoint_every',
  'train.keep',
  'train.eval_batches',
  'sample.tokens',
  'mesh.fsdp',
  'mesh.seq',
  'mesh.tensor',
  'mesh.slices',
)


def resolve(
  config: ml_collections.ConfigDict, vocab_size: int
) -> ml_collections.FrozenConfigDict:
  """Fills the fields left at None and checks every field.

  Args:
    config: from an experiment file.
    vocab_size: of the data's tokenizer.

  Raises:
    ValueError: naming the field, what was given, what is allowed.
  """
  from hope.model import PRESETS  # the presets live with the model

  config = config.copy_and_resolve_references()
  check_complete(config)
  model = config.model
  if model.preset not in PRESETS:
    raise ValueError(
      f'model.preset={model.preset!r} is unknown; choose one of '
      f'{", ".join(PRESETS)}.'
    )
  sizes = ('num_layers', 'width', 'num_heads')
  for name, value in zip(sizes, PRESETS[model.preset], strict=True):
    if model[name] is None:
      model[name] = value
  if model.vocab_size is None:
    model.vocab_size = vocab_size
  elif model.vocab_size < vocab_size:
    raise ValueError(
      f'model.vocab_size={model.vocab_size} is below the {vocab_size} tokens '
      'of the tokenizer; leave it at None.'
    )
  if model.cms.hidden_multiple is None:
    model.cms.hidden_multiple = 1.0 if model.mixer == 'titans' else 17 / 16
  if model.attention.max_context is None:
    model.attention.max_context = config.data.seq_len
  _validate(config)
  return ml_collections.FrozenConfigDict(config)


def check_complete(config) -> None:
  """Raises ValueError if a configuration lacks a field, naming it."""
  missing = _missing(config, base_config())
  if missing:
    raise ValueError(
      f'{", ".join(missing)} is missing: the configuration is of another '
      'version. Train anew, or use the version that wrote it.'
    )


def _missing(config, wanted, prefix: str = '') -> list[str]:
  """Paths of the fields of `wanted` that a configuration lacks."""
  paths = []
  for name, value in wanted.items():
    if name not in config:
      paths.append(prefix + name)
    elif isinstance(value, ml_collections.ConfigDict):
      paths += _missing(config[name], value, f'{prefix}{name}.')
  return paths


def _get(config, path):
  for name in path.split('.'):
    config = config[name]
  return config


def _validate(config):
  """Raises ValueError for the first field that cannot work."""
  for path, allowed in _CHOICES.items():
    if _get(config, path) not in allowed:
      raise ValueError(
        f'{path}={_get(config, path)!r} is unknown; choose one of '
        f'{", ".join(allowed)}.'
      )
  for path in _POSITIVE:
    if _get(config, path) < 1:
      raise ValueError(f'{path}={_get(config, path)} must be at least 1.')
  for path in (
    *('train.keep_every', 'train.keep_best', 'train.watchdog'),
    *('sample.temperature', 'sample.top_k', 'optimizer.weight_decay'),
  ):
    if _get(config, path) < 0:
      raise ValueError(f'{path}={_get(config, path)} must not be negative.')
  model, titans = config.model, config.model.titans
  if model.width % model.num_heads:
    near = [n for n in range(1, model.width + 1) if model.width % n == 0]
    near.sort(key=lambda n: abs(n - model.num_heads))
    raise ValueError(
      f'model.num_heads={model.num_heads} does not divide '
      f'model.width={model.width}; try {near[0]} or {near[1]}.'
    )
  small, large = sorted((titans.chunk_size, titans.projection_chunk_size))
  if large % small:
    raise ValueError(
      f'titans.chunk_size={titans.chunk_size} and '
      f'titans.projection_chunk_size={titans.projection_chunk_size}: one must '
      f'divide the other; try {large} for both.'
    )
  if model.mixer == 'titans':
    for field in ('chunk_size', 'projection_chunk_size'):
      check_kernel(titans.kernel, titans[field])
    if titans.kernel == 'pallas' and config.data.seq_len % large:
      raise ValueError(
        f"titans.kernel='pallas' runs whole chunks: data.seq_len="
        f'{config.data.seq_len} is not a multiple of {large}; try '
        f"{-(-config.data.seq_len // large) * large}, or kernel='xla'."
      )
  if titans.hidden_multiple < 0:
    raise ValueError(
      f'titans.hidden_multiple={titans.hidden_multiple} must be 0 (linear) or '
      'more.'
    )
  for field in ('target_max', 'error_max'):
    if titans[field] is not None and titans[field] <= 0:
      raise ValueError(
        f'titans.{field}={titans[field]} must be positive, or None for no '
        'bound.'
      )
  if titans.eta_max is not None and titans.eta_max < 0:
    raise ValueError(f'titans.eta_max={titans.eta_max} must not be negative.')
  if model.mixer == 'attention' and model.width // model.num_heads % 2:
    raise ValueError(
      f'model.width={model.width} / model.num_heads={model.num_heads} must be '
      'even, for the rotation of positions.'
    )
  if model.cms.hidden_multiple <= 0:
    raise ValueError(
      f'cms.hidden_multiple={model.cms.hidden_multiple} must be positive.'
    )
  if not model.cms.periods or min(model.cms.periods) < 1:
    raise ValueError(
      f'cms.periods={tuple(model.cms.periods)} needs one period of at least 1 '
      'per level.'
    )
  if config.data.batch_size % config.train.accumulate:
    raise ValueError(
      f'train.accumulate={config.train.accumulate} does not divide '
      f'data.batch_size={config.data.batch_size}.'
    )
  if not 0 <= config.optimizer.warmup_steps <= config.train.steps:
    raise ValueError(
      f'optimizer.warmup_steps={config.optimizer.warmup_steps} must lie '
      f'between 0 and train.steps={config.train.steps}.'
    )
  check_sizes(config)
  parse_options(config.optimizer.name, config.optimizer.options)
  o = config.optimizer
  for field in ('learning_rate', 'other_learning_rate', 'clip_norm', 'eps'):
    if o[field] is not None and not o[field] > 0:
      raise ValueError(f'optimizer.{field}={o[field]} must be positive.')
  for field, end in (('b1', 1), ('b2', 1), ('final_fraction', math.inf)):
    if not 0 <= o[field] < end:
      raise ValueError(
        f'optimizer.{field}={o[field]} must be at least 0 and below {end}.'
      )
