"""Fields of a configuration: what each may be, checked in one way.

A field is stated once, in a frozen dataclass beside what uses it:

  @dataclasses.dataclass(frozen=True)
  class Options:
    chunk_size: int = field(64, 'Tokens of a chunk.', minimum=1)
    eta_max: float | None = field(None, "None: the layer's.", minimum=0)

`declared(Options)` reads its `Field`s: default, meaning, type and bounds.
`Field.check` raises a ValueError of one line that names the field. Whatever the
bounds say, a number must be finite: no comparison with NaN is true, so a check
written as `x <= 0` would let it pass. Upper bounds are far above any use:
larger values would only fail late, or make a machine unresponsive.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import math
import struct
import types
import typing
from typing import Any

import ml_collections

# The largest numbers that a step, a size or a parameter can hold: int32 and
# float32. Texts are no longer than a path may be.
_LARGEST = {int: 2**31 - 1, float: (2 - 2**-23) * 2.0**127, str: 4096}
# The least positive float32 that devices do not round to 0.
_TINY = 2.0**-126
# Bounds of a seed: jax and NumPy take 32 bits.
SEED = {'minimum': 0, 'maximum': 2**32 - 1}
_KINDS = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number',
  str: 'text',
  tuple: 'whole numbers, as in (1, 4)',
}
_TEXTS = "texts, as in ('a', 'b')"
# Letters of a value that a message shows.
_SHOWN = 60


def shown(value: Any) -> str:
  """A value in a message: one line, and not a long one."""
  try:
    text = repr(value)
  except ValueError:  # an integer of more digits than Python prints
    return f'an integer of {value.bit_length()} bits'
  if len(text) > _SHOWN:
    return f'{text[:_SHOWN]}... ({len(text)} letters)'
  return text


def nearest(given: Any, allowed: Any) -> str:
  """' Did you mean X?' if one of the allowed texts is near, else ''."""
  near = difflib.get_close_matches(str(given)[:_SHOWN], list(allowed), 1)
  return f' Did you mean {near[0]}?' if near else ''


def listed(names: Sequence[str]) -> str:
  """The first names with their verb: 'a is', 'a, b are', 'a, b, ... are'."""
  more = ', ...' if len(names) > 3 else ''
  return f'{", ".join(names[:3])}{more} {"is" if len(names) == 1 else "are"}'


def flat(config: ml_collections.ConfigDict, prefix: str = '') -> dict[str, Any]:
  """The values of a configuration by their paths, which start with `prefix`."""
  found = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[f'{prefix}{name}'] = value
  return found


@dataclasses.dataclass(frozen=True)
class Field:
  """One field.

  Attributes:
    default: its value in `base_config()`.
    doc: what it means.
    of: its type: bool, int, float, str, or tuple. None: that of the default.
    item: type of what a tuple holds: int or str.
    unit: of a number.
    choices: the texts allowed; (): any.
    minimum: the least number allowed. Of a tuple: of each of its numbers.
    maximum: the largest number allowed, or the most letters of a text. None:
      what int32 and float32 hold, and 4,096 letters.
    above: numbers must be larger than this.
    below: numbers must be less than this.
    length: of a tuple, the fewest and the most numbers.
    optional: whether None is allowed too.
  """

  default: Any
  doc: str
  _: dataclasses.KW_ONLY
  of: type | None = None
  item: type = int
  unit: str = ''
  choices: tuple[str, ...] = ()
  minimum: float | None = None
  maximum: float | None = None
  above: float | None = None
  below: float | None = None
  length: tuple[int, int] = (1, 64)
  optional: bool = False

  @property
  def kind(self) -> type:
    """The type of a value that is not None."""
    return self.of or type(self.default)

  @property
  def allowed(self) -> str:
    """What the field may be, for people: 'tokens, 1 or more, or None'."""
    if self.choices:
      words = [f'one of {", ".join(self.choices)}']
    elif self.kind in (bool, str) or self.item is str:
      words = [self._kind_in_words]
    else:
      words = [self.unit or _KINDS[self.kind], *self._bounds()]
    return ', '.join(words + ['or None'] * self.optional)

  @property
  def _kind_in_words(self) -> str:
    return _TEXTS if self.item is str else _KINDS[self.kind]

  def _bounds(self) -> list[str]:
    """The bounds of a number, in words."""
    words = []
    if self.minimum is not None and self.maximum is not None:
      words.append(f'{self.minimum:,} to {self.maximum:,}')
    elif self.minimum is not None:
      words.append(f'{self.minimum:,} or more')
    elif self.maximum is not None:
      words.append(f'at most {self.maximum:,}')
    if self.above is not None:
      words.append(f'above {self.above:,}')
    if self.below is not None:
      words.append(f'below {self.below:,}')
    return words

  def check(self, name: str, value: Any) -> Any:
    """Returns a value in the field's type.

    Args:
      name: of the field, for the message.
      value: that it is given.

    Raises:
      ValueError: unless the field may have this value.
    """
    if value is None and self.optional:
      return None
    given = f'{name}={shown(value)}'
    if not self._is_of_kind(value):
      none = ', or None' if self.optional else ''
      raise ValueError(f'{given} must be {self._kind_in_words}{none}.')
    if self.kind is str:
      self._check_text(given, value)
    elif self.kind is tuple:
      least, most = self.length
      if not least <= len(value) <= most:
        what = 'texts' if self.item is str else 'numbers'
        raise ValueError(
          f'{given} has {len(value)} {what}; give {least} to {most}.'
        )
      for part in value:
        if self.item is str:
          self._check_text(given, part)
        else:
          self._check_number(given, part)
    elif self.kind is not bool:
      self._check_number(given, value)
    return self.kind(value)

  def _is_of_kind(self, value: Any) -> bool:
    if self.kind is tuple:
      is_list = isinstance(value, tuple | list)  # a list, as JSON has it
      return is_list and all(type(x) is self.item for x in value)
    if self.kind is float:  # NumPy's float64 is a float as well
      return isinstance(value, float) or type(value) is int
    return type(value) is self.kind

  def _check_text(self, given: str, text: str) -> None:
    if self.choices and text not in self.choices:
      raise ValueError(
        f'{given} is unknown; choose one of {", ".join(self.choices)}.'
        f'{nearest(text, self.choices)}'
      )
    most = self.maximum or _LARGEST[str]
    if len(text) > most:
      raise ValueError(f'{given} must have at most {most:g} letters.')
    # Neither a path nor a file can hold these.
    if '\0' in text or any('\ud800' <= letter <= '\udfff' for letter in text):
      raise ValueError(f'{given} has a letter that is not UTF-8 text.')

  def _check_number(self, given: str, number: float) -> None:
    """Compares the number as float32, in which it is used.

    So 1 - 1e-12 is not below 1, and 1e-50 is not above 0.
    """
    if isinstance(number, float) and not math.isfinite(number):
      raise ValueError(f'{given} must be a finite number.')
    largest = _LARGEST[float if self.kind is float else int]
    used = number
    if self.kind is float and abs(number) <= largest:
      (used,) = struct.unpack('f', struct.pack('f', number))
      if abs(used) < _TINY:
        used = 0.0
    low, high = self.minimum, self.below
    if self.above is not None and not used > self.above:
      low = 'positive' if self.above == 0 else f'above {self.above:g}'
      raise ValueError(f'{given} must be {low}.')
    if high is not None and low is not None and not low <= used < high:
      raise ValueError(f'{given} must be at least {low:g} and below {high:g}.')
    if low is not None and not used >= low:
      if low == 0:
        raise ValueError(f'{given} must not be negative.')
      raise ValueError(f'{given} must be at least {low:g}.')
    if high is not None and not used < high:
      raise ValueError(f'{given} must be below {high:g}.')
    most = largest if self.maximum is None else self.maximum
    if not -largest <= used <= most:
      most = f'{most:,}' if self.kind is not float else f'{most:g}'
      raise ValueError(f'{given} must be at most {most}.')


def field(default: Any, doc: str, **bounds: Any) -> Any:
  """A field of a frozen dataclass of options, whose type its annotation says.

  Args:
    default: its value if none is given.
    doc: what it means.
    **bounds: unit, choices, minimum, maximum, above, below, length; see
      `Field`.
  """
  return dataclasses.field(
    default=default, metadata={'field': Field(default, doc, **bounds)}
  )


def declared(options: type) -> dict[str, Field]:
  """The fields of a dataclass whose fields are made by `field`, by name."""
  types_of = typing.get_type_hints(options)
  found = {}
  for item in dataclasses.fields(options):
    kind, optional = _kind(types_of[item.name])
    of_tuple = typing.get_args(types_of[item.name]) if kind is tuple else (int,)
    found[item.name] = dataclasses.replace(
      item.metadata['field'], of=kind, item=of_tuple[0], optional=optional
    )
  return found


def _kind(annotation: Any) -> tuple[type, bool]:
  """The type of a field, and whether it may be None: of `int | None`, both."""
  optional = isinstance(annotation, types.UnionType)
  if optional:
    (annotation,) = set(typing.get_args(annotation)) - {types.NoneType}
  return typing.get_origin(annotation) or annotation, optional


def check_argument(name: str, value: Any, default: Any) -> Any:
  """Returns an argument of a function, checked by its default.

  Args:
    name: of the argument, for the message.
    value: that it is given.
    default: of the argument.

  Raises:
    ValueError: for a value of another type than the default, where that has
      one, and for a number, at any depth of the value, that is not finite.
  """
  if type(default) in (bool, int, float, str):
    return Field(default, '').check(name, value)
  _check_finite(name, value)
  return value


def _check_finite(name: str, value: Any) -> None:
  if isinstance(value, tuple | list | set | dict):
    for part in value:
      _check_finite(name, part)
  elif isinstance(value, float):
    Field(0.0, '').check(name, value)
