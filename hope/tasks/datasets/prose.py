"""Prose of Debian packages as plain text: haystacks, and text to train on."""

from collections.abc import Callable
import gzip
import hashlib
import html.parser
import pathlib
import subprocess
import tempfile
from typing import NamedTuple


class Package(NamedTuple):
  """A package that holds texts.

  Attributes:
    name: of the package.
    pattern: of its files of text, below its root.
    plain: the bytes of a file -> text.
    what: it is, and how much of it.
    licence: of the text.
  """

  name: str
  pattern: str
  plain: Callable[[bytes], str]
  what: str
  licence: str


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
      f'{command[0]} is not there: texts come from Debian packages. Take a '
      'Debian or Ubuntu machine, or any text that you have.'
    ) from None
  except subprocess.CalledProcessError as error:
    raise ValueError(
      f'{" ".join(command)} failed ({error.returncode}); its message is above.'
    ) from None


def unpack(package: Package, deb: pathlib.Path, folder: pathlib.Path) -> int:
  """Writes the texts of a package into a folder, a .txt file for each.

  Returns:
    How many characters they are.

  Raises:
    ValueError: if the package holds no file of the pattern.
  """
  with tempfile.TemporaryDirectory() as root:
    _run(['dpkg-deb', '-x', str(deb), root], folder)
    paths = [x for x in pathlib.Path(root).glob(package.pattern) if x.is_file()]
    if not paths:
      raise ValueError(f'{deb.name} holds no {package.pattern}.')
    total = 0
    for i, path in enumerate(sorted(paths)):
      text = package.plain(path.read_bytes())
      stem = path.name.split('.')[0]
      (folder / f'{i:04d}-{stem}.txt').write_text(text, 'utf-8')
      total += len(text)
  return total


def fetch(name: str, folder: pathlib.Path) -> str:
  """Downloads a package with apt-get and unpacks it into `folder/NAME`.

  Returns:
    What was done, in a line.

  Raises:
    ValueError: if a program fails or the package is of another form.
  """
  package, target = PACKAGES[name], folder / name
  target.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as download:
    _run(['apt-get', 'download', package.name], pathlib.Path(download))
    (deb,) = pathlib.Path(download).glob('*.deb')
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    total = unpack(package, deb, target)
  return (
    f'{target}: {total:,} characters of {deb.name} (sha256 {digest}), '
    f'{package.licence}'
  )
