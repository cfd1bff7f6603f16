"""Tasks that are read from files: their formats, and the published files."""

import os
import pathlib
import sys

from dataset_cases import (
  CHOICES,
  CLINC,
  NQ,
  TEXTS,
  put,
  questions,
  rows,
  texts,
  write,
)
import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from hope.tasks import DATA_TASKS
from hope.tasks.datasets import (
  choices,
  files,
  intents,
  published,
  recall,
  translation,
)
from hope.tasks.text import TextExample


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


def test_hellaswag_loses_its_marks():
  assert choices.clean_hellaswag(' [header] A [title] b.') == ' A. b.'


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
