"""Options of a learner."""

import dataclasses

from hope.fields import field


@dataclasses.dataclass(frozen=True)
class LearnerOptions:
  """Options of a learner."""

  rule: str = field(
    'naive',
    'How the model learns.',
    choices=(
      'frozen',
      'class_mean',
      'naive',
      'replay',
      'ewc',
      'online_ewc',
      'joint',
    ),
  )
  batch: int = field(10, 'New examples of an update.', minimum=1, maximum=2**16)
  score_batch: int = field(
    64, 'Examples that are predicted at once.', minimum=1, maximum=2**16
  )
  buffer: int = field(
    500,
    "Examples that 'replay' keeps, a reservoir; each update has as many of "
    'them as new ones.',
    minimum=1,
    maximum=2**24,
  )
  penalty: float = field(
    100.0, "Lambda of 'ewc' and 'online_ewc'.", minimum=0, maximum=1e12
  )
  fisher_examples: int = field(
    200,
    'Examples of a segment, drawn evenly, from which its Fisher information '
    'is estimated.',
    minimum=1,
    maximum=2**20,
  )
  decay: float = field(
    1.0,
    "What 'online_ewc' leaves of the precision at the end of each segment.",
    minimum=0,
    maximum=1,
  )
  passes: int = field(
    1, "Passes of 'joint' over all that was seen.", minimum=1, maximum=2**10
  )
