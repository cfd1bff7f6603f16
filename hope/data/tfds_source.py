"""Documents of a prepared TFDS dataset, read without TensorFlow."""

from collections.abc import Mapping
import os

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants


class TfdsSource:
  """The text feature of one split of a prepared dataset."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str, key: str):
    """Opens the split.

    Args:
      builder: A builder whose data is prepared as array_record.
      split: Name of the split, or a slice such as 'train[:10%]'.
      key: Name of the text feature.
    """
    self._examples = builder.as_data_source(split=split)
    self._key = key
    self._id = f'{builder.info.full_name}:{split}'
    self._num_bytes = builder.info.splits[split].num_bytes

  def __len__(self) -> int:
    return len(self._examples)

  def name(self, index: int) -> str:
    """Returns dataset, split and place in the split."""
    return f'{self._id}/{index}'

  def read(self, index: int) -> bytes:
    """Returns the text feature as UTF-8.

    Raises:
      ValueError: A shard is damaged or missing.
    """
    try:
      return bytes(self._examples[index][self._key])
    # The readers of shards and of examples raise what they like.
    except Exception as error:
      raise ValueError(
        f'data.source=tfds: cannot read {self.name(index)} '
        f'({_first_line(error)}); prepare the data again.'
      ) from error

  def sample(self, index: int, limit: int | None) -> bytes:
    """Returns the text feature, whatever the limit: records are read whole."""
    del limit
    return self.read(index)

  def num_bytes(self) -> int:
    """Returns the bytes of the examples, by the dataset's own account."""
    return self._num_bytes

  def listing(self) -> str:
    """Returns dataset, version, split, feature and size."""
    return f'{self._id} {self._key} {len(self)}'


def open_tfds(name_and_split: str, data_dir: str | None) -> TfdsSource:
  """Opens a dataset that is already prepared; nothing is downloaded.

  Args:
    name_and_split: 'NAME' or 'NAME:SPLIT', where NAME is the dataset's folder
      in `data_dir`, with config or version behind '/' where there are several
      (default: the newest version), and SPLIT is 'train' unless given.
    data_dir: Folder of prepared data. None: TFDS' default.

  Raises:
    ValueError: The dataset is not prepared there, or not as array_record; the
      split is unknown or empty; there is no text feature, or several.
  """
  given = f'data.source=tfds:{name_and_split}'
  name, _, split = name_and_split.partition(':')
  split = split or 'train'
  data_dir = os.path.expanduser(data_dir or constants.DATA_DIR)
  folder = _prepared(given, name, data_dir)
  try:
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    features = dict(builder.info.features)
  # The parsers of metadata raise what they like.
  except Exception as error:
    raise ValueError(
      f'{given}: the metadata in {folder} cannot be read '
      f'({_first_line(error)}); prepare the data again.'
    ) from error
  if file_format != 'array_record':
    raise ValueError(
      f'{given} is prepared as {file_format}, which needs TensorFlow; prepare '
      "it again with file_format='array_record'."
    )
  key = _text_key(given, features)
  try:
    source = TfdsSource(builder, split, key)
  except Exception as error:
    raise ValueError(
      f'{given}: cannot read split {split!r} ({_first_line(error)}); the '
      f'splits are {", ".join(builder.info.splits)}, and slices such as '
      'train[:10%].'
    ) from error
  if not any(source.read(i) for i in range(len(source))):
    raise ValueError(
      f'{given}: all {len(source)} documents are empty; give another split.'
    )
  return source


def _prepared(given: str, name: str, data_dir: str) -> str:
  """Returns the folder with the newest prepared version of a dataset."""
  folder = os.path.join(data_dir, *name.split('/'))
  inside = _folders(folder)
  versions = [v for v in inside if tfds.core.Version.is_valid(v)]
  versions.sort(key=tfds.core.Version, reverse=True)
  for path in [folder, *(os.path.join(folder, v) for v in versions)]:
    if os.path.exists(os.path.join(path, 'dataset_info.json')):
      return path
  if inside:
    hint = f'{folder} has {", ".join(inside)}: name one, as {name}/{inside[0]}'
  else:
    hint = f'prepared there: {", ".join(_folders(data_dir)) or "nothing"}'
  raise ValueError(
    f'{given} is not prepared in reading.tfds_dir={data_dir} ({hint}); run its '
    "builder's download_and_prepare with file_format='array_record', or set "
    'reading.tfds_dir.'
  )


def _folders(path: str) -> list[str]:
  if not os.path.isdir(path):
    return []
  return sorted(
    f for f in os.listdir(path) if os.path.isdir(os.path.join(path, f))
  )


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _text_key(
  given: str, features: Mapping[str, tfds.features.FeatureConnector]
) -> str:
  """Returns the name of the feature that holds the documents."""
  keys = [k for k, f in features.items() if isinstance(f, tfds.features.Text)]
  if 'text' in keys:
    return 'text'
  if len(keys) != 1:
    raise ValueError(
      f'{given} has {len(keys)} text features ({", ".join(keys) or "none"}); '
      "give a dataset with one, or with one named 'text'."
    )
  return keys[0]
