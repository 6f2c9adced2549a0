"""Damaged GGUF files raise an InputError, without much time or memory."""

import os
import struct
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minillm
from minillm.errors import InputError
from minillm.hub.gguf_file import GGUFFile

from .gguf_writing import llama_config, random_decoder, write_llama


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    return write_llama(path, random_decoder(llama_config(layers=1, width=32, vocabulary=7)))


def _header(path):
    return min(tensor.start for tensor in GGUFFile(path).tensors.values())


def test_a_file_truncated_anywhere_is_refused(small, tmp_path):
    whole, header = small.read_bytes(), _header(small)
    end = max(tensor.start + tensor.size for tensor in GGUFFile(small).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, header, 5), *range(header, end, 997), end - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"truncated|empty|not a GGUF"):
            minillm.load(cut)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_in_the_header_raises_nothing_but_an_input_error(small, tmp_path, data):
    """The file may still be valid, if the byte belongs to a name that is not used."""
    damaged = bytearray(small.read_bytes())
    place = data.draw(st.integers(0, _header(small) - 1))
    damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    with suppress(InputError):
        minillm.load(path)


HUGE = struct.pack("<Q", 1 << 60)


def _key(name: str, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind)


@pytest.mark.parametrize(
    "rest",
    [
        struct.pack("<QQ", 1 << 60, 0),
        struct.pack("<QQ", 0, 1 << 60),
        struct.pack("<QQ", 0, 1) + HUGE,
        struct.pack("<QQ", 0, 1) + _key("a", 8) + HUGE,
        struct.pack("<QQ", 0, 1) + _key("a", 9) + struct.pack("<I", 4) + HUGE,
        struct.pack("<QQ", 0, 1) + _key("a", 9) + struct.pack("<I", 8) + HUGE,
        struct.pack("<QQ", 0, 1) + _key("a", 9) + struct.pack("<I", 9) + HUGE,
        struct.pack("<QQ", 0, 1) + _key("a", 77),
        struct.pack("<QQ", 1, 0) + _key("w", 2) + HUGE + HUGE + struct.pack("<IQ", 0, 0),
        struct.pack("<QQ", 1, 0) + _key("w", 1) + HUGE + struct.pack("<IQ", 0, 0),
        struct.pack("<QQ", 1, 0) + _key("w", 1) + struct.pack("<QIQ", 8, 0, 1 << 60),
        struct.pack("<QQ", 1, 0) + _key("w", 1) + struct.pack("<QIQ", 0, 0, 0),
        struct.pack("<QQ", 1, 0) + _key("w", 1) + struct.pack("<QIQ", 8, 99, 0),
        struct.pack("<QQ", 1, 0) + _key("w", 1) + struct.pack("<QIQ", 33, 3, 0),
        struct.pack("<QQ", 1, 0) + _key("w", 1 << 31) + HUGE,
    ],
)
def test_an_absurd_size_is_refused_before_memory_is_allocated(tmp_path, rest):
    path = tmp_path / "absurd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + rest + bytes(64))
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_overlapping_tensors_are_refused(tmp_path):
    """A thousand names for the same bytes would need a thousand times the memory."""
    entries = b"".join(
        struct.pack("<Q", 2) + name + struct.pack("<IQIQ", 1, 256, 0, 0) for name in (b"w0", b"w1", b"w2")
    )
    path = tmp_path / "over.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 3, 0) + entries + bytes(2000))
    with pytest.raises(InputError, match="overlap"):
        GGUFFile(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"", "empty"),
        (b"GG", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, start, message):
    path = tmp_path / "other.gguf"
    path.write_bytes(start)
    with pytest.raises(InputError, match=message):
        minillm.load(path)


@pytest.mark.parametrize(
    ("counts", "rest", "message"),
    [
        ((2**62, 0), b"", "must have at most 65536 tensors and metadata"),
        ((0, 2**62), b"", "must have at most 65536 tensors and metadata"),
        ((0, 1), struct.pack("<Q", 2**25), "its header must have at most 33554432 bytes"),
    ],
)
def test_a_header_of_millions_of_entries_or_bytes_is_refused(tmp_path, counts, rest, message):
    path = tmp_path / "large.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + rest)
    os.truncate(path, 2**26)
    with pytest.raises(InputError, match=message):
        minillm.load(path)
