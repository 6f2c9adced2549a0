"""Writing files: one file, or several of a directory together, is written completely or not at all.

Commits are those of a database. The new files are written to a directory next to them and flushed. Then a journal is
renamed into it, which is the commit: until then the earlier files are unchanged, and from then on the new ones replace
them, if the process ends before that when the directory is next loaded or written.
"""

import errno
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from minillm.errors import InputError
from minillm.runtime.locks import locked
from minillm.runtime.reading import read_sealed, reading, sealed

STAGED, JOURNAL = ".minillm.new", "minillm.journal"
WAIT = 5.0
"""Seconds to wait for another process that saves in the same place."""
_commits = threading.local()


class NewFiles:
    """The files that a commit writes, and the names of those that it removes."""

    def __init__(self, staged: Path):
        self.staged, self.removed = staged, set[str]()
        self.last: tuple[Path, int | None] = staged.parent, None

    def __call__(self, name: str, size: int | None = None) -> Path:
        """The path to write a file to before the commit; `size` in bytes is part of the error for a full disk."""
        self.last = self.staged.parent / name, size
        return self.staged / name

    def text(self, name: str, text: str) -> None:
        content = text.encode()
        self(name, len(content)).write_bytes(content)

    def tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        from safetensors.torch import save_file

        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, self(name, sum(tensor.nbytes for tensor in on_cpu.values())), metadata)


def commit(directory: str | Path) -> AbstractContextManager[NewFiles]:
    """Write several files of a directory, all or none. Within it, a commit of the same directory is part of it.

    Raises OSError, which names the file and, on a full disk, the bytes needed and free.
    """
    return _committed(Path(directory), Path(directory) / STAGED, WAIT)


@contextmanager
def replacing(path: Path, size: int | None = None, wait: float = WAIT) -> Iterator[Path]:
    """The path to write one file to, which replaces `path` at the end. Raises OSError as `commit` does."""
    with _committed(path, path.with_name(f".{path.name}.new"), wait) as new:
        yield new(path.name, size)


@contextmanager
def _committed(target: Path, staged: Path, wait: float) -> Iterator[NewFiles]:
    commits, key = vars(_commits), os.path.realpath(staged)
    if key in commits:
        yield commits[key]
        return
    new = NewFiles(staged)
    try:
        with locked(target, wait, staged.with_suffix(".lock")):
            if (staged / JOURNAL).exists():
                _replace(staged)
            if staged.exists():  # left by a process that was killed
                shutil.rmtree(staged)
            staged.mkdir()
            commits[key] = new
            try:
                yield new
                _write_journal(new)
            finally:
                del commits[key]
                if not (staged / JOURNAL).exists():
                    shutil.rmtree(staged, ignore_errors=True)
            _replace(staged)
    except BrokenPipeError:  # of the output, not of a file
        raise
    except (OSError, SafetensorError) as problem:
        raise _unwritable(problem, *new.last) from problem


def complete(directory: Path) -> None:
    """Finish the commit of a process that ended during it; called before a directory is loaded.

    Raises InputError if it cannot be finished.
    """
    staged = directory / STAGED
    if not os.path.exists(staged / JOURNAL):
        return
    try:
        with locked(directory, WAIT):
            if (staged / JOURNAL).exists():  # it may have been that of a running process
                _replace(staged)
    except OSError as problem:
        raise InputError(
            f"{directory} was being written by a process that ended, and its files cannot be replaced by the new ones "
            f"({problem.strerror}): load it once with permission to write"
        ) from None


def _write_journal(new: NewFiles) -> None:
    """Flush the new files and write the journal, which is the commit."""
    names = sorted(path.name for path in new.staged.iterdir())
    journal = new.staged / f"{JOURNAL}.new"
    journal.write_text(sealed({"format": 1, "files": names, "removed": sorted(new.removed.difference(names))}))
    for name in (*names, journal.name):
        shutil.copymode(journal, new.staged / name)  # safetensors makes files that only their owner may read
        _flush(new.staged / name)
    os.replace(journal, new.staged / JOURNAL)
    _flush(new.staged)


def _replace(staged: Path) -> None:
    """Do what the journal says, from the start also if a part of it was done."""
    journal = read_sealed(staged / JOURNAL, 1)
    with reading(staged / JOURNAL, "a journal"):
        names, removed = [*journal["files"], *journal["removed"]], set(journal["removed"])
        if any(name in ("", ".", "..") or set(name) & set("/\\:\0") for name in names):
            raise InputError(f"{staged / JOURNAL} must hold names of files in this directory, got {names}"[:500])
    for name in names:
        if name in removed:
            (staged.parent / name).unlink(missing_ok=True)
        elif (staged / name).exists():
            os.replace(staged / name, staged.parent / name)
    _flush(staged.parent)
    (staged / JOURNAL).unlink()
    shutil.rmtree(staged, ignore_errors=True)


def _flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a directory, are on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # directories cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(problem: Exception, path: Path, size: int | None) -> OSError:
    """The error for a file that cannot be written, in one sentence."""
    code = problem.errno if isinstance(problem, OSError) else None
    if code is None and (found := re.search(r"(?:code: |os error )(\d+)", str(problem))):
        code = int(found[1])  # safetensors describes the system's error
    reason = str(problem) if code is None else os.strerror(code)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
        needed = "" if size is None else f"{size / 1e3:,.1f} kB needed, "
        reason += f" ({needed}{shutil.disk_usage(folder).free / 1e3:,.1f} kB free)"
    return OSError(code or errno.EIO, f"cannot be written: {reason}", str(path))


def check_directory(directory: Path) -> None:
    """Raises InputError if this cannot be an output directory. Creates nothing: to be called before the work."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{directory} cannot be an output directory: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{directory} cannot be an output directory: no permission to write in {existing}")


def check_unused(path: Path, overwrite: bool) -> None:
    """Raises InputError for a file, or a directory with files, that may not be overwritten."""
    if not overwrite and (any(path.glob("[!.]*")) if path.is_dir() else path.is_file()):
        raise InputError(f"{path} exists; give another --out, or replace it with --overwrite")


def write_text(path: Path, text: str) -> None:
    content = text.encode()
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)
