"""The version of this package, which setup.cfg states."""

import configparser
import importlib.metadata
import pathlib

_NAME = 'hope-jax'


def _version() -> str:
  """The version of the code that runs.

  Choice: a checkout reads its own setup.cfg, whatever is installed beside it;
  elsewhere the metadata of the installed package say it.

  Raises:
    importlib.metadata.PackageNotFoundError: for a copy of the code that is
      neither: it has no version.
  """
  checkout = configparser.ConfigParser()
  checkout.read(pathlib.Path(__file__).resolve().parents[1] / 'setup.cfg')
  if checkout.get('metadata', 'name', fallback='') == _NAME:
    return checkout['metadata']['version']
  return importlib.metadata.version(_NAME)


__version__ = _version()
