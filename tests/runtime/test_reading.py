"""Damaged and hostile files raise InputError and nothing else."""

import os

import pytest

from minillm.errors import InputError
from minillm.runtime.reading import open_tensors, read_bytes, read_json, read_text, reading


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"[]", "must be a JSON object, got list"),
        (b'{"a": NaN}', "not JSON compliant"),
        (b'{"a": 1e999}', "not JSON compliant"),
        (b'{"a": 1, "a": 2}', "duplicate name, 'a'"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"\xff{}", "cannot be read as UTF-8"),
        (b'{"a":' * 100_000, "RecursionError"),
        (b'{"a": [' + b"[]," * 3_000_000 + b"1]}", "must have at most 2097152 arrays, objects and names, got 3000003"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
    ids=range(11),
)
def test_json_is_read_strictly(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_json(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 700


def test_devices_pipes_directories_and_files_without_end_are_refused_at_once(tmp_path):
    (tmp_path / "endless").write_bytes(b"")
    os.truncate(tmp_path / "endless", 2**40)
    kinds = {"endless": "must have at most 33554432 bytes", ".": "must be a file, not a directory, device or pipe"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        kinds |= dict.fromkeys(("pipe", "/dev/zero"), kinds["."])
    for name, message in kinds.items():
        for read in (read_json, read_text, read_bytes):
            with pytest.raises(InputError, match=message):
                read(tmp_path / name)
    for name in kinds.keys() - {"endless"}:
        with pytest.raises(InputError, match="must be a file"), open_tensors(tmp_path / name):
            pass


def test_every_error_of_reading_is_an_input_error_that_names_the_file_and_lack_of_memory_is_none(tmp_path):
    PanicException = type("PanicException", (BaseException,), {})
    for kind in (ValueError, OverflowError, RecursionError, InputError, PanicException):
        with pytest.raises(InputError, match=r"a\.json.*odd"), reading(tmp_path / "a.json"):
            raise kind("odd")
    for problem in (MemoryError, KeyboardInterrupt, BrokenPipeError):
        with pytest.raises(problem), reading(tmp_path / "a.json"):
            raise problem
