"""When a model is evaluated, and on how much."""

import dataclasses

from hope.fields import field


@dataclasses.dataclass(frozen=True)
class EvalsOptions:
  """When a model is evaluated, and on how much."""

  every: int = field(100, 'Interval of evaluations.', unit='updates', minimum=1)
  batches: int = field(
    16, 'Batches of one evaluation.', minimum=1, maximum=2**20
  )
  longer: tuple[int, ...] = field(
    (),
    'Ends of further bins of lengths that are evaluated, of tasks with '
    'data.task.max_length: after 50, (100, 200) is 51 to 100 and 101 to 200. '
    'Of tasks of text, in tokens, after data.seq_len.',
    minimum=1,
    maximum=2**20,
    length=(0, 16),
  )
  tasks: tuple[str, ...] = field(
    (),
    'Tasks that are evaluated as well, with their options, as in '
    "('qa1:size=512,text=notes.txt,examples=20', 'mqar:num_pairs=16').",
    length=(0, 64),
  )
