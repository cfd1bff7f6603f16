"""Generated tasks: a file for each, and a line here.

An example is a function of its index alone. `hope.tasks.task` says what a file
holds; `data.source='synthetic:NAME'` trains on a task.
"""

from hope.tasks import copying, mqar, symbols
from hope.tasks.task import Example, Least, Task, accuracy

__all__ = ['TASKS', 'Example', 'Least', 'Task', 'accuracy']

TASKS: dict[str, Task] = {
  'mqar': mqar.TASK,
  'copy': copying.TASK,
  'symbols': symbols.TASK,
}
