"""Tokenizers: bytes, byte-pair encodings, and bare numbers."""

from collections.abc import Iterable, Iterator
import os
import time
from typing import Protocol
import uuid

from absl import logging
import ml_collections
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from hope.data import sources

_KINDS = ('byte', 'bpe:FILE', 'bpe-train:SIZE')
# Tokens that end a document, by the names that published tokenizers use.
_END_TOKENS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>')
# 256 bytes and the separator.
_SMALLEST_BPE = 257
# Bytes of training text that a byte-pair encoding is trained on.
_BPE_TRAINING_BYTES = 16 * 2**20


class Tokenizer(Protocol):
  """Text to integers and back."""

  @property
  def vocab_size(self) -> int:
    """Number of ids; every id is below it."""

  @property
  def document_separator(self) -> int | None:
    """Id that ends a document and decodes to nothing; None: no documents."""

  def encode(self, text: bytes | str) -> np.ndarray:
    """Returns the tokens, int32 [n], without separator."""

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of tokens."""


class ByteTokenizer:
  """Each byte is a token; 256 is the separator. A str is taken as UTF-8."""

  vocab_size = 257
  document_separator = 256

  def encode(self, text: bytes | str) -> np.ndarray:
    """Returns the bytes, int32 [n]."""
    raw = text.encode() if isinstance(text, str) else text
    return np.frombuffer(raw, np.uint8).astype(np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text; what is no UTF-8 becomes U+FFFD, what is no byte ''."""
    kept = bytes(i for i in map(int, ids) if i < 256)
    return kept.decode(errors='replace')


class NumberTokenizer:
  """Tokens of the synthetic tasks, written as numbers: '3 42 30'."""

  document_separator = None

  def __init__(self, vocab_size: int):
    """Takes the number of ids."""
    self.vocab_size = vocab_size

  def encode(self, text: bytes | str) -> np.ndarray:
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

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the numbers with spaces between them."""
    return ' '.join(str(int(i)) for i in ids)


class BpeTokenizer:
  """A tokenizer.json of the `tokenizers` library.

  Its end-of-document token is the separator; where it has none, the id after
  its last is. Text that spells a special token is text all the same.

  Choice: bytes that are not UTF-8 become U+FFFD before they are encoded.
  """

  def __init__(self, model: tokenizers.Tokenizer):
    """Wraps a loaded or trained model."""
    vocab = model.get_vocab(with_added_tokens=True)
    ends = [vocab[token] for token in _END_TOKENS if token in vocab]
    last = max(vocab.values())
    self.document_separator = ends[0] if ends else last + 1
    self.vocab_size = max(last, self.document_separator) + 1
    model.encode_special_tokens = True
    self._model = model
    self._unknown = getattr(model.model, 'unk_token', None)
    self._known = set()

  def encode(self, text: bytes | str) -> np.ndarray:
    """Returns the tokens, int32 [n].

    Raises:
      ValueError: Characters of the text have no token.
    """
    if isinstance(text, bytes):
      text = text.decode(errors='replace')
    self._check_characters(text)
    ids = self._model.encode(text, add_special_tokens=False).ids
    return np.array(ids, np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text, separators left out."""
    kept = [i for i in map(int, ids) if i != self.document_separator]
    return self._model.decode(kept, skip_special_tokens=False)

  def _check_characters(self, text: str):
    unknown = []
    for character in sorted(set(text) - self._known):
      tokens = self._model.encode(character, add_special_tokens=False).tokens
      lost = not tokens and not character.isspace()
      if lost or self._unknown in tokens:
        unknown.append(character)
      else:
        self._known.add(character)
    if unknown:
      raise ValueError(
        f'the tokenizer has no token for {", ".join(map(repr, unknown))}; '
        'leave these characters out, or use data.tokenizer=byte or '
        'bpe-train:SIZE, which know every character.'
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
  if config.data.source.startswith('synthetic:'):
    return NumberTokenizer(config.data.task.vocab_size)
  kind, _, rest = config.data.tokenizer.partition(':')
  if kind == 'byte' and not rest:
    return ByteTokenizer()
  if kind == 'bpe' and rest:
    return _load_bpe(os.path.expanduser(rest))
  if kind == 'bpe-train' and rest:
    if not rest.isdecimal() or int(rest) < _SMALLEST_BPE:
      raise ValueError(
        f'data.tokenizer={config.data.tokenizer}: the size must be a number '
        f'of at least {_SMALLEST_BPE} (256 bytes and the document separator); '
        'try bpe-train:4096.'
      )
    return _trained_bpe(config, int(rest), workdir, corpus)
  raise ValueError(
    f'data.tokenizer={config.data.tokenizer!r} is unknown; '
    f'{sources.nearest(config.data.tokenizer, _KINDS)}'
  )


def _load_bpe(path: str) -> BpeTokenizer:
  if not os.path.isfile(path):
    raise ValueError(
      f'data.tokenizer=bpe:{path}: no such file; give the path of a '
      'tokenizer.json, or bpe-train:SIZE to train one.'
    )
  try:
    return BpeTokenizer(tokenizers.Tokenizer.from_file(path))
  # The library raises bare Exceptions.
  except Exception as error:
    raise ValueError(
      f'data.tokenizer=bpe:{path}: not a tokenizer.json ({error}); give one '
      'that the tokenizers library wrote.'
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
  return BpeTokenizer(model)


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

  Of a long document the beginning counts, so that there are several.
  """
  left = _BPE_TRAINING_BYTES
  order = np.random.default_rng(0).permutation(corpus.train)
  for index in order.tolist():
    text = corpus.source.read(index)[: min(left, _BPE_TRAINING_BYTES // 16)]
    yield text.decode(errors='replace')
    left -= len(text)
    if not left:
      return
