"""Translation into English: Kalamang and Teop, scored by chrF.

Examples of two dictionaries (Dictionaria: Visser, 2020, and Mosel, 2019), each
the CSV table that their repository publishes. Kalamang's are the source of MTOB
(Tanzer et al., 2023, arXiv:2309.16575).

`Choice:` some of Kalamang's translations are Indonesian, with the English one
in `alt_translation1`. The English one is that with more English function words
less Indonesian ones; the first, where both have as many. A pair with more
Indonesian ones in both is left out.
`Choice:` pairs are ordered by a hash of the source: the first 150 are the test,
the next 150 the validation, the others train. A sentence that occurs twice
counts once.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import pathlib
import re

from hope.tasks.datasets import files
from hope.tasks.text import DataTask, TextExample

_HELD_OUT = 150
_ENGLISH = frozenset(
  'the a an of to in and is are was were he she it they we you i my his her '
  'not do does did this that there with for on at from who what will have has '
  'their our your'.split()
)
_INDONESIAN = frozenset(
  'yang dan di ke dari itu ini dia saya kamu kami kita mereka ada tidak sudah '
  'akan untuk dengan pada tra dong kasih sa de ko su pu satu orang'.split()
)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Sentences and their translations.

  Attributes:
    train: (source, English) of each.
    validation: the same.
    test: the same.
  """

  train: tuple[tuple[str, str], ...]
  validation: tuple[tuple[str, str], ...]
  test: tuple[tuple[str, str], ...]


def englishness(text: str) -> int:
  """English function words of the text, less Indonesian ones."""
  words = re.findall(r"[a-z']+", text.lower())
  return sum((x in _ENGLISH) - (x in _INDONESIAN) for x in words)


def read_pairs(name: str, folder: pathlib.Path) -> Pairs:
  """Reads examples.csv of 'kalamang' or 'teop'.

  Raises:
    ValueError: naming the file and what is wrong.
  """
  found: dict[str, str] = {}
  for place, row in files.csv_rows(files.find(folder, name, 'examples.csv')):
    source = files.value(place, row, 'Primary_Text').strip()
    given = [files.value(place, row, 'Translated_Text')]
    given.append(row.get('alt_translation1', ''))
    english = max(
      (x.strip() for x in given if x.strip()), key=englishness, default=''
    )
    if source and english and englishness(english) >= 0:
      found.setdefault(source, english)
  if len(found) <= 2 * _HELD_OUT:
    raise ValueError(
      f'{folder}: examples.csv of {name} has {len(found)} different sentences '
      f'with a translation; {2 * _HELD_OUT} are held out, so more are needed.'
    )

  def place_of(pair: tuple[str, str]) -> bytes:
    return hashlib.sha256(pair[0].encode()).digest()

  pairs = sorted(found.items(), key=place_of)
  return Pairs(
    test=tuple(pairs[:_HELD_OUT]),
    validation=tuple(pairs[_HELD_OUT : 2 * _HELD_OUT]),
    train=tuple(pairs[2 * _HELD_OUT :]),
  )


def prompt(language: str, source: str) -> str:
  """What stands before a translation, which ends with its line."""
  return f'{language}: {source}\nEnglish:'


def _chrf():
  try:
    from sacrebleu.metrics import CHRF
  except ImportError as error:
    raise ImportError(
      'Translations are scored by sacrebleu, which is not installed. Install '
      "it: pip install 'hope-jax[tasks]'."
    ) from error
  return CHRF()


def sentence_chrf(output: str, example: TextExample) -> float:
  """chrF of a sentence, in [0, 1] (sacrebleu's chrF2)."""
  return _chrf().sentence_score(output.strip(), example.answers).score / 100


def corpus_chrf(outputs: Sequence[str], references: Sequence[str]) -> float:
  """chrF of a corpus, in [0, 1] (sacrebleu's chrF2), of a reference each.

  It counts n-grams over the corpus, so it is not the mean over sentences.
  """
  return _chrf().corpus_score(list(outputs), [list(references)]).score / 100


def _read(name: str, folder: pathlib.Path) -> list[TextExample]:
  found = []
  for source, english in read_pairs(name, folder).test:
    text = prompt(name.capitalize(), source)
    pieces = functools.partial(iter, (text,))
    found.append(TextExample(pieces, source, (english,), ()))
  return found


def _task(name: str) -> DataTask:
  return DataTask(
    functools.partial(_read, name),
    sentence_chrf,
    f'dictionaria/{name}: examples.csv; CC BY 4.0',
    stop=('\n',),
  )


TASKS = {name: _task(name) for name in ('kalamang', 'teop')}
