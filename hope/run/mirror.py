"""A run's files when its workdir is in a bucket.

Metrics are appended line by line, which buckets do not support. So for a
workdir like gs://BUCKET/run, all small files are in a local folder, which is
copied to the bucket at every checkpoint. Checkpoints go directly to the bucket.
"""

import hashlib
import os
import pathlib
import shutil
import tempfile

from etils import epath
import jax

from hope.compilation_cache import cache_home
from hope.parallel import multihost
from hope.run import workdir as workdir_lib

# Copied back when a run goes on on another machine.
_CONTINUED = ('metrics.jsonl', 'timing.jsonl', 'tokenizer.json')


def is_remote(workdir: str | os.PathLike[str]) -> bool:
  """Whether a workdir is in a bucket, as gs://BUCKET/run is."""
  return '://' in str(workdir)


class Mirror:
  """The local folder of a run, and its copy in the workdir.

  A context manager: it keeps a second run on this machine out until it is left
  or the process ends. If several processes share a folder, the first one holds
  the lock.

  Attributes:
    local: where files are written; the workdir itself where it is local.
    workdir: where they are to be found.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, reading: bool = False):
    """Makes the local folder, and fetches what a continued run appends to.

    Args:
      workdir: of the run.
      reading: whether to leave the run's own local folder alone, as a run may
        be writing there.

    Raises:
      ValueError: in all processes, if another run is at work there, or if the
        path cannot hold a run or be written.
    """
    self._lock = None
    if not is_remote(workdir):
      self.local = pathlib.Path(workdir).absolute()
      self.workdir = epath.Path(self.local)
      workdir_lib.check_name(self.local)
      workdir_lib.check_kinds(self.local)
      if not reading:
        self._take(self.local / '.lock', multihost.is_leader())
      return
    workdir_lib.check_name(workdir)
    try:
      self.workdir = epath.Path(workdir)
    except KeyError:
      raise ValueError(
        f'The workdir {workdir} is of a kind that is not known here; give a '
        'directory, or gs://BUCKET/DIRECTORY.'
      ) from None
    name = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
    self.local = cache_home() / name / f'process_{jax.process_index()}'
    if reading:
      self.local = pathlib.Path(tempfile.mkdtemp(prefix='hope-jax-'))
    else:
      # Choice: a run of another machine in the same bucket is not noticed.
      self._take(self.local.with_suffix('.lock'), True)
    # What is left there may be of another run of this name.
    shutil.rmtree(self.local, ignore_errors=True)
    self.local.mkdir(parents=True)
    for name in _CONTINUED:
      there = self.workdir / name
      if there.exists():
        (self.local / name).write_bytes(there.read_bytes())

  def _take(self, path: pathlib.Path, mine: bool) -> None:
    """Locks a file if it is this process's; all processes must call it."""
    problem = ''
    try:
      if mine:
        self._lock = workdir_lib.lock(path)
    except (ValueError, OSError) as error:
      problem = str(error)
    problems = [text for text in multihost.gather(problem) if text]
    if problems:
      self._release()
      raise ValueError(problems[0])

  def _release(self) -> None:
    if self._lock:
      self._lock.close()

  def __enter__(self) -> 'Mirror':
    return self

  def __exit__(self, kind, error, traceback) -> None:
    self._release()

  def push(self) -> None:
    """Copies all local files into the workdir."""
    if epath.Path(self.local) == self.workdir:
      return
    for path in sorted(self.local.rglob('*')):
      if path.is_file():
        there = self.workdir / path.relative_to(self.local).as_posix()
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(path.read_bytes())
