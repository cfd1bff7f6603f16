"""BABILong: facts of a small world, scattered over a long text.

Kuratov et al., 2024 (arXiv:2406.10149), of bAbI's tasks 1 and 2 (Weston et al.,
2015, arXiv:1502.05698). The stories are simulated here; bAbI's files are not
read. A prompt is background, with the facts in order at random boundaries of
its sentences, and the question last.

`Choice:` an example is one of a story's five questions, drawn evenly, with the
facts up to it: two moves for a question of qa1. Of qa2, whose files have no
fixed number, four facts for a question, and more until an object was taken.
"""

from collections.abc import Callable, Iterator
import functools
import re

import numpy as np

from hope.tasks.text import TextExample, TextOptions, TextTask, count_words

PLACES = ('bedroom', 'kitchen', 'garden', 'hallway', 'bathroom', 'office')
ACTORS = ('John', 'Mary', 'Sandra', 'Daniel')
OBJECTS = ('apple', 'football', 'milk')

_MOVES = ('moved', 'went', 'went back', 'journeyed', 'travelled')
_GETS = ('got', 'took', 'grabbed', 'picked up')
_DROPS = ('dropped', 'discarded', 'left', 'put down')
_QUESTIONS = 5
# The fewest words of a sentence of the background.
_LEAST_WORDS = 10

Story = tuple[list[str], str, str]


# --------------------------------------------------------------------- stories


def _move(rng: np.random.Generator, at: dict[str, str]) -> str:
  """Moves an actor to another place; the fact."""
  actor = str(rng.choice(ACTORS))
  at[actor] = str(rng.choice([x for x in PLACES if x != at.get(actor)]))
  return f'{actor} {rng.choice(_MOVES)} to the {at[actor]}.'


def _story_1(rng: np.random.Generator) -> Story:
  """(facts, question, answer) of qa1."""
  at: dict[str, str] = {}
  moves = 2 * int(rng.integers(1, _QUESTIONS + 1))
  facts = [_move(rng, at) for _ in range(moves)]
  actor = str(rng.choice(sorted(at)))
  return facts, f'Where is {actor}?', at[actor]


def _story_2(rng: np.random.Generator) -> Story:
  """(facts, question, answer) of qa2."""
  at: dict[str, str] = {}
  holders: dict[str, str] = {}
  lying: dict[str, str] = {}
  facts: list[str] = []
  least = 4 * int(rng.integers(1, _QUESTIONS + 1))
  while len(facts) < least or not (holders or lying):
    # What can be done beside a move: (actor, object).
    drops = [(actor, thing) for thing, actor in holders.items()]
    gets = [
      (actor, thing)
      for actor in at
      for thing in OBJECTS
      if thing not in holders and lying.get(thing, at[actor]) == at[actor]
    ]
    acts = sorted(drops + gets)
    if not acts or rng.random() < 0.5:
      facts.append(_move(rng, at))
      continue
    actor, thing = acts[rng.integers(len(acts))]
    if thing in holders:
      del holders[thing]
      lying[thing] = at[actor]
      facts.append(f'{actor} {rng.choice(_DROPS)} the {thing}.')
    else:
      lying.pop(thing, None)
      holders[thing] = actor
      facts.append(f'{actor} {rng.choice(_GETS)} the {thing} there.')
  thing = str(rng.choice(sorted({*holders, *lying})))
  place = at[holders[thing]] if thing in holders else lying[thing]
  return facts, f'Where is the {thing}?', place


# --------------------------------------------------------------------- prompts


def _background(options: TextOptions, start: int) -> Iterator[str]:
  """Sentences that are long enough, from `start` on and round, without end."""
  while True:
    found = False
    for i in range(len(options.sentences)):
      sentence = options.sentences[(start + i) % len(options.sentences)]
      if count_words(sentence) >= _LEAST_WORDS:
        found = True
        yield sentence
    if not found:
      raise ValueError(
        f'None of the {len(options.sentences)} background sentences has '
        f'{_LEAST_WORDS} words. Give sentences that do.'
      )


def _fitting(options: TextOptions, start: int, tokens: int) -> int:
  """How many sentences of the background hold at most so many tokens."""
  number = 0
  if tokens < _LEAST_WORDS:
    return number
  for sentence in _background(options, start):
    tokens -= options.count(f'{sentence} ')
    if tokens < 0:
      break
    number += 1
  return number


def _pieces(
  options: TextOptions,
  start: int,
  number: int,
  facts: list[str],
  boundaries: list[int],
  question: str,
) -> Iterator[str]:
  """The prompt: `facts[j]` after `boundaries[j]` background sentences."""
  told = 0
  background = _background(options, start)
  for i in range(number + 1):
    while told < len(facts) and boundaries[told] == i:
      yield facts[told] + ' '
      told += 1
    if i < number:
      yield next(background) + ' '
  yield question


def _generate(
  story: Callable[[np.random.Generator], Story],
  rng: np.random.Generator,
  options: TextOptions,
) -> TextExample:
  """An example; `options.size` is in tokens of `options.count`.

  It holds the prompt; pieces are counted one by one.
  """
  facts, question, answer = story(rng)
  needed = sum(options.count(f'{x} ') for x in facts) + options.count(question)
  if needed > options.size:
    raise ValueError(
      f'A prompt of {options.size} tokens cannot hold a story of {needed}. '
      'Give a larger size.'
    )
  start = int(rng.integers(max(1, len(options.sentences))))
  number = _fitting(options, start, options.size - needed)
  boundaries = sorted(rng.integers(0, number + 1, len(facts)).tolist())
  return TextExample(
    functools.partial(
      _pieces, options, start, number, facts, boundaries, question
    ),
    question,
    (answer,),
    tuple(x / max(1, number) for x in boundaries),
  )


# --------------------------------------------------------- scores, and a solver


def _labels(text: str) -> set[str]:
  """The places that the text names."""
  return {x for x in PLACES if re.search(rf'\b{x}\b', text.lower())}


def score(output: str, example: TextExample) -> float:
  """1 where the first sentence names the answer and no other place, else 0.

  Args:
    output: what a model wrote; its first sentence ends at a full stop, an
      exclamation or question mark, or the end of its line. Case is ignored.
    example: of which the places that the question names do not count.
  """
  first = re.split(r'[.!?\n]', output.strip(), maxsplit=1)[0]
  found = _labels(first) - _labels(example.question)
  return float(found == set(example.answers))


_FACT = re.compile(
  rf'\b({"|".join(ACTORS)}) (?:'
  rf'(?:{"|".join(_MOVES)}) to the (?P<place>{"|".join(PLACES)})'
  rf'|(?:{"|".join(_GETS)}) the (?P<taken>{"|".join(OBJECTS)}) there'
  rf'|(?:{"|".join(_DROPS)}) the (?P<left>{"|".join(OBJECTS)}))\.'
)


def solve(text: str) -> str:
  """The place asked for, from the facts of the text read in order.

  Args:
    text: a prompt, whole. Raises ValueError where its end is no question of
      the task.
  """
  asked = re.search(
    rf'Where is (?:the )?({"|".join(ACTORS + OBJECTS)})\?$', text
  )
  if asked is None:
    raise ValueError(
      f'The text ends in {text[-40:]!r}. Give a prompt of the task, which ends '
      "in 'Where is ...?'."
    )
  where: dict[str, str] = {}
  carried: dict[str, set[str]] = {actor: set() for actor in ACTORS}
  for fact in _FACT.finditer(text):
    actor = fact[1]
    if fact['place']:
      where.update(dict.fromkeys({actor, *carried[actor]}, fact['place']))
    elif fact['taken']:
      carried[actor].add(fact['taken'])
      where[fact['taken']] = where[actor]
    else:
      carried[actor].remove(fact['left'])
  return where[asked[1]]


TASKS = {
  name: TextTask(
    functools.partial(_generate, story),
    score,
    solve,
    1 / 6,
    stop=('.', '!', '?', '\n'),
    tokens=32,
  )
  for name, story in (('qa1', _story_1), ('qa2', _story_2))
}
