"""Tasks: a file for each, and a line here.

An example is a function of its index alone. `hope.tasks.task` says what a file
holds; `data.source='synthetic:NAME'` trains on a task. TEXT_TASKS are answered
by generation; `hope.tasks.text` says what their files hold. DATA_TASKS are read
from files.
"""

from hope.tasks import (
  aliases,
  babilong,
  chomsky,
  compression,
  copying,
  formal_languages,
  fuzzy_recall,
  memorization,
  mqar,
  needles,
  permutations,
  recall,
  records,
  remapping,
  symbols,
)
from hope.tasks.datasets import DATA_TASKS
from hope.tasks.task import (
  METRICS,
  Example,
  Least,
  Task,
  accuracy,
  exact_matches,
  mean_over_classes,
)
from hope.tasks.text import (
  ChoiceExample,
  DataTask,
  Request,
  TextExample,
  TextOptions,
  TextTask,
)

__all__ = [
  'DATA_TASKS',
  'METRICS',
  'TASKS',
  'TEXT_TASKS',
  'ChoiceExample',
  'DataTask',
  'Example',
  'Least',
  'Request',
  'Task',
  'TextExample',
  'TextOptions',
  'TextTask',
  'accuracy',
  'exact_matches',
  'mean_over_classes',
]

TASKS: dict[str, Task] = {
  'mqar': mqar.TASK,
  'copy': copying.TASK,
  'symbols': symbols.TASK,
  'remapping': remapping.TASK,
  'aliases': aliases.TASK,
  **formal_languages.TASKS,
  **permutations.TASKS,
  **chomsky.TASKS,
  **recall.TASKS,
  'fuzzy_recall': fuzzy_recall.TASK,
  'compression': compression.TASK,
  'memorization': memorization.TASK,
}

TEXT_TASKS: dict[str, TextTask] = {
  **babilong.TASKS,
  **needles.TASKS,
  **records.TASKS,
}
