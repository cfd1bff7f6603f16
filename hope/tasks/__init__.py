"""Generated tasks: a file for each, and a line here.

An example is a function of its index alone. `hope.tasks.task` says what a file
holds; `data.source='synthetic:NAME'` trains on a task.
"""

from hope.tasks import (
  aliases,
  copying,
  formal_languages,
  mqar,
  permutations,
  remapping,
  symbols,
)
from hope.tasks.task import Example, Least, Task, accuracy, exact_matches

__all__ = ['TASKS', 'Example', 'Least', 'Task', 'accuracy', 'exact_matches']

TASKS: dict[str, Task] = {
  'mqar': mqar.TASK,
  'copy': copying.TASK,
  'symbols': symbols.TASK,
  'remapping': remapping.TASK,
  'aliases': aliases.TASK,
  **formal_languages.TASKS,
  **permutations.TASKS,
}
