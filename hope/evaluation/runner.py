"""Evaluates a model on tasks, and goes on where it was killed."""

from collections.abc import Mapping, Sequence
import contextlib
import hashlib
import pathlib
from typing import Any

from hope.evaluation import reading_file, text_sets
from hope.evaluation.intervals import Estimate
from hope.evaluation.language_model import LanguageModel
from hope.evaluation.progress import ExampleProgress
from hope.evaluation.score_file import ScoreFile
from hope.evaluation.specs import Spec
from hope.evaluation.text_sets import TextSet
from hope.sampling import PIECE

# Letters of a task in the name of a file.
_LETTERS = 80


def file_name(spec: Spec, step: int) -> str:
  """Name of the file of the scores of a task, of a checkpoint's step.

  The number of examples is not part of it: more of them go on in the same file.
  """
  options = ','.join(
    f'{name}={value}'
    for name, value in sorted(spec.options.items())
    if name != 'examples'
  )
  text = f'{spec.name}:{options}' if options else spec.name
  plain = ''.join(x if x.isalnum() or x in '=._-' else '_' for x in text)
  if plain != text or len(plain) > _LETTERS:  # or two tasks had one name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    plain = f'{plain[:_LETTERS]}_{digest}'
  return f'{plain}_step_{step}.jsonl'


def evaluate(
  model: LanguageModel, texts: TextSet, batch: int = 8
) -> dict[str, Estimate]:
  """The metrics of a task, by name; nothing is written or shown."""
  found: dict[int, dict[str, Any]] = {}
  for scores in text_sets.scores(model, texts, batch=batch):
    found |= scores
  return text_sets.results([found[i] for i in range(texts.number)])


def evaluate_into(
  model: LanguageModel,
  texts: TextSet,
  path: pathlib.Path,
  identity: Mapping[str, Any],
  *,
  label: str,
  batch: int = 8,
) -> dict[str, Estimate]:
  """The metrics of a task, by name; scores are in a file, progress is shown.

  The same call goes on where it was ended, with the examples that have no
  score; within a long prompt, from the last state that was kept.

  Args:
    model: that answers.
    texts: the examples.
    path: of the file of scores; beside it, the reading of prompts.
    identity: of the model and its checkpoint, JSON values.
    label: of the task, for people.
    batch: rows that are computed at once.

  Raises:
    ValueError: if the file holds scores of another model, task or batch.
  """
  # Rounding depends on the rows that are computed at once.
  whole = {**texts.identity, **identity, 'batch': batch}
  reading = path.with_name(f'{path.name}.reading.npz')
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(ScoreFile(path, whole))
    done = sum(i < texts.number for i in file.done)
    progress = stack.enter_context(ExampleProgress(label, texts.number, done))

    def keeper(indices: Sequence[int]) -> Any:
      height = 1 if len(indices) == 1 else batch
      return reading_file.keeper(
        reading,
        model,
        height,
        [whole, list(indices)],
        lambda pieces: progress.reading(pieces * PIECE),
      )

    for scores in text_sets.scores(
      model, texts, batch=batch, done=file.done.__contains__, keeper=keeper
    ):
      for index, values in scores.items():
        file.append(index, values)
      done += len(scores)
      progress.update(done)
    reading.unlink(missing_ok=True)
    return text_sets.results([file.done[i] for i in range(texts.number)])
