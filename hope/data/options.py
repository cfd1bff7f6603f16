"""What a run reads, and how."""

import dataclasses

from hope.fields import field
from hope.tasks import TASKS, TEXT_TASKS


@dataclasses.dataclass(frozen=True)
class DataOptions:
  """What is read."""

  source: str = field(
    'stdlib',
    "'stdlib' (sources and documentation of the running Python), 'text:GLOB', "
    "'tfds:NAME[:SPLIT]' or 'synthetic:TASK' "
    f'({", ".join([*TASKS, *TEXT_TASKS])}).',
  )
  tokenizer: str = field(
    'byte',
    "'byte', 'bpe:FILE' (a tokenizer.json) or 'bpe-train:SIZE' (trained on the "
    'training documents, kept in the workdir). Tasks of text take the first '
    'two, other synthetic tasks none.',
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
