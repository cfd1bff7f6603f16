"""Questions on several records, with five choices each.

In the place of LongHealth (Adams et al., 2024, arXiv:2401.14490: patients'
reports) and QASPER (Dasigi et al., 2021, arXiv:2105.03011: papers), whose texts
are not read: the records are made here, of templates, and scores are not those
of either.

  patients1, papers1   the answer is a field of one record
  patients2, papers2   two records are compared, and the answer is a field of
                       the one that is, for instance, of the later date

A context holds eight records in any order, with background sentences between
them where there are some, and the question last. The value of a field differs
from record to record, and four other records give the wrong choices. So each
choice stands in the context once, and only the record of the right one says
that it is.

`Choice:` the choices are not listed in the context. A continuation is a space
and a value.
"""

from collections.abc import Sequence
import dataclasses
import functools
import re

import numpy as np

from hope.tasks.text import (
  ChoiceExample,
  Request,
  TextOptions,
  TextTask,
  largest,
)

RECORDS = 8
CHOICES = 5


@dataclasses.dataclass(frozen=True)
class _Field:
  """What each record says of its subject.

  Attributes:
    sentence: with {} in the place of the value.
    question: with {} in the place of the subject.
    values: from which a record has one.
    orders: what is said of the one of two subjects whose value comes first in
      `values`, and of the other; () where values have no order.
  """

  sentence: str
  question: str
  values: tuple[str, ...]
  orders: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _World:
  """Records of a kind.

  Attributes:
    heading: of a record, with {} in the place of its subject.
    subjects: parts of their names.
    fields: in any order below the heading.
  """

  heading: str
  subjects: tuple[tuple[str, ...], tuple[str, ...]]
  fields: tuple[_Field, ...]


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


def _dates(first: int, last: int) -> tuple[str, ...]:
  """Days of the years from `first` to `last`."""
  return tuple(
    f'{year}-{month:02}-{day:02}'
    for year in range(first, last + 1)
    for month in range(1, 13)
    for day in range(1, 29)
  )


_PATIENTS = _World(
  'Report on {}.',
  (
    _words('Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas'),
    _words('Adler Berger Conti Dumas Ferrari Garcia Hansen Ivanov Keller Lund'),
  ),
  (
    _Field(
      'The patient was born on {}.',
      'When was {} born?',
      _dates(1930, 1989),
      ('is older', 'is younger'),
    ),
    _Field(
      'Admission to the hospital was on {}.',
      'When was {} admitted?',
      _dates(2010, 2023),
      ('was admitted earlier', 'was admitted later'),
    ),
    _Field(
      'Body weight on arrival was {} kilograms.',
      'How many kilograms did {} weigh?',
      tuple(map(str, range(45, 125))),
      ('weighed less', 'weighed more'),
    ),
    _Field(
      'The diagnosis is {}.',
      'Which diagnosis does {} have?',
      _words(
        'pneumonia anaemia gout migraine asthma sepsis psoriasis hepatitis '
        'epilepsy glaucoma bronchitis appendicitis'
      ),
    ),
    _Field(
      'The main treatment consists of {}.',
      'Which treatment does {} receive?',
      _words(
        'ibuprofen warfarin metformin ramipril amoxicillin prednisolone '
        'atorvastatin omeprazole digoxin furosemide bisoprolol clopidogrel'
      ),
    ),
    _Field(
      'There is a known allergy to {}.',
      'What is {} allergic to?',
      _words(
        'penicillin latex peanuts pollen shellfish iodine nickel aspirin '
        'soy eggs wheat codeine'
      ),
    ),
    _Field(
      'The physician in charge is Dr. {}.',
      'Which physician is in charge of {}? Dr.',
      _words(
        'Abe Brandt Costa Diaz Eriksen Fischer Gupta Hoang Ito Jensen Kovacs '
        'Lopez'
      ),
    ),
    _Field(
      'By profession the patient is a {}.',
      'What is {} by profession? A',
      _words(
        'teacher baker pilot carpenter tailor gardener plumber librarian '
        'farmer butcher waiter painter'
      ),
    ),
  ),
)

_PAPERS = _World(
  'Paper: {}.',
  (
    _words(
      'Sparse Robust Neural Unsupervised Multilingual Contextual Latent '
      'Recurrent Adaptive Joint'
    ),
    _words(
      'Parsing Translation Summarization Tagging Retrieval Dialogue '
      'Segmentation Paraphrasing Transliteration Stemming'
    ),
  ),
  (
    _Field(
      'It appeared on {}.',
      'When did {} appear?',
      _dates(2010, 2023),
      ('appeared earlier', 'appeared later'),
    ),
    _Field(
      'The labels come from {} annotators.',
      'How many annotators does {} have?',
      tuple(map(str, range(30, 100))),
      ('has fewer annotators', 'has more annotators'),
    ),
    _Field(
      'The final model has {} million parameters.',
      'How many million parameters does the model of {} have?',
      tuple(map(str, range(100, 1000))),
      ('has the smaller model', 'has the larger model'),
    ),
    _Field(
      'Experiments are on texts in {}.',
      'Which language are the texts of {} in?',
      _words(
        'Finnish Turkish Basque Swahili Korean Hindi Czech Arabic Welsh '
        'Maltese Tamil Estonian'
      ),
    ),
    _Field(
      'The baseline is a {}.',
      'Which baseline does {} have?',
      _words(
        'perceptron transducer transformer decoder trigram lexicon '
        'grammar classifier cache mixture network retriever'
      ),
    ),
    _Field(
      'All data were taken from {}.',
      'Where were the data of {} taken from?',
      _words(
        'newspapers novels parliaments recipes subtitles patents forums '
        'letters hymns manuals lectures diaries'
      ),
    ),
    _Field(
      'Results are reported as {}.',
      'What are the results of {} reported as?',
      _words(
        'accuracy recall precision perplexity BLEU chrF ROUGE METEOR '
        'entropy kappa coverage purity'
      ),
    ),
    _Field(
      'The work was funded by the city of {}.',
      'Which city funded {}? The city of',
      _words(
        'Lisbon Oslo Vienna Prague Dublin Athens Riga Warsaw Bern Tallinn '
        'Zagreb Nicosia'
      ),
    ),
  ),
)


# -------------------------------------------------------------------- examples


@dataclasses.dataclass(frozen=True)
class _Records:
  """What the records of an example say.

  Attributes:
    subjects: [records], whom each is of.
    values: int [fields, records], which of a field's values each has.
    texts: [records], the records as they are read.
  """

  subjects: list[str]
  values: np.ndarray
  texts: list[str]


def _draw(world: _World, rng: np.random.Generator) -> _Records:
  """Records of different subjects, no two of the same value of a field."""
  firsts, lasts = world.subjects
  drawn = rng.choice(len(firsts) * len(lasts), RECORDS, replace=False)
  subjects = [
    f'{firsts[i // len(lasts)]} {lasts[i % len(lasts)]}' for i in drawn
  ]
  values = np.stack(
    [rng.choice(len(x.values), RECORDS, replace=False) for x in world.fields]
  )
  texts = []
  for subject, of_subject in zip(subjects, values.T, strict=True):
    said = [
      field.sentence.format(field.values[value])
      for field, value in zip(world.fields, of_subject, strict=True)
    ]
    heading = world.heading.format(subject)
    texts.append(
      ' '.join([heading, *(said[i] for i in rng.permutation(len(said)))])
    )
  return _Records(subjects, values, texts)


def _ask(
  world: _World, compared: bool, rng: np.random.Generator, records: _Records
) -> tuple[str, list[str], int]:
  """(question, continuations, which of them is right)."""
  right, other = rng.choice(RECORDS, 2, replace=False)
  subject, by = records.subjects[right], -1
  if compared:
    by = rng.choice([i for i, x in enumerate(world.fields) if x.orders])
    of_field = records.values[by]
    said = world.fields[by].orders[int(of_field[right] > of_field[other])]
    pair = sorted((subject, records.subjects[other]))
    subject = f'the one of {pair[0]} and {pair[1]} that {said}'
  asked = rng.choice([i for i in range(len(world.fields)) if i != by])
  field = world.fields[asked]
  # The other one of two is always among the wrong choices.
  left = [i for i in range(RECORDS) if i not in (right, other)]
  wrong = [other, *rng.choice(left, CHOICES - 2, replace=False)]
  chosen = [wrong[i] for i in rng.permutation(CHOICES - 1)]
  answer = int(rng.integers(CHOICES))
  chosen.insert(answer, right)
  continuations = [f' {field.values[i]}' for i in records.values[asked][chosen]]
  return field.question.format(subject), continuations, answer


def _context(
  records: Sequence[str],
  question: str,
  sentences: Sequence[str],
  start: int,
  depths: np.ndarray,
  number: int,
) -> str:
  """Records with `number` sentences among them, and the question.

  Args:
    records: in their order.
    question: behind them.
    sentences: read round from `start`.
    start: a place in `sentences`.
    depths: float [records], ascending, in [0, 1): the share of the sentences
      that stands before each record.
    number: of sentences.
  """
  before = np.floor(depths * (number + 1)).astype(int).tolist()
  parts, told = [], 0
  for i in range(number + 1):
    while told < len(records) and before[told] == i:
      parts.append(records[told])
      told += 1
    if i < number:
      parts.append(sentences[(start + i) % len(sentences)])
  return '\n'.join([*parts, question])


def _generate(
  world: _World,
  compared: bool,
  rng: np.random.Generator,
  options: TextOptions,
) -> ChoiceExample:
  """An example; `options.size` is in tokens of `options.count`.

  It holds the context with any one of the continuations.
  """
  records = _draw(world, rng)
  question, continuations, answer = _ask(world, compared, rng, records)
  sentences = options.sentences
  context = functools.partial(
    _context,
    records.texts,
    question,
    sentences,
    int(rng.integers(max(1, len(sentences)))),
    np.sort(rng.random(RECORDS)),
  )

  longest = max(continuations, key=options.count)

  def fits(number: int) -> bool:
    return options.count(context(number) + longest) <= options.size

  some = any(map(str.strip, sentences))
  number = largest(fits) if some else fits(0) - 1
  if number < 0:
    raise ValueError(
      f'{options.size} tokens cannot hold {RECORDS} records, a question and '
      'its answer. Give a larger size.'
    )
  return ChoiceExample(
    tuple(Request(context(number), x) for x in continuations), answer
  )


# -------------------------------------------------------------------- a solver


def _pattern(template: str, group: str) -> str:
  """A regular expression of a template, with a group in the place of {}."""
  return group.join(map(re.escape, template.split('{}')))


def _solve(world: _World, text: str) -> str:
  """The right continuation, from the records and the question in the text.

  Args:
    world: whose records they are.
    text: a context, whole. Raises ValueError where it asks no question of the
      task.
  """
  *told, question = text.split('\n')
  found = None
  for field in world.fields:
    found = re.fullmatch(_pattern(field.question, '(.+)'), question)
    if found:
      break
  if found is None:
    raise ValueError(
      f'The text ends in {text[-40:]!r}. Give a context of the task, whose '
      'last line is a question.'
    )
  heading = re.compile(_pattern(world.heading, r'(\w+ \w+)'))
  records = {}
  for line in told:
    if begins := heading.match(line):
      records[begins[1]] = line

  def value(field: _Field, subject: str) -> str:
    said = re.search(_pattern(field.sentence, r'([\w-]+)'), records[subject])
    assert said is not None
    return said[1]

  subject = found[1]
  if pair := re.fullmatch(
    r'the one of (\w+ \w+) and (\w+ \w+) that (.+)', subject
  ):
    ((by, last),) = (
      (x, x.orders.index(pair[3])) for x in world.fields if pair[3] in x.orders
    )
    ranked = sorted(
      pair.groups()[:2], key=lambda x: by.values.index(value(by, x))
    )
    subject = ranked[last]
  return f' {value(field, subject)}'


TASKS = {
  f'{name}{1 + compared}': TextTask(
    functools.partial(_generate, world, compared),
    None,
    functools.partial(_solve, world),
    1 / CHOICES,
  )
  for name, world in (('patients', _PATIENTS), ('papers', _PAPERS))
  for compared in (False, True)
}
