"""The settings of MAD (Poli et al., arXiv:2403.17844), by task and change.

MAD trains on the baseline of each of its six tasks and on single changes of it,
each at six pairs of a rate and a decay. A task's score is the mean of the class
accuracies of the best of each, and the benchmark's that over all tasks.

`SETTINGS[task][change]` are fields of a configuration by their paths; the first
change of a task is 'baseline', others are named for what they change, as
'vocab_size=32'. Selective copying is the task `copy`.
"""

from collections.abc import Iterator, Mapping

Fields = dict[str, int | float]

# Batches are of 128 sequences, 200 epochs long; evaluations of 1,280 sequences.
BATCH, EPOCHS, HELDOUT = 128, 200, 1280
LEARNING_RATES = (1e-4, 5e-4, 1e-3)
WEIGHT_DECAYS = (0.0, 0.1)
# The last rate of the cosine.
LAST_RATE = 1e-6

_FEWER = {'examples': (6400, 3200, 1600, 800)}
_VOCABULARIES = {'vocab_size': (32, 64, 128)}
# A task's baseline, and the values that each field takes in its changes.
_TASKS: dict[str, tuple[Fields, Mapping[str, tuple[int | float, ...]]]] = {
  'in_context_recall': (
    {'vocab_size': 16, 'seq_len': 128},
    {**_VOCABULARIES, 'seq_len': (256, 512, 1024), **_FEWER},
  ),
  'noisy_recall': (
    {'vocab_size': 32, 'seq_len': 128, 'noise': 0.2},
    {
      'vocab_size': (48, 80, 144),
      'seq_len': (256, 512, 1024),
      **_FEWER,
      'noise': (0.4, 0.6, 0.8),
    },
  ),
  'fuzzy_recall': (
    {'vocab_size': 16, 'seq_len': 128},
    {**_VOCABULARIES, 'seq_len': (256, 512, 1024), **_FEWER},
  ),
  'copy': (
    {'vocab_size': 16, 'seq_len': 256, 'num_pairs': 16},
    {
      **_VOCABULARIES,
      'seq_len': (512, 1024),
      **_FEWER,
      'num_pairs': (32, 64, 96),
    },
  ),
  'compression': (
    {'vocab_size': 16, 'seq_len': 32},
    {**_VOCABULARIES, 'seq_len': (64, 128, 256), **_FEWER},
  ),
  'memorization': (
    {'vocab_size': 256, 'seq_len': 32, 'examples': 256},
    {'vocab_size': (512, 1024, 2048, 4096, 8192)},
  ),
}


def _fields(task: str) -> Iterator[tuple[str, Fields]]:
  """Every change of a task with its fields."""
  baseline, changes = _TASKS[task]
  baseline = {'examples': 12_800, **baseline}

  def paths(values: Fields) -> Fields:
    return {
      f'data.{name}' if name == 'seq_len' else f'data.task.{name}': value
      for name, value in values.items()
    }

  yield 'baseline', paths(baseline)
  for name, values in changes.items():
    for value in values:
      yield f'{name}={value}', paths({**baseline, name: value})


SETTINGS: dict[str, dict[str, Fields]] = {
  task: dict(_fields(task)) for task in _TASKS
}
