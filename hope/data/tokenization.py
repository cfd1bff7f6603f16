"""Tokenizers: bytes, byte-pair encodings, and bare numbers."""

from collections.abc import Iterable, Iterator
import json
import os
import re
import time
from typing import Protocol
import uuid

from absl import logging
import ml_collections
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from hope.data import sources
from hope.data.content import fingerprint
from hope.tasks import TEXT_TASKS

_KINDS = ('byte', 'bpe:FILE', 'bpe-train:SIZE')
# Tokens that end a document, by the names that published tokenizers use.
_END_TOKENS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')
# 256 bytes and the separator.
_SMALLEST_BPE = 257
# Ids that a tokenizer may have: four times those of the largest in use.
_LARGEST_BPE = 2**20
# Bytes of training text that a byte-pair encoding is trained on.
_BPE_TRAINING_BYTES = 16 * 2**20


# What `surrogateescape` makes of bytes that are not UTF-8.
_UNDECODABLE = re.compile('([\udc80-\udcff]+)')
# The first characters that take a byte more in UTF-8.
_WIDER = (0x80, 0x800, 0x10000)


class Tokenizer(Protocol):
  """Text to integers and back."""

  @property
  def vocab_size(self) -> int:
    """Number of ids; every id is below it."""

  @property
  def document_separator(self) -> int | None:
    """Id that ends a document and decodes to nothing; None: no documents."""

  def encode(self, text: bytes | str, *, strict: bool = True) -> np.ndarray:
    """Returns the tokens, int32 [n], without separator.

    Raises:
      ValueError: `strict`, and the tokens do not give the text back.
    """

  def cut(self, text: str) -> int:
    """Returns the last place where a text may be cut, whatever follows it.

    The tokens of text[:place] and those of all that comes after, encoded apart,
    are those of the whole. 0 if no such place is known.
    """

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of tokens."""

  def sizes(self, text: bytes, tokens: np.ndarray) -> np.ndarray:
    """Returns the bytes that each of tokens [n] stands for, int64 [n]."""

  def difference(self, text: bytes, tokens: np.ndarray) -> str | None:
    """Returns where a text differs from what tokens [n] give back, in words."""

  def fingerprint(self) -> str:
    """Returns a hash of all that decides the tokens of a text."""


class ByteTokenizer:
  """Each byte is a token; 256 is the separator. A str is taken as UTF-8."""

  vocab_size = 257
  document_separator = 256

  def encode(self, text: bytes | str, *, strict: bool = True) -> np.ndarray:
    """Returns the bytes, int32 [n]."""
    raw = text.encode() if isinstance(text, str) else text
    return np.frombuffer(raw, np.uint8).astype(np.int32)

  def cut(self, text: str) -> int:
    """Returns the length of the text: each byte is a token."""
    return len(text)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; bytes that are not UTF-8 become U+FFFD.

    Tokens that are not bytes become ''.
    """
    kept = bytes(i for i in map(int, ids) if i < 256)
    return kept.decode(errors='replace')

  def sizes(self, text: bytes, tokens: np.ndarray) -> np.ndarray:
    """Returns a byte for each of tokens [n]: ones, int64 [n]."""
    return np.ones(len(tokens), np.int64)

  def difference(self, text: bytes, tokens: np.ndarray) -> None:
    """Returns None: tokens [n] are the bytes."""

  def fingerprint(self) -> str:
    """Returns 'bytes'."""
    return 'bytes'


class NumberTokenizer:
  """Tokens of the synthetic tasks, written as numbers: '3 42 30'."""

  document_separator = None

  def __init__(self, vocab_size: int):
    """Takes the number of ids."""
    self.vocab_size = vocab_size

  def encode(self, text: bytes | str, *, strict: bool = True) -> np.ndarray:
    """Returns the numbers, int32 [n].

    Raises:
      ValueError: A word is not a number below vocab_size.
    """
    words = (text.decode() if isinstance(text, bytes) else text).split()
    bad = [
      w
      for w in words
      if not (w.isascii() and w.isdigit() and int(w) < self.vocab_size)
    ]
    if bad:
      raise ValueError(
        f'{text!r}: {bad[0]!r} is not a token of a synthetic task; give '
        f"numbers from 0 to {self.vocab_size - 1}, as in '1 2 3'."
      )
    return np.array(words, np.int32)

  def cut(self, text: str) -> int:
    """Returns the place behind the last space, before which numbers end."""
    return text.rfind(' ') + 1

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the numbers with spaces between them."""
    return ' '.join(str(int(i)) for i in ids)

  def sizes(self, text: bytes, tokens: np.ndarray) -> np.ndarray:
    """Raises NotImplementedError: tokens [n] are of no document."""
    raise NotImplementedError('the synthetic tasks have no documents')

  def difference(self, text: bytes, tokens: np.ndarray) -> None:
    """Returns None: tokens [n] are the numbers."""

  def fingerprint(self) -> str:
    """Returns the number of ids."""
    return f'{self.vocab_size} numbers'


class BpeTokenizer:
  """A tokenizer.json of the `tokenizers` library.

  Its end-of-document token is the separator; if it has none, the separator is
  the id after its last one. Text that spells a special token is still text.
  Truncation, padding and dropout that the file asks for are ignored.

  Choice: in a byte-level encoding, bytes that are not UTF-8 have their own
  tokens. In other encodings they become U+FFFD, which `difference` reports.
  """

  def __init__(self, content: str):
    """Makes a tokenizer.

    Args:
      content: of a tokenizer.json.

    Raises:
      ValueError: It has no tokens, or ids that are too large.
    """
    model = tokenizers.Tokenizer.from_str(content)
    vocab = model.get_vocab(with_added_tokens=True)
    if not vocab:
      raise ValueError('it has no tokens')
    ends = [vocab[token] for token in _END_TOKENS if token in vocab]
    last = max(vocab.values())
    if last >= _LARGEST_BPE:
      raise ValueError(
        f'it has the id {last}, and ids must be below {_LARGEST_BPE}'
      )
    self.document_separator = ends[0] if ends else last + 1
    self.vocab_size = max(last, self.document_separator) + 1
    model.encode_special_tokens = True
    model.no_truncation()
    model.no_padding()
    if getattr(model.model, 'dropout', None):
      model.model.dropout = None
    self._model = model
    self._spec = json.loads(content)
    self._bytes = _token_bytes(self._spec, vocab)
    self._of_byte = {
      raw[0]: i for i, raw in self._bytes.items() if len(raw) == 1
    }

  def encode(self, text: bytes | str, *, strict: bool = True) -> np.ndarray:
    """Returns the tokens, int32 [n].

    Raises:
      ValueError: `strict`, and the tokens do not give the text back; or a
        character has no token, nor has the unknown one.
    """
    raw = text.encode() if isinstance(text, str) else text
    parts = [raw.decode(errors='replace')]
    if len(self._of_byte) == 256:
      # Every second part is of bytes that are not UTF-8.
      parts = _UNDECODABLE.split(raw.decode(errors='surrogateescape'))
    try:
      encoded = self._model.encode_batch(parts[::2], add_special_tokens=False)
    # The library raises bare Exceptions.
    except Exception as error:
      raise ValueError(
        f'the tokenizer cannot encode the text that begins {raw[:20]!r} '
        f'({error}); use data.tokenizer=byte or bpe-train:SIZE.'
      ) from error
    ids = list(encoded[0].ids)
    for undecodable, encoding in zip(parts[1::2], encoded[1:], strict=True):
      ids += [self._of_byte[ord(c) - 0xDC00] for c in undecodable]
      ids += encoding.ids
    tokens = np.array(ids, np.int32)
    if strict and (difference := self.difference(raw, tokens)):
      raise ValueError(
        f'the tokenizer changes the text {text!r}: {difference}. Leave this '
        'out, or use data.tokenizer=byte or bpe-train:SIZE, which keep all.'
      )
    return tokens

  def cut(self, text: str) -> int:
    """Returns the last place before ' x' and behind a letter or digit.

    Choice: byte-level encodings alone are cut, whose expression splits a text
    into words from its start on; there ' x' starts a word, whatever follows.
    """
    if not _splits_words(self._spec):
      return 0
    words = self._model.pre_tokenizer.pre_tokenize_str(text)
    for _, (place, _) in reversed(words):
      behind, at = text[place - 1 : place], text[place : place + 2]
      if behind.isalnum() and at[:1] == ' ' and at[1:].isalpha():
        return place
    return 0

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text, separators left out."""
    kept = [i for i in map(int, ids) if i != self.document_separator]
    return self._model.decode(kept, skip_special_tokens=False)

  def sizes(self, text: bytes, tokens: np.ndarray) -> np.ndarray:
    """Returns the bytes that each token of a text stands for, int64 [n].

    Args:
      text: one that its tokens give back.
      tokens: int32 [n], of `encode`.
    """
    if self._bytes:
      return np.array([len(self._bytes[i]) for i in tokens.tolist()], np.int64)
    characters = text.decode()
    points = np.frombuffer(characters.encode('utf-32-le'), np.uint32)
    widths = 1 + sum((points >= least).astype(int) for least in _WIDER)
    place = np.concatenate([[0], np.cumsum(widths)])
    encoding = self._model.encode(characters, add_special_tokens=False)
    starts = np.array([place[start] for start, _ in encoding.offsets], np.int64)
    starts[:1] = 0
    return np.diff(np.maximum.accumulate(starts), append=len(text))

  def difference(self, text: bytes, tokens: np.ndarray) -> str | None:
    """Returns where a text differs from what tokens [n] give back, in words."""
    back = self.decode(tokens)
    raw = back.encode()
    if self._bytes and back == text.decode(errors='replace'):
      raw = b''.join(self._bytes[i] for i in tokens.tolist())
    if raw == text:
      return None
    size = min(len(raw), len(text))
    differs = np.frombuffer(raw, np.uint8, size) != np.frombuffer(
      text, np.uint8, size
    )
    place = int(np.argmax(differs)) if differs.any() else size
    piece = slice(place, place + 20)
    return f'from byte {place} on, {text[piece]} comes back as {raw[piece]}'

  def fingerprint(self) -> str:
    """Returns a hash of all that decides the tokens of a text."""
    deciding = ('added_tokens', 'normalizer', 'pre_tokenizer', 'model')
    spec = {name: self._spec.get(name) for name in deciding}
    return fingerprint([json.dumps(spec, sort_keys=True)])


def _token_bytes(spec: dict, vocab: dict[str, int]) -> dict[int, bytes]:
  """Returns the bytes of each id of a byte-level encoding; else none.

  In such an encoding a character stands for a byte: printable ones for
  themselves, the others for the characters from U+0100 on.
  """
  if '"ByteLevel"' not in json.dumps(spec.get('pre_tokenizer')):
    return {}
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  byte_of = {chr(byte): byte for byte in printable}
  byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
  added = {token['id'] for token in spec.get('added_tokens', ())}
  return {
    i: token.encode()
    if i in added or not byte_of.keys() >= set(token)
    else bytes(byte_of[c] for c in token)
    for token, i in vocab.items()
  }


def _splits_words(spec: dict) -> bool:
  """Returns whether words of a byte-level encoding are encoded apart.

  Normalizers, tokens that are looked for in the text, a space before the first
  word and expressions that look back see more than a word.
  """
  steps = spec.get('pre_tokenizer') or {}
  steps = steps.get('pretokenizers', [steps])
  *before, last = [step.get('type') for step in steps]
  splits = [step.get('pattern', {}).get('Regex', '(?<') for step in steps[:-1]]
  return (
    spec.get('normalizer') is None
    and all(token.get('special') for token in spec.get('added_tokens', ()))
    and last == 'ByteLevel'
    and not steps[-1].get('add_prefix_space')
    and steps[-1].get('use_regex', True) == (not before)
    and before in ([], ['Split'])
    and not any('(?<' in pattern for pattern in splits)
  )


def open_tokenizer(
  config: ml_collections.ConfigDict,
  workdir: str | None = None,
  corpus: sources.Corpus | None = None,
) -> Tokenizer:
  """Returns the tokenizer that the configuration names.

  Args:
    config: The run's configuration.
    workdir: Folder where 'bpe-train:SIZE' keeps its tokenizer.json and looks
      for it. None: trains anew and keeps nothing.
    corpus: The opened `data.source`. None: opens it if it is needed.

  Raises:
    ValueError: `data.tokenizer` is unknown, its file missing or unreadable, its
      size too small or larger than the training documents can fill, or it
      differs from the one that the workdir has.
  """
  kind, _, task = config.data.source.partition(':')
  generated = kind == 'synthetic'
  if generated and task not in TEXT_TASKS:
    return NumberTokenizer(config.data.task.vocab_size)
  kind, _, rest = config.data.tokenizer.partition(':')
  if kind == 'byte' and not rest:
    return ByteTokenizer()
  if kind == 'bpe' and rest:
    return _load_bpe(os.path.expanduser(rest))
  if kind == 'bpe-train' and rest:
    number = re.fullmatch('[0-9]{1,9}', rest)
    if not number or not _SMALLEST_BPE <= int(rest) <= _LARGEST_BPE:
      raise ValueError(
        f'data.tokenizer={config.data.tokenizer!r}: the size must be a number '
        f'from {_SMALLEST_BPE} (256 bytes and the document separator) to '
        f'{_LARGEST_BPE}; try bpe-train:4096.'
      )
    if generated:
      raise ValueError(
        f'data.tokenizer={config.data.tokenizer}: data.source='
        f'{config.data.source} has no documents to train it on; give byte or '
        'bpe:FILE.'
      )
    return _trained_bpe(config, int(rest), workdir, corpus)
  raise ValueError(
    f'data.tokenizer={config.data.tokenizer!r} is unknown; '
    f'{sources.nearest(config.data.tokenizer, _KINDS)}'
  )


def _load_bpe(path: str) -> BpeTokenizer:
  if not os.path.isfile(path):
    raise ValueError(
      f'data.tokenizer={"bpe:" + path!r}: no such file; give the path of a '
      'tokenizer.json, or bpe-train:SIZE to train one.'
    )
  try:
    with open(path, encoding='utf-8') as file:
      return BpeTokenizer(file.read())
  except (KeyboardInterrupt, SystemExit):
    raise
  # The library raises bare Exceptions, and panics that are none.
  except BaseException as error:
    raise ValueError(
      f'data.tokenizer={"bpe:" + path!r}: not a tokenizer.json ({error}); give '
      'one that the tokenizers library wrote.'
    ) from error


def _trained_bpe(
  config: ml_collections.ConfigDict,
  size: int,
  workdir: str | None,
  corpus: sources.Corpus | None,
) -> BpeTokenizer:
  """Returns the workdir's byte-pair encoding, trained if it has none."""
  path = workdir and os.path.join(workdir, 'tokenizer.json')
  if path and os.path.exists(path):
    tokenizer = _load_bpe(path)
    if tokenizer.vocab_size != size:
      raise ValueError(
        f'{path} has {tokenizer.vocab_size} tokens and '
        f'data.tokenizer=bpe-train:{size} asks for {size}; use another '
        'workdir, or the size that this one was trained with.'
      )
    return tokenizer
  model = _train_bpe(corpus or sources.open_corpus(config), size)
  reached = model.get_vocab_size()
  if reached != size:
    raise ValueError(
      f'data.tokenizer=bpe-train:{size}: the training documents yield '
      f'{reached} tokens; give at most bpe-train:{reached}, or more text.'
    )
  if path:
    # Every process of a run trains the same and may write at the same time.
    os.makedirs(workdir, exist_ok=True)
    partial = f'{path}.{uuid.uuid4().hex}'
    model.save(partial)
    os.replace(partial, path)
  return BpeTokenizer(model.to_str())


def _train_bpe(corpus: sources.Corpus, size: int) -> tokenizers.Tokenizer:
  """Trains a byte-level encoding on (at most 16 MiB of) training documents."""
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[_END_TOKENS[0]],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  start = time.perf_counter()
  model.train_from_iterator(_training_text(corpus), trainer)
  logging.info(
    'Trained %d tokens in %.1f s.', size, time.perf_counter() - start
  )
  return model


def _training_text(corpus: sources.Corpus) -> Iterator[str]:
  """Yields training documents, evenly over the corpus, within the limit.

  A long document yields only its beginning, so that there are several.
  """
  left = _BPE_TRAINING_BYTES
  order = np.random.default_rng(0).permutation(corpus.train)
  for index in order.tolist():
    text = corpus.source.read(index)[: min(left, _BPE_TRAINING_BYTES // 16)]
    yield text.decode(errors='replace')
    left -= len(text)
    if not left:
      return
