"""Learning in turn: what a learner keeps of classes, languages and domains.

  python -m experiments.continual --data=FOLDER --workdir=runs/continual \
    --config.set=clinc150 --config.learner.rule=replay
  python -m experiments.continual --data=FOLDER --workdir=runs/languages \
    --protocol=sequential
  python -m experiments.continual --workdir=runs/domains --protocol=returning \
    --domains='docs/*.md,hope/**/*.py'

The protocols are those of `hope.continual.protocols`, the rules those of
`hope.continual.learners`; --data is a folder with the files that
`python -m hope.datasets` names. What learns is a Hope of --config.hope.FIELD.
Of classes, --config.model says which model learns: a linear classifier of words
('words'), or a Hope with a token for each class ('hope-token') or with their
names ('hope-name').

WORKDIR/result.json is the result, WORKDIR/accuracy.png the accuracies. A
process that is killed goes on from the last segment, with the same numbers.
"""

import dataclasses
import glob
import importlib.metadata
import json
import pathlib
import platform
import sys
import time
from typing import Any

from absl import flags
import jax
import ml_collections
from ml_collections import config_flags
import optax

from hope import command_line
from hope.config import base_config
from hope.continual import bag_of_words, language, learners, protocols
from hope.continual.following import Journal
from hope.continual.options import LearnerOptions
from hope.evaluation import pictures
from hope.fields import SEED, declared, field, flat
from hope.run import drawing
from hope.run.progress import format_duration
from hope.tasks.datasets import intents, translation
from hope.tasks.text import Request

_SETS = {'clinc150': intents.read_clinc150, 'banking77': intents.read_banking77}
_PROTOCOLS = ('class_incremental', 'sequential', 'returning')
# Seconds between two lines of progress.
_PAUSE = 10.0


@dataclasses.dataclass(frozen=True)
class Options:
  """What is learned, by which model."""

  seed: int = field(
    0, 'Of the order of tasks and examples, and of the learner.', **SEED
  )
  set: str = field('clinc150', 'Queries and classes.', choices=tuple(_SETS))
  model: str = field(
    'words',
    'What learns classes; other protocols are of Hope.',
    choices=('words', 'hope-token', 'hope-name'),
  )
  ngrams: int = field(
    1, "Most words of a term of 'words'.", minimum=1, maximum=5
  )
  rate: float = field(1e-2, "Learning rate of 'words', by Adam.", above=0)
  length: int = field(
    64, 'Tokens of a query or a text.', minimum=1, maximum=2**16
  )
  split: str = field(
    'test',
    "What is measured: 'validation' is for choosing options.",
    choices=('test', 'validation'),
  )
  tests: int = field(
    0, 'Examples of each class or set that are measured; 0: all.', minimum=0
  )
  every: int = field(
    20, "Batches between two measurements of 'returning'.", minimum=1
  )
  visits: int = field(2, "Visits of each domain of 'returning'.", minimum=2)


def default_config() -> ml_collections.ConfigDict:
  """Options of the protocol, of the learner, and of a small Hope."""
  config = ml_collections.ConfigDict(
    {name: x.default for name, x in declared(Options).items()}
  )
  stated = declared(LearnerOptions)
  config.learner = ml_collections.ConfigDict(
    {name: x.default for name, x in stated.items()}
  )
  config.hope = base_config()
  with config.hope.unlocked():
    model = config.hope.model
    model.width, model.num_layers, model.num_heads = 64, 2, 2
    model.titans.chunk_size = model.titans.projection_chunk_size = 16
    config.hope.compute.remat, config.hope.compute.unroll = False, 2
    # A stream has no end that a schedule could know.
    config.hope.optimizer.final_fraction = 1.0
  return config


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The same, once every option but Hope's, which it checks itself, is right.

  Raises:
    ValueError: naming the field.
  """
  for name, stated in declared(Options).items():
    config[name] = stated.check(name, config[name])
  for name, stated in declared(LearnerOptions).items():
    config.learner[name] = stated.check(f'learner.{name}', config.learner[name])
  config.hope.seed = config.seed
  return config


def learner_options(config) -> LearnerOptions:
  """Of a checked configuration."""
  return LearnerOptions(**config.learner.to_dict())


class Lines:
  """Progress: a line every few seconds, and one after each segment."""

  def __init__(self, label: str, examples: int):
    self._label, self._examples = label, examples
    self._begin = self._shown = time.monotonic()
    self._first: int | None = None

  def __call__(self, done: int, values: Any) -> None:
    """Shows what is done of the examples of all segments."""
    now = time.monotonic()
    if self._first is None:
      self._first = done
    if values is None and now < self._shown + _PAUSE:
      return
    self._shown, left = now, None
    if done > self._first:
      each = (now - self._begin) / (done - self._first)
      left = (self._examples - done) * each
    text = f'{self._label}  {done}/{self._examples} examples'
    print(f'{text}  {format_duration(left)} left', flush=True)
    if values is not None:
      print(f'  measured: {_short(values)}', flush=True)


def _short(values: Any) -> str:
  """Measured values with three digits."""
  if isinstance(values, dict):
    return '  '.join(f'{k} {_short(x)}' for k, x in values.items())
  return ' '.join(f'{x:.3f}' for x in values)


# ------------------------------------------------------------------- protocols


def read_intents(config, data: str) -> intents.Intents:
  """The data set of a configuration; `test` is what is measured of it."""
  found = _SETS[config.set](pathlib.Path(data))
  if config.split == 'validation':
    if not found.validation:
      raise ValueError(
        f'{config.set} has no published validation examples; measure '
        '--config.split=test.'
      )
    found = dataclasses.replace(found, test=found.validation)
  if not config.tests:
    return found
  kept, counts = [], dict.fromkeys(range(len(found.classes)), 0)
  for text, label in found.test:
    counts[label] += 1
    if counts[label] <= config.tests:
      kept.append((text, label))
  return dataclasses.replace(found, test=tuple(kept))


def classifier(config, found: intents.Intents):
  """The model of a configuration, for the classes of a data set."""
  if config.model == 'words':
    texts = [text for text, _ in found.train]
    known = bag_of_words.TfIdf(texts, config.ngrams)
    most = known.most(texts + [text for text, _ in found.test])
    return bag_of_words.model(
      known, len(found.classes), optax.adam(config.rate), most
    )
  return language.classifier(
    config.hope,
    found.classes,
    answer=config.model.removeprefix('hope-'),
    length=config.length,
  )


def _following(config, options, identity, examples: int) -> dict[str, Any]:
  """How all protocols follow `examples` examples: batches, journal, lines."""
  return {
    'batch': config.learner.batch,
    'journal': Journal(pathlib.Path(options.workdir) / 'journal', identity),
    'report': Lines(config.learner.rule, examples),
  }


def class_incremental(config, options, identity) -> dict[str, Any]:
  """Runs the protocol; draws the accuracies."""
  found = read_intents(config, options.data)
  model = classifier(config, found)
  learner = learners.make(
    model, learner_options(config), config.seed, len(found.train)
  )
  result = protocols.class_incremental(
    learner,
    found,
    config.seed,
    **_following(config, options, identity, len(found.train)),
  )
  picture = pictures.accuracy_matrix(result.accuracy)
  drawing.save(picture, pathlib.Path(options.workdir) / 'accuracy.png')
  parameters = sum(x.size for x in jax.tree.leaves(model.params))
  return result.to_dict() | {'parameters': parameters}


def sequential(config, options, identity) -> dict[str, Any]:
  """Kalamang, then Teop, to English."""
  languages = {}
  for name in ('kalamang', 'teop'):
    pairs = translation.read_pairs(name, pathlib.Path(options.data))

    def requests(found, name=name):
      return [
        Request(translation.prompt(name.capitalize(), a), f' {b}\n')
        for a, b in found
      ]

    measured = {'test': pairs.test, 'validation': pairs.validation}
    test = measured[config.split][: config.tests or None]
    languages[name] = requests(pairs.train), requests(test)
  model = language.answerer(
    config.hope, before=config.length, after=config.length
  )
  examples = sum(len(train) for train, _ in languages.values())

  def start():
    return learners.make(model, learner_options(config), config.seed, examples)

  result = protocols.sequential(
    start,
    languages,
    config.seed,
    **_following(config, options, identity, examples),
  )
  return result.to_dict()


def read_domain(pattern: str, config) -> tuple[list[str], list[str]]:
  """(texts to learn, texts to measure) of the files that match.

  Texts are pieces of `length` bytes; the last tenth of each file is measured.
  """
  paths = sorted(glob.glob(pattern, recursive=True))
  train, test = [], []
  for path in paths:
    text = pathlib.Path(path).read_text(encoding='utf-8')
    pieces = [
      text[i : i + config.length] for i in range(0, len(text), config.length)
    ]
    kept = len(pieces) - len(pieces) // 10
    train += pieces[:kept]
    test += pieces[kept:]
  if not test:
    raise ValueError(f'--domains: {pattern!r} has too little text.')
  return train, test[: config.tests or None]


def returning(config, options, identity) -> dict[str, Any]:
  """Domains of text, again and again."""
  domains = {x: read_domain(x, config) for x in options.domains}
  if len(domains) < 2:
    raise ValueError('--domains needs two patterns of files, or more.')
  examples = sum(len(train) for train, _ in domains.values())
  model = language.reader(config.hope, length=config.length)
  learner = learners.make(model, learner_options(config), config.seed, examples)
  result = protocols.returning(
    learner,
    domains,
    config.visits,
    config.every,
    **_following(config, options, identity, examples),
  )
  return result.to_dict()


# --------------------------------------------------------------------- command


def changed(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that differ from the default."""
  default = flat(default_config())
  return {k: x for k, x in flat(config).items() if x != default[k]}


def main(options: flags.FlagValues) -> None:
  """Runs a protocol and writes what was found."""
  config = checked(options.config)
  workdir = pathlib.Path(options.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  identity = {
    'protocol': options.protocol,
    'domains': options.domains,
    'config': flat(config),
  }
  if options.data is None and options.protocol != 'returning':
    raise ValueError('--data must name the folder of the data.')
  begin = time.monotonic()
  run = {
    'class_incremental': class_incremental,
    'sequential': sequential,
    'returning': returning,
  }[options.protocol]
  result = run(config, options, identity)
  content = {
    'protocol': options.protocol,
    'changed': changed(config),
    'seed': config.seed,
    'seconds': round(time.monotonic() - begin, 1),
    'machine': f'{platform.machine()}, {jax.devices()[0].device_kind}',
    'versions': {
      'python': platform.python_version(),
      **{x: importlib.metadata.version(x) for x in ('jax', 'flax', 'optax')},
    },
    'command': ' '.join(_private(x) for x in sys.argv[1:]),
    **result,
  }
  (workdir / 'result.json').write_text(json.dumps(content, indent=1) + '\n')
  for name, value in result.get('metrics', {}).items():
    print(f'{name:28} {value}')
  print(f'{workdir / "result.json"} has the rest.')


def _private(word: str) -> str:
  """A flag of the command line, without the folders of this machine."""
  name, equals, value = word.partition('=')
  return f'{name}=...' if equals and '/' in value else word


def define_flags(values: flags.FlagValues) -> None:
  """Defines the command's flags."""
  flags.DEFINE_enum(
    'protocol', _PROTOCOLS[0], _PROTOCOLS, 'Which.', flag_values=values
  )
  flags.DEFINE_string('data', None, 'Folder of the data.', flag_values=values)
  flags.DEFINE_list(
    'domains', [], "Patterns of files, of 'returning'.", flag_values=values
  )
  flags.DEFINE_string(
    'workdir', None, 'Folder of the result.', required=True, flag_values=values
  )
  config_flags.DEFINE_config_dict(
    'config',
    default_config(),
    'Options; --config.FIELD=VALUE changes one.',
    flag_values=values,
    lock_config=True,
  )


if __name__ == '__main__':
  command_line.run(main, define_flags)
