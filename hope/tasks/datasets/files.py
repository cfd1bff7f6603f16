"""Files of published data, read with errors that name them."""

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


def json_file(path: pathlib.Path) -> Any:
  """The value of a JSON file.

  Raises:
    ValueError: if it is none.
  """
  try:
    return json.loads(text(path))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}.') from None


def json_object(path: pathlib.Path) -> dict[str, Any]:
  """The object of a JSON file.

  Raises:
    ValueError: if it is none, or empty.
  """
  found = json_file(path)
  if not isinstance(found, dict) or not found:
    raise ValueError(f'{path} is not a JSON object with something in it.')
  return found


def json_lines(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
  """The objects of a file of a JSON object per line; blank lines are left out.

  Returns:
    (place, object) of each; the place names file and line, for errors.

  Raises:
    ValueError: for a line that is no JSON object, or a file without any.
  """
  found = []
  for number, line in enumerate(text(path).splitlines(), start=1):
    if not line.strip():
      continue
    place = f'{path}, line {number}'
    try:
      value = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f'{place} is not JSON: {error}.') from None
    if not isinstance(value, dict):
      raise ValueError(f'{place} is {type(value).__name__}, not an object.')
    found.append((place, value))
  return _some(found, path)


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
  return _some(found, path)


def lines(path: pathlib.Path) -> list[str]:
  """The lines of a file, without blanks at their ends.

  Raises:
    ValueError: if there is none.
  """
  return _some([x.strip() for x in text(path).splitlines()], path)


def _some(found: list, path: pathlib.Path) -> list:
  if not found:
    raise ValueError(f'{path} is empty.')
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
  found = lines(path)
  if len(found) != len(rows):
    raise ValueError(f'{path} has {len(found)} lines for {len(rows)} rows.')
  return [
    one_of(f'{path}, line {i}', 'the label', x, allowed)
    for i, x in enumerate(found, start=1)
  ]
