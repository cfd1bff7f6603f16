"""A learner follows segments in turn, and is measured between them."""

from collections.abc import Callable, Iterator, Sequence
import json
import os
import pathlib
from typing import Any, NamedTuple

from hope import state_file
from hope.continual.learner import Learner

_STATE, _RECORD = 'state-{}.npz', 'record.json'


class Segment(NamedTuple):
  """Examples that come one after another.

  Attributes:
    name: of the task, the language or the domain.
    examples: in the order in which they are learned, each once.
  """

  name: str
  examples: Sequence[Any]


class Moment(NamedTuple):
  """What was measured after a segment.

  Attributes:
    values: of `measure`: whatever JSON can hold.
    course: (examples of the segment so far, values) within it, where asked.
  """

  values: Any
  course: list[tuple[int, Any]]


class Journal:
  """Where a learner's state and what was measured are kept after each segment.

  What is written is whole at every moment: a process that is killed goes on
  from the end of the last segment, with the same numbers.
  """

  def __init__(self, folder: str | os.PathLike[str], identity: Any):
    """Takes a folder, which is made if there is none.

    Args:
      folder: of this learner alone.
      identity: what decides the numbers, whatever JSON can hold.

    Raises:
      ValueError: if the folder is of another learner, options or data.
    """
    self._folder, self._identity = pathlib.Path(folder), identity
    self._folder.mkdir(parents=True, exist_ok=True)
    content = self._content()
    if content and content['identity'] != json.loads(json.dumps(identity)):
      raise ValueError(
        f'{folder} holds a learner of other options or data: '
        f'{json.dumps(content["identity"])}; choose another folder.'
      )

  def restore(self, learner: Learner) -> list[Moment]:
    """Brings a learner to the end of the last segment; what was measured.

    Raises:
      ValueError: for a state that does not fit the learner.
    """
    moments = [Moment(*x) for x in self._content().get('moments', ())]
    if moments:
      path = self._folder / _STATE.format(len(moments))
      state = state_file.fill(learner.state(), state_file.read(path)[1])
      if state is None:
        raise ValueError(f'{path} is no state of this learner; delete it.')
      learner.restore(state)
    return moments

  def save(self, learner: Learner, moments: Sequence[Moment]) -> None:
    """Keeps a learner and what was measured."""
    number = len(moments)
    header = state_file.Header('continual', f'after {number - 1} segments')
    state_file.write(
      self._folder / _STATE.format(number), learner.state(), header
    )
    text = json.dumps({'identity': self._identity, 'moments': moments})
    partial = self._folder / f'{_RECORD}.tmp'
    partial.write_text(text)
    partial.replace(self._folder / _RECORD)
    (self._folder / _STATE.format(number - 1)).unlink(missing_ok=True)

  def _content(self) -> dict[str, Any]:
    path = self._folder / _RECORD
    return json.loads(path.read_text()) if path.exists() else {}


def follow(
  learner: Learner,
  segments: Sequence[Segment],
  measure: Callable[[int], Any],
  *,
  batch: int,
  every: int | None = None,
  journal: Journal | None = None,
  report: Callable[[int, Any], None] | None = None,
) -> list[Moment]:
  """Learns segments in turn, each example once.

  Args:
    learner: that learns.
    segments: in their order.
    measure: (segments that were learned, the one that is being learned
      included) -> values of the learner, whatever JSON can hold.
    batch: examples that the learner is given at once.
    every: batches between two measurements within a segment. None: only at the
      ends of segments.
    journal: keeps what is done. None: nothing is kept.
    report: called with (examples of all segments so far, what was just
      measured, or None after a batch).

  Returns:
    Of before the first segment, and of after each.
  """
  report = report or (lambda done, values: None)
  moments = journal.restore(learner) if journal else []

  def note(course: list[tuple[int, Any]]) -> None:
    moments.append(Moment(measure(len(moments)), course))
    if journal:
      journal.save(learner, moments)
    report(done, moments[-1].values)

  done = sum(len(x.examples) for x in segments[: max(0, len(moments) - 1)])
  if not moments:
    note([])
  for number in range(len(moments), len(segments) + 1):
    course = []
    for i, part in enumerate(_batches(segments[number - 1], batch), start=1):
      learner.learn(part)
      done += len(part)
      if every and i % every == 0:
        seen = done - sum(len(x.examples) for x in segments[: number - 1])
        course.append((seen, measure(number)))
      report(done, None)
    learner.end_segment()
    note(course)
  return moments


def _batches(segment: Segment, batch: int) -> Iterator[Sequence[Any]]:
  for start in range(0, len(segment.examples), batch):
    yield segment.examples[start : start + batch]
