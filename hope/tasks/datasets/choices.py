r"""Published questions with choices, and LAMBADA, answered by likelihood.

Prompts are those of lm-evaluation-harness 0.4, so that numbers compare:

  lambada     the text but its last word, then ' ' and that word
              (Paperno et al., 2016, arXiv:1606.06031; the detokenised form)
  piqa        'Question: GOAL\nAnswer:' (Bisk et al., 2019, arXiv:1911.11641)
  arc_easy, arc_challenge  'Question: QUESTION\nAnswer:'
              (Clark et al., 2018, arXiv:1803.05457)
  siqa        'Q: CONTEXT QUESTION\nA:' (Sap et al., 2019, arXiv:1904.09728)
  winogrande  the sentence up to the gap and a choice in it; the likelihood is
              of what follows the gap, the same after each
              (Sakaguchi et al., 2019, arXiv:1907.10641)
  hellaswag   'ACTIVITY: CONTEXT', with the marks of its WikiHow texts taken
              out (Zellers et al., 2019, arXiv:1905.07830)
  boolq       'TITLE -- PASSAGE\nQuestion: QUESTION?\nAnswer:', 'no' or 'yes'
              (Clark et al., 2019, arXiv:1905.10044; the harness reads it from
              SuperGLUE, which puts the title before the passage)

Each choice follows after a space.
"""

from collections.abc import Callable, Sequence
import functools
import pathlib
import re
from typing import Any

from hope.tasks.datasets import files
from hope.tasks.datasets.files import value
from hope.tasks.text import ChoiceExample, DataTask, Request


def _example(
  contexts: str | Sequence[str], choices: Sequence[str], answer: int
) -> ChoiceExample:
  """One context for all, or one for each of the choices."""
  if isinstance(contexts, str):
    contexts = [contexts] * len(choices)
  pairs = zip(contexts, choices, strict=True)
  return ChoiceExample(tuple(Request(c, f' {x}') for c, x in pairs), answer)


def _lambada(place: str, row: dict[str, Any]) -> ChoiceExample:
  context, space, word = value(place, row, 'text').rpartition(' ')
  if not (space and word):
    raise ValueError(f'{place}: the text has no last word.')
  return _example(context, [word], 0)


def _arc(place: str, row: dict[str, Any]) -> ChoiceExample:
  question = value(place, row, 'question', dict)
  choices = value(place, question, 'choices', list)
  labels = [value(place, x, 'label') for x in choices]
  answer = files.one_of(
    place, 'the answer', value(place, row, 'answerKey'), labels
  )
  return _example(
    f'Question: {value(place, question, "stem")}\nAnswer:',
    [value(place, x, 'text') for x in choices],
    answer,
  )


def _winogrande(place: str, row: dict[str, Any]) -> ChoiceExample:
  before, gap, after = value(place, row, 'sentence').partition('_')
  if not gap:
    raise ValueError(f'{place}: the sentence has no gap, which _ marks.')
  answer = files.one_of(
    place, 'the answer', value(place, row, 'answer'), ['1', '2']
  )
  options = [value(place, row, key) for key in ('option1', 'option2')]
  return _example([before + x for x in options], [after.strip()] * 2, answer)


def clean_hellaswag(text: str) -> str:
  """A text without the marks of WikiHow, as '[header]'."""
  text = text.strip().replace(' [title]', '. ')
  return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')


def _hellaswag(place: str, row: dict[str, Any]) -> ChoiceExample:
  first, second = value(place, row, 'ctx_a'), value(place, row, 'ctx_b')
  activity = value(place, row, 'activity_label')
  endings = files.strings(place, row, 'endings')
  answer = value(place, row, 'label', object)
  return _example(
    clean_hellaswag(f'{activity}: {first} {second.capitalize()}'),
    [clean_hellaswag(x) for x in endings],
    files.one_of(
      place, 'the label', str(answer), [str(i) for i in range(len(endings))]
    ),
  )


def _boolq(place: str, row: dict[str, Any]) -> ChoiceExample:
  title, passage, question = (
    value(place, row, key) for key in ('title', 'passage', 'question')
  )
  return _example(
    f'{title} -- {passage}\nQuestion: {question}?\nAnswer:',
    ['no', 'yes'],
    int(value(place, row, 'answer', bool)),
  )


def _read_rows(
  name: str,
  file: str,
  example: Callable[[str, dict[str, Any]], ChoiceExample],
  folder: pathlib.Path,
) -> list[ChoiceExample]:
  """Examples of a file whose lines hold their answers."""
  path = files.find(folder, name, file)
  return files.some([example(*row) for row in files.json_lines(path)], path)


def _read_labelled(
  name: str,
  stem: str,
  keys: tuple[str, ...],
  allowed: list[str],
  context: Callable[[Callable[[str], str]], str],
  folder: pathlib.Path,
) -> list[ChoiceExample]:
  """Examples of a file whose labels stand in a file beside it."""
  path = files.find(folder, name, f'{stem}.jsonl')
  rows = files.some(list(files.json_lines(path)), path)
  path = files.find(folder, name, f'{stem}-labels.lst')
  found = []
  for (place, row), answer in zip(
    rows, files.labels(path, rows, allowed), strict=True
  ):
    get = functools.partial(value, place, row)
    found.append(_example(context(get), [get(key) for key in keys], answer))
  return found


def _task(read: Callable, *args: Any, source: str) -> DataTask:
  return DataTask(functools.partial(read, *args), None, source)


TASKS = {
  'lambada': _task(
    _read_rows,
    'lambada',
    'lambada_test.jsonl',
    _lambada,
    source='cybertronai/bflm: lambada_test.jsonl; CC BY 4.0',
  ),
  'piqa': _task(
    _read_labelled,
    'piqa',
    'valid',
    ('sol1', 'sol2'),
    ['0', '1'],
    lambda get: f'Question: {get("goal")}\nAnswer:',
    source='ybisk/ybisk.github.io: valid.jsonl, valid-labels.lst; AFL 3.0',
  ),
  'arc_easy': _task(
    _read_rows,
    'arc_easy',
    'ARC-Easy-Test.jsonl',
    _arc,
    source='AI2, ARC V1 (2018): ARC-Easy-Test.jsonl; CC BY-SA 4.0',
  ),
  'arc_challenge': _task(
    _read_rows,
    'arc_challenge',
    'ARC-Challenge-Test.jsonl',
    _arc,
    source='AI2, ARC V1 (2018): ARC-Challenge-Test.jsonl; CC BY-SA 4.0',
  ),
  'siqa': _task(
    _read_labelled,
    'siqa',
    'dev',
    ('answerA', 'answerB', 'answerC'),
    ['1', '2', '3'],
    lambda get: f'Q: {get("context")} {get("question")}\nA:',
    source='AI2, Social IQa: dev.jsonl, dev-labels.lst; CC BY 4.0',
  ),
  'winogrande': _task(
    _read_rows,
    'winogrande',
    'dev.jsonl',
    _winogrande,
    source='AI2, WinoGrande 1.1: dev.jsonl; CC BY',
  ),
  'hellaswag': _task(
    _read_rows,
    'hellaswag',
    'hellaswag_val.jsonl',
    _hellaswag,
    source='rowanz/hellaswag: hellaswag_val.jsonl; MIT',
  ),
  'boolq': _task(
    _read_rows,
    'boolq',
    'dev.jsonl',
    _boolq,
    source='google-research-datasets/boolean-questions: dev.jsonl; '
    'CC BY-SA 3.0',
  ),
}
