"""Files that are not of the published format are refused."""

import json

from dataset_cases import (
  ARC,
  BOOLQ,
  CHOICES,
  CLINC,
  HELLASWAG,
  TEXTS,
  TRIVIA,
  put,
  questions,
  rows,
  texts,
  write,
)
import pytest

from hope.tasks import DATA_TASKS
from hope.tasks.datasets import files, published

HOSTILE = (
  '',
  '\n\n',
  '{',
  '[]',
  '{}',
  '3\n',
  '\ufeff{"text": 5}\n',
  'a,b\n1\n',
)


@pytest.mark.parametrize('name', DATA_TASKS)
def test_a_missing_file_is_named(tmp_path, name):
  with pytest.raises(ValueError, match='python -m hope.datasets'):
    DATA_TASKS[name].read(tmp_path)


@pytest.mark.parametrize('content', HOSTILE)
@pytest.mark.parametrize('name', DATA_TASKS)
def test_files_of_another_format_are_refused(tmp_path, name, content):
  for file in published.HASHES[name]:
    write(tmp_path, name, file, content)
  with pytest.raises(ValueError, match=str(tmp_path)):
    DATA_TASKS[name].read(tmp_path)


@pytest.mark.parametrize(
  ('name', 'file', 'content', 'message'),
  [
    ('piqa', 'valid-labels.lst', '1\n0\n', 'has 2 lines for 1 rows'),
    ('piqa', 'valid-labels.lst', '2\n', r"line 1: the label is '2', not one"),
    ('siqa', 'dev-labels.lst', '0\n', 'not one of'),
    ('winogrande', 'dev.jsonl', rows({'sentence': 'No gap.'}), 'has no gap'),
    ('lambada', 'lambada_test.jsonl', rows({'text': 'one'}), 'no last word'),
    ('boolq', 'dev.jsonl', rows(BOOLQ | {'answer': 1}), "'answer'"),
    (
      'arc_easy',
      'ARC-Easy-Test.jsonl',
      rows(ARC | {'answerKey': 'Z'}),
      "line 1: the answer is 'Z'",
    ),
    (
      'hellaswag',
      'hellaswag_val.jsonl',
      rows(HELLASWAG | {'label': '2'}),
      "the label is '2'",
    ),
  ],
)
def test_what_is_wrong_is_said(tmp_path, name, file, content, message):
  put(tmp_path, name, CHOICES[name][0])
  write(tmp_path, name, file, content)
  with pytest.raises(ValueError, match=message):
    DATA_TASKS[name].read(tmp_path)


FILES = {name: files for name, (files, *_) in (CHOICES | TEXTS).items()}
FILES['clinc150'] = CLINC
OTHER = (None, '', [{}])


def places(node, place=()):
  """The keys that lead to each value within a value."""
  items = node.items() if isinstance(node, dict) else enumerate(node)
  for key, child in items:
    yield (*place, key)
    if isinstance(child, (dict, list)):
      yield from places(child, (*place, key))


def changed(node, place):
  """The value with another in a place, for each of OTHER, and without it."""
  for other in (*OTHER, 'nothing'):
    copy = json.loads(json.dumps(node))
    inner = copy
    for key in place[:-1]:
      inner = inner[key]
    if other == 'nothing':
      del inner[place[-1]]
    else:
      inner[place[-1]] = other
    yield copy


@pytest.mark.parametrize('name', FILES)
def test_any_other_value_is_refused_or_read(tmp_path, name):
  """Whatever stands in a place: an error of ours, or examples that ask."""
  put(tmp_path, name, FILES[name])
  task = DATA_TASKS[name]
  for file, content in FILES[name].items():
    lines = file.endswith('.jsonl')
    if isinstance(content, str) and not lines:
      continue
    node = [json.loads(x) for x in content.splitlines()] if lines else content
    for place in places(node):
      for other in changed(node, place):
        write(tmp_path, name, file, rows(*other) if lines else other)
        try:
          examples = task.read(tmp_path)
        except ValueError:
          continue
        assert examples, (file, place)
        if task.score is not None:
          assert not any(task.score('zq', x) for x in examples), (file, place)
    put(tmp_path, name, {file: content})


def test_only_a_line_feed_ends_a_line(tmp_path):
  text = 'one\u2028two\x85 three'
  line = json.dumps({'text': text}, ensure_ascii=False)
  write(tmp_path, 'lambada', 'lambada_test.jsonl', f'{line}\r\n\r\n{line}')
  request = ('one\u2028two\x85', ' three')
  found = questions(tmp_path, 'lambada')
  assert [x.requests for x in found] == [(request,), (request,)]


def test_rows_are_read_one_at_a_time(tmp_path):
  """A file may be larger than the memory: the second line is not reached."""
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"a": 1}\nno JSON\n')
  found = files.json_lines(path)
  assert next(found) == (f'{path}, line 1', {'a': 1})
  with pytest.raises(ValueError, match='line 2 is not JSON'):
    next(found)


def test_brackets_without_end_are_refused(tmp_path):
  write(tmp_path, 'xquad', 'xquad.en.json', '[' * 100_000)
  with pytest.raises(ValueError, match='is not JSON'):
    DATA_TASKS['xquad'].read(tmp_path)


@pytest.mark.parametrize('name', ['swde', 'fda'])
def test_an_answer_that_any_output_contains_is_refused(tmp_path, name):
  row = {'text': 'Height:', 'value': '  ', 'key': 'height'}
  write(tmp_path, name, f'{name}.jsonl', rows(row))
  with pytest.raises(ValueError, match='line 1: an answer is blank'):
    DATA_TASKS[name].read(tmp_path)


def test_blank_aliases_are_left_out(tmp_path):
  put(tmp_path, 'triviaqa', TEXTS['triviaqa'][0])
  trivia = json.loads(json.dumps(TRIVIA))
  trivia['Data'][0]['Answer']['Aliases'] = ['', 'Quercus']
  write(tmp_path, 'triviaqa', 'verified-wikipedia-dev.json', trivia)
  assert texts(tmp_path, 'triviaqa')[0].answers == ('Oak', 'Quercus')


def test_bytes_that_are_no_text(tmp_path):
  (tmp_path / 'lambada_test.jsonl').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match='not UTF-8'):
    DATA_TASKS['lambada'].read(tmp_path)
