"""The experiments that come with the package, by name.

A file of the folder `experiments` that defines `get_config` is an experiment,
and its name is that of the file: `--config=smoke` means
`--config=experiments/smoke.py`, in any folder and without a checkout. A wheel
has the files in `hope/experiments`; a checkout, and an editable installation of
one, has them beside `hope`.

Only the standard library is imported, so that a command can list the names
before jax is loaded.
"""

import difflib
import importlib.util
import pathlib
from typing import Any

_HERE = pathlib.Path(__file__).resolve().parent
_FOLDERS = (_HERE / 'experiments', _HERE.parent / 'experiments')


def files() -> dict[str, pathlib.Path]:
  """The experiments by name, in the order of the names."""
  found = {}
  for folder in _FOLDERS:
    for path in sorted(folder.glob('*.py')):
      if '\ndef get_config(' in path.read_text(encoding='utf-8'):
        found.setdefault(path.stem, path)
  return found


def names() -> list[str]:
  """The names of the experiments."""
  return list(files())


def resolve(text: str) -> str:
  """The file of an experiment, where a name is given.

  Args:
    text: a path or a name, and arguments after a colon, as in 'mqar:seed=1'.

  Returns:
    The same with the path of the file. A file that exists goes before a name,
    and what looks like a path is returned as it is.

  Raises:
    ValueError: for a name that no experiment has.
  """
  name, colon, arguments = text.partition(':')
  path = pathlib.Path(name)
  if not name or path.is_file() or len(path.parts) > 1 or path.suffix:
    return text
  known = files()
  if name not in known:
    near = difflib.get_close_matches(name, known, 2, cutoff=0.5)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise ValueError(
      f'{name!r} is neither a file nor an experiment; there are '
      f'{", ".join(known)}.{hint}'
    )
  return f'{known[name]}{colon}{arguments}'


def default_workdir(text: str) -> str:
  """The default workdir of an experiment: 'runs/NAME'.

  Args:
    text: as `resolve` takes it. Arguments are a part of the name, as another
      configuration needs another workdir: 'runs/mqar-seed=1'.
  """
  name, _, arguments = text.partition(':')
  stem = pathlib.Path(name).stem
  return f'runs/{stem}-{arguments}' if arguments else f'runs/{stem}'


def experiment(text: str) -> Any:
  """The configuration of an experiment, to change and to train.

    config = hope.experiment('mqar:seed=1')
    config.train.steps = 50
    hope.train(config, 'runs/mqar')

  Args:
    text: the name of an experiment or the path of a configuration file;
      arguments follow a colon.

  Returns:
    A ConfigDict, locked; see `hope.base_config` for its fields.

  Raises:
    ValueError: for an unknown name, or an argument that the file refuses.
    OSError: if there is no such file.
  """
  path, colon, arguments = resolve(text).partition(':')
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'There is no configuration file {path!r}.')
  spec = importlib.util.spec_from_file_location('hope_experiment', path)
  if spec is None or spec.loader is None:
    raise ValueError(f'{path!r} is not a Python file (*.py).')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*([arguments] if colon else []))
