r"""Recall of what a document says: XQuAD, SQuAD, SWDE, FDA, DROP, NQ, TriviaQA.

The protocol of Arora et al. (2024, arXiv:2402.18668): a document and a cue; the
model writes at most 48 tokens, to the end of the line, and is right if its
output contains an answer, case ignored.

`Choice:` questions are asked as 'DOCUMENT\nQuestion: QUESTION\nAnswer:'; the
rows of SWDE and FDA end in a cue of their own.
`Choice:` of a DROP answer of several spans, all must be contained; of the
published alternatives of other sets, any.
`Choice:` the document of Natural Questions is the long answer, and that of
TriviaQA the first page of its evidence. Questions without a short answer, or
without a page, are left out, and so are blank aliases of an answer, which any
output would contain.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import pathlib
import re
from typing import Any

from hope.tasks.datasets import files
from hope.tasks.datasets.files import value
from hope.tasks.text import DataTask, TextExample


def contains_any(output: str, example: TextExample) -> float:
  """1 if the output contains an answer; case is ignored."""
  return float(any(x.lower() in output.lower() for x in example.answers))


def contains_all(output: str, example: TextExample) -> float:
  """1 if the output contains all the answers; case is ignored."""
  return float(all(x.lower() in output.lower() for x in example.answers))


def _example(
  place: str, text: str, question: str, answers: Sequence[str]
) -> TextExample:
  if not all(x.strip() for x in answers):
    raise ValueError(f'{place}: an answer is blank; any output contains it.')
  pieces = functools.partial(iter, (text,))
  return TextExample(pieces, question, tuple(dict.fromkeys(answers)), ())


def _asked(
  place: str, document: str, question: str, answers: Sequence[str]
) -> TextExample:
  text = f'{document.strip()}\nQuestion: {question.strip()}\nAnswer:'
  return _example(place, text, question, answers)


def _squad(name: str, file: str, folder: pathlib.Path) -> list[TextExample]:
  """SQuAD 1.1 and what shares its format."""
  path = files.find(folder, name, file)
  found = []
  articles = value(str(path), files.json_file(path), 'data', list)
  for i, article in enumerate(articles):
    place = f'{path}, article {i}'
    for paragraph in value(place, article, 'paragraphs', list):
      document = value(place, paragraph, 'context')
      for question in value(place, paragraph, 'qas', list):
        answers = value(place, question, 'answers', list)
        texts = [value(place, answer, 'text') for answer in answers]
        if not texts:
          raise ValueError(f'{place}: a question has no answer.')
        asked = value(place, question, 'question')
        found.append(_asked(place, document, asked, texts))
  return files.some(found, path)


def _cued(name: str, folder: pathlib.Path) -> list[TextExample]:
  """Rows with a text that ends in a cue, and the value that follows."""
  path = files.find(folder, name, f'{name}.jsonl')
  found = [
    _example(
      place,
      value(place, row, 'text').strip(),
      str(row.get('key', '')),
      [value(place, row, 'value').strip()],
    )
    for place, row in files.json_lines(path)
  ]
  return files.some(found, path)


def _drop_answers(place: str, answer: dict[str, Any]) -> list[str]:
  """A number, spans, or a date; what an answer lacks may be left out."""
  answer = {'number': '', 'spans': [], 'date': {}} | answer
  if number := value(place, answer, 'number'):
    return [number]
  if spans := files.strings(place, answer, 'spans'):
    return spans
  date = {'day': '', 'month': '', 'year': ''} | value(
    place, answer, 'date', dict
  )
  parts = [value(place, date, key) for key in ('day', 'month', 'year')]
  if text := ' '.join(x for x in parts if x):
    return [text]
  raise ValueError(f'{place}: an answer has no number, no span and no date.')


def _drop(folder: pathlib.Path) -> list[TextExample]:
  path = files.find(folder, 'drop', 'drop_dataset_dev.json')
  data = files.json_object(path)
  found = []
  for passage_id in data:
    place = f'{path}, {passage_id}'
    passage = value(str(path), data, passage_id, dict)
    for pair in value(place, passage, 'qa_pairs', list):
      answers = _drop_answers(place, value(place, pair, 'answer', dict))
      question = value(place, pair, 'question')
      document = value(place, passage, 'passage')
      found.append(_asked(place, document, question, answers))
  return files.some(found, path)


def _tokens(place: str, row: dict[str, Any]) -> list[str]:
  """The document of Natural Questions, of either simplified form."""
  if 'document_text' in row:
    return value(place, row, 'document_text').split(' ')
  return [
    value(place, token, 'token')
    for token in value(place, row, 'document_tokens', list)
  ]


def _words(tokens: list[str]) -> str:
  """The text of tokens, without those of HTML."""
  return ' '.join(x for x in tokens if not re.fullmatch(r'<[^<>]*>', x))


def _spans(
  place: str, row: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
  """(long answer, short answers) of the annotations with a short one."""
  for annotation in value(place, row, 'annotations', list):
    if short := value(place, annotation, 'short_answers', list):
      yield value(place, annotation, 'long_answer', dict), short


def _nq(folder: pathlib.Path) -> list[TextExample]:
  path = files.find(folder, 'nq', 'v1.0-simplified_nq-dev-all.jsonl')
  found = []
  for place, row in files.json_lines(path):
    tokens = _tokens(place, row)

    def text(span: dict[str, Any], tokens=tokens, place=place) -> str:
      ends = [value(place, span, f'{x}_token', int) for x in ('start', 'end')]
      return _words(tokens[slice(*ends)])

    if spans := list(_spans(place, row)):
      document = text(spans[0][0])
      answers = [text(x) for _, short in spans for x in short]
      answers = [x for x in answers if x and x in document]
      if answers:
        question = value(place, row, 'question_text')
        found.append(_asked(place, document, question, answers))
  return files.some(found, path)


def _triviaqa(folder: pathlib.Path) -> list[TextExample]:
  path = files.find(folder, 'triviaqa', 'verified-wikipedia-dev.json')
  found = []
  for i, row in enumerate(
    value(str(path), files.json_file(path), 'Data', list)
  ):
    place = f'{path}, question {i}'
    pages = value(place, row, 'EntityPages', list)
    if not pages:
      continue
    page = value(place, pages[0], 'Filename')
    document = files.text(files.find(path.parent, 'evidence/wikipedia', page))
    answer = value(place, row, 'Answer', dict)
    aliases = files.strings(place, answer, 'Aliases')
    answers = [value(place, answer, 'Value')]
    answers += [x for x in aliases if x.strip()]
    question = value(place, row, 'Question')
    found.append(_asked(place, document, question, answers))
  return files.some(found, path)


def _task(
  read: Callable[[pathlib.Path], Sequence[TextExample]],
  source: str,
  score: Callable[[str, TextExample], float] = contains_any,
) -> DataTask:
  return DataTask(read, score, source, stop=('\n',), tokens=48)


TASKS = {
  'xquad': _task(
    functools.partial(_squad, 'xquad', 'xquad.en.json'),
    'google-deepmind/xquad: xquad.en.json; CC BY-SA 4.0',
  ),
  'squad': _task(
    functools.partial(_squad, 'squad', 'dev-v1.1.json'),
    'rajpurkar/SQuAD-explorer: dev-v1.1.json; CC BY-SA 4.0',
  ),
  'swde': _task(
    functools.partial(_cued, 'swde'),
    'hazyresearch/based-swde, its rows as JSON lines: swde.jsonl',
  ),
  'fda': _task(
    functools.partial(_cued, 'fda'),
    'hazyresearch/based-fda, its rows as JSON lines: fda.jsonl',
  ),
  'drop': _task(
    _drop, 'AI2, DROP: drop_dataset_dev.json; CC BY-SA 4.0', contains_all
  ),
  'nq': _task(
    _nq,
    'google-research-datasets/natural-questions: '
    'v1.0-simplified_nq-dev-all.jsonl; CC BY-SA 3.0',
  ),
  'triviaqa': _task(
    _triviaqa,
    'TriviaQA: verified-wikipedia-dev.json, evidence/wikipedia; '
    'Apache-2.0 (questions)',
  ),
}
