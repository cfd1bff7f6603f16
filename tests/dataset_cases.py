"""Small made-up files of published formats, for tests."""

import json

from hope.tasks import DATA_TASKS
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
CLINC = {
  'domains.json': {'home': ['dim_lights', 'clean'], 'work': ['mail']},
  'data_full.json': {
    'train': [['turn it down', 'dim_lights'], ['write to Al', 'mail']],
    'val': [['sweep', 'clean']],
    'test': [['darker', 'dim_lights']],
    'oos_test': [['who', 'oos']],
  },
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
