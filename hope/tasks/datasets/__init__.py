"""Tasks whose examples are read from a folder that the user names.

`python -m hope.datasets` says which files each asks for, where they come
from, and whether those of a folder are the published ones.
"""

from hope.tasks.datasets import choices, intents, recall, translation
from hope.tasks.text import DataTask

DATA_TASKS: dict[str, DataTask] = {
  **choices.TASKS,
  **intents.TASKS,
  **recall.TASKS,
  **translation.TASKS,
}
