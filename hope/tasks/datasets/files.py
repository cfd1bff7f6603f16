"""Files of published data, read with errors that name them."""

from collections.abc import Iterator
import csv
import json
import pathlib
from typing import Any


def find(folder: pathlib.Path, name: str, file: str) -> pathlib.Path:
  """The file of a data set, in the folder or in the folder's folder `name`.

  Raises:
    ValueError: if it is in neither.
  """
  for path in (folder / name / file, folder / file):
    if path.is_file():
      return path
  raise ValueError(
    f'{folder} holds no {name}/{file} and no {file}. '
    '`python -m hope.datasets` says where it comes from.'
  )


def text(path: pathlib.Path) -> str:
  """What a file of UTF-8 holds.

  Raises:
    ValueError: for other bytes.
  """
  try:
    return path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8: {error}.') from None


def _parse(place: str, content: str) -> Any:
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{place} is not JSON: {error}.') from None


def json_file(path: pathlib.Path) -> Any:
  """The value of a JSON file.

  Raises:
    ValueError: if it is none.
  """
  return _parse(str(path), text(path))


def json_object(path: pathlib.Path) -> dict[str, Any]:
  """The object of a JSON file.

  Raises:
    ValueError: if it is none, or empty.
  """
  found = json_file(path)
  if not isinstance(found, dict) or not found:
    raise ValueError(f'{path} is not a JSON object with something in it.')
  return found


def _numbered(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """(place, line) of the lines that are not blank, read one at a time.

  Only a line feed ends a line: JSON may hold the other separators of Unicode.
  """
  with path.open(encoding='utf-8-sig', newline='\n') as file:
    try:
      for number, line in enumerate(file, start=1):
        if line.strip():
          yield f'{path}, line {number}', line
    except UnicodeDecodeError as error:
      raise ValueError(f'{path} is not UTF-8: {error}.') from None


def json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """The objects of a file of a JSON object per line; blank lines are left out.

  A line is read at a time: the file of Natural Questions holds gigabytes.

  Yields:
    (place, object) of each; the place names file and line, for errors.

  Raises:
    ValueError: for a line that is no JSON object.
  """
  for place, line in _numbered(path):
    value = _parse(place, line)
    if not isinstance(value, dict):
      raise ValueError(f'{place} is {type(value).__name__}, not an object.')
    yield place, value


def csv_rows(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  """The rows of a CSV file with a line of names.

  Returns:
    (place, row) of each.

  Raises:
    ValueError: for a row of another length, or a file without rows.
  """
  found = []
  with path.open(newline='', encoding='utf-8-sig') as file:
    reader = csv.DictReader(file)
    try:
      for row in reader:
        place = f'{path}, line {reader.line_num}'
        if None in row or None in row.values():
          raise ValueError(f'{place} has not as many cells as the first line.')
        found.append((place, row))
    except (csv.Error, UnicodeDecodeError) as error:
      raise ValueError(f'{path} is not CSV in UTF-8: {error}.') from None
  return some(found, path)


def some(found: list, path: pathlib.Path) -> list:
  """What was read from a file.

  Raises:
    ValueError: if that is nothing.
  """
  if not found:
    raise ValueError(f'{path} holds no example.')
  return found


def value(place: str, row: Any, key: str, kind: type = str) -> Any:
  """`row[key]`, of the type that the published format has.

  Raises:
    ValueError: naming the place, the key and what is there.
  """
  if not isinstance(row, dict) or key not in row:
    raise ValueError(f'{place} has no {key!r}, which the format asks for.')
  if not isinstance(row[key], kind):
    raise ValueError(
      f'{place}: {key!r} is {row[key]!r:.60}, not {kind.__name__}.'
    )
  return row[key]


def strings(place: str, row: Any, key: str) -> list[str]:
  """`row[key]`, a list of strings.

  Raises:
    ValueError: naming the place, the key and what is there.
  """
  found = value(place, row, key, list)
  for item in found:
    if not isinstance(item, str):
      raise ValueError(f'{place}: {key!r} holds {item!r:.60}, not a string.')
  return found


def one_of(place: str, name: str, given: Any, allowed: list) -> int:
  """Index of what is given among what is allowed.

  Raises:
    ValueError: if it is not there.
  """
  if given not in allowed:
    raise ValueError(f'{place}: {name} is {given!r}, not one of {allowed}.')
  return allowed.index(given)


def labels(path: pathlib.Path, rows: list, allowed: list[str]) -> list[int]:
  """Indices among `allowed` of the lines of a file with one label per row.

  Raises:
    ValueError: for another number of lines, or another label.
  """
  found = [x.strip() for x in text(path).splitlines()]
  if len(found) != len(rows):
    raise ValueError(f'{path} has {len(found)} lines for {len(rows)} rows.')
  return [
    one_of(f'{path}, line {i}', 'the label', x, allowed)
    for i, x in enumerate(found, start=1)
  ]
