"""Puts the experiments into a wheel; everything else is in setup.cfg.

A wheel has the configuration files of `experiments/` as `hope/experiments/`.
They stand at the top of a checkout, and a package of this name could be anybody
else's where it is installed.
"""

import pathlib

import setuptools
from setuptools.command.build_py import build_py


class BuildWithExperiments(build_py):
  """Builds the packages, then copies the experiments beside them."""

  def run(self) -> None:
    """Builds; an editable installation reads the checkout's own folder."""
    super().run()
    if self.editable_mode:
      return
    folder = pathlib.Path(self.build_lib, 'hope', 'experiments')
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(pathlib.Path('experiments').glob('*.py')):
      if '\ndef get_config(' in path.read_text(encoding='utf-8'):
        self.copy_file(path, folder / path.name)


setuptools.setup(cmdclass={'build_py': BuildWithExperiments})
