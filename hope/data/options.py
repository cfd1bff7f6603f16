"""What a run reads, and how."""

import dataclasses

from hope.fields import field
from hope.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class DataOptions:
  """What is read."""

  source: str = field(
    'stdlib',
    "'stdlib' (sources and documentation of the running Python), 'text:GLOB', "
    f"'tfds:NAME[:SPLIT]' or 'synthetic:TASK' ({', '.join(TASKS)}).",
  )
  tokenizer: str = field(
    'byte',
    "'byte', 'bpe:FILE' (a tokenizer.json) or 'bpe-train:SIZE' (trained on the "
    'training documents, kept in the workdir).',
  )
  seq_len: int = field(
    256, 'Length of a sequence.', unit='tokens', minimum=1, maximum=2**24
  )
  batch_size: int = field(
    8,
    'Sequences per training step, over all processes.',
    unit='sequences',
    minimum=1,
    maximum=2**24,
  )
  segments: bool = field(
    False,
    'Reset every fast state where a document starts, so that each computes as '
    "if it were alone; documents then start at multiples of the memories' "
    'blocks. False: states cross the documents of a row. Rows of synthetic '
    'tasks hold one document each.',
  )
  heldout_fraction: float = field(
    0.02,
    'Share of documents held out, chosen by a hash of their name.',
    above=0,
    below=1,
  )


@dataclasses.dataclass(frozen=True)
class TaskOptions:
  """Options of a synthetic task."""

  vocab_size: int = field(
    256, 'Tokens of a synthetic task.', minimum=1, maximum=2**24
  )
  num_pairs: int = field(
    8,
    'Pairs to recall, tokens to copy, or distinct symbols of a synthetic task.',
    minimum=1,
    maximum=2**20,
  )
  power: float = field(
    0.01,
    'mqar draws a gap g in proportion to (g + 1)^(power - 1).',
    minimum=-10,
    maximum=10,
  )
  min_length: int = field(
    2,
    'Shortest string of a formal language, s3 or s5; of anbn and anbncn the '
    'least n.',
    minimum=1,
    maximum=2**20,
  )
  max_length: int = field(
    50,
    'Longest string of a formal language, s3 or s5; of anbn and anbncn the '
    'largest n.',
    minimum=1,
    maximum=2**20,
  )


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
  """How data are read."""

  tfds_dir: str | None = field(
    None, "Folder of prepared TFDS data. None: TFDS' default."
  )
  ahead: int = field(
    0,
    'Batches that a thread reads ahead; 0 reads when they are needed.',
    unit='batches',
    minimum=0,
    maximum=2**12,
  )
