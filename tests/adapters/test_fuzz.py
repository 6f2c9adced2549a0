"""Damaged and forged adapter files: each loads correctly or raises InputError.

Two thousand under `-m slow`, three hundred by default, each drawn from its own seed. Damage changes bytes of the two
files; malice also updates every sha256, which tests the code behind that check.
"""

import json
import random
import struct

import pytest
import torch
from safetensors.torch import load as read_tensors

from minillm import InputError
from minillm.adapters.load import load
from minillm.runtime.device import peak_memory
from tests.decoders import STYLES, random_decoder

from . import forgery
from .adapters import IDS, trained

NAMES = ("LoRA", "LoRA, all but plain", "DoRA", "PiSSA", "prefix, gated", "soft prompt", "frozen head", "last block",
         "all weights and a classifier", "in context", "DoRA and a prefix")  # fmt: skip
BAD_VALUES = (
    None, True, -1, 0, 1.5, 10**7, 10**9, 10**18, -(10**18), "", "x" * 1000, "\ud800", [], [[]], {}, {"a": {}},
    [10**9] * 3,
    1e308, "all", "all-linear", ["*"], ["[" * 50], {"*": 10**9}, {"blocks.0.*": -3},
    {"hidden": 10**7},
)  # fmt: skip
BAD_TEXTS = (
    "", "null", "[]", "3", '"x"', "{", "[" * 100_000, '{"a":' * 100_000, "[" * 3000 + "]" * 3000, "9" * 100_000,
    '{"format": ' + "9" * 100_000 + "}", '{"format": 1, "format": 1}', '{"format": NaN}', '{"format": 1e999}', "\x00",
    '{"format": 1}', '{"format": 1, "sha256": null}', "\ufeff{}",
)  # fmt: skip


@pytest.fixture(scope="module")
def adapters():
    """The base, and the trained method of each name."""
    base = random_decoder(STYLES["Llama"])
    return base, {name: trained(name, base) for name in NAMES}


# Damage: changed bytes.


def flip(draw, data):
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << draw.randrange(8))]) + data[place + 1 :]


def flip_in_the_header(draw, data):
    place = draw.randrange(min(len(data), 300))
    return data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]


def truncate(draw, data):
    return data[: draw.randrange(len(data))]


def extend(draw, data):
    return data + draw.randbytes(draw.choice((1, 8, 4096)))


def overwrite(draw, data):
    size = draw.randrange(1, 64)
    place = draw.randrange(len(data))
    return data[:place] + draw.choice((bytes(size), b"\xff" * size, draw.randbytes(size))) + data[place + size :]


def cut_out(draw, data):
    place = draw.randrange(len(data))
    return data[:place] + data[place + draw.randrange(1, 40) :]


def swap_digits(draw, data):
    """Another digit in the text: the file stays well-formed."""
    places = [index for index, byte in enumerate(data[:4000]) if chr(byte).isdigit()]
    if not places:
        return data[::-1]
    place = draw.choice(places)
    return data[:place] + draw.choice("0123456789").encode() + data[place + 1 :]


def header_length(draw, data):
    length = draw.choice((0, 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, len(data), len(data) - 8, 100_000_000))
    return struct.pack("<Q", length) + data[8:]


DAMAGE = (flip, flip_in_the_header, truncate, extend, overwrite, cut_out, swap_digits)


def damage(draw, place):
    file = place / draw.choice(("adapter.json", "adapter.safetensors", "adapter.safetensors"))
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        if data := file.read_bytes():
            file.write_bytes(draw.choice(DAMAGE)(draw, data))


# Malice: forged content.


def forged_text(draw, place):
    (place / "adapter.json").write_text(draw.choice(BAD_TEXTS))


def forged_option(draw, place):
    options = json.loads((place / "adapter.json").read_text())["options"]
    name = draw.choice([*options, "state", "decoder", "new"])
    forgery.described(place, options={**options, name: draw.choice(BAD_VALUES)})


def lost_option(draw, place):
    options = json.loads((place / "adapter.json").read_text())["options"]
    del options[draw.choice(list(options))]
    forgery.described(place, options=options)


def forged_field(draw, place):
    found = json.loads((place / "adapter.json").read_text())
    name = draw.choice(list(found))
    value = draw.choice(BAD_VALUES)
    if isinstance(found[name], dict) and found[name] and draw.random() < 0.7:
        value = found[name] | {draw.choice([*found[name], "new"]): value}
    forgery.described(place, **{name: value})


def forged_method(draw, place):
    names = ("LoRA", "DoRA", "PiSSA", "PrefixTuning", "SoftPrompt", "FrozenHead", "FineTune", "InContext", "Decoder")
    forgery.described(place, method=draw.choice(names))


def forged_tensor(draw, place):
    def change(tensors):
        name = draw.choice(list(tensors) or ["new"])
        tensor = tensors.get(name, torch.zeros(2))
        tensors[name] = draw.choice(
            (
                tensor.T.contiguous() if tensor.dim() == 2 else tensor[None],
                tensor[:-1].contiguous(),
                tensor.flatten(),
                tensor.to(draw.choice((torch.int8, torch.int64, torch.bool, torch.complex64, torch.uint8))),
                tensor.to(draw.choice((torch.float16, torch.float8_e4m3fn))),
                torch.full_like(tensor.float(), draw.choice((torch.nan, torch.inf, 1e38))),
                torch.zeros(0),
                torch.zeros(()),
                torch.zeros(*tensor.shape, 1000),
            )
        )
        if draw.random() < 0.3:
            tensors[draw.choice(("new", "embed.weight", "head.weight", ""))] = tensors.pop(name)

    forgery.stored(place, change)


def forged_header(draw, place):
    """Another safetensors header for the same bytes."""
    data = (place / "adapter.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    if not names or draw.random() < 0.3:
        (place / "adapter.safetensors").write_bytes(header_length(draw, data))
        return
    entry = header[draw.choice(names)]
    entry[draw.choice(list(entry))] = draw.choice(
        ([2**62, 2**62], [-1, 4], [0, 2**63], "F64", "F8_E4M3", "I64", [], [1], None, [10**12], {}, [0, 8])
    )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (place / "adapter.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def exchanged_file(draw, place):
    """A huge sparse file, a directory, or nothing instead of a file."""
    file = place / draw.choice(("adapter.json", "adapter.safetensors"))
    kind = draw.choice(("huge", "directory", "gone"))
    if kind == "huge":
        with file.open("rb+") as opened:
            opened.truncate(2**36)
        return
    file.unlink()
    if kind == "directory":
        file.mkdir()


MALICE = (forged_text, forged_option, forged_option, lost_option, forged_field, forged_method, forged_tensor,
          forged_tensor, forged_header, exchanged_file)  # fmt: skip


def tampered(seed, methods, place):
    """Save an adapter and change it; returns the method, and whether the change was forged."""
    draw = random.Random(seed)
    method = methods[draw.choice(NAMES)]
    method.save(place)
    if draw.random() < 0.5:
        damage(draw, place)
        return method, False
    draw.choice(MALICE)(draw, place)
    return method, True


def check(seeds, adapters, tmp_path):
    """Returns how many were refused. A forged adapter that is valid may load, with finite logits."""
    base, methods = adapters
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    refused = 0
    for seed in seeds:
        place = tmp_path / str(seed)
        method, forged = tampered(seed, methods, place)
        try:
            loaded = load(base, place)
        except InputError:
            refused += 1
            continue
        if forged:
            assert loaded(IDS).isfinite().all(), seed
        else:
            assert torch.equal(loaded(IDS), method(IDS)), seed
    assert all(torch.equal(parameter, before[name]) for name, parameter in base.named_parameters())
    return refused


@pytest.mark.slow
def test_a_tampered_adapter_loads_correctly_or_is_refused(adapters, tmp_path):
    assert check(range(300), adapters, tmp_path) > 200


def test_tampering_takes_no_memory(adapters, tmp_path):
    """A size that a file only claims is never allocated."""
    check(range(20), adapters, tmp_path)
    before = peak_memory(torch.device("cpu"))
    if before is None:
        pytest.skip("this system does not measure peak memory")
    check(range(1000, 1060), adapters, tmp_path)
    assert peak_memory(torch.device("cpu")) - before < 100_000_000


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_two_thousand_tampered_adapters(adapters, tmp_path, part):
    assert check(range(10_000 + 500 * part, 10_500 + 500 * part), adapters, tmp_path) > 350


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_flipped_bit_of_a_tensor_is_refused(adapters, tmp_path, place):
    base, methods = adapters
    methods["LoRA"].save(tmp_path)
    file = tmp_path / "adapter.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start + place * (len(data) - start) // 100] ^= 1 << place % 8
    assert read_tensors(bytes(data)).keys() == methods["LoRA"].state().keys()
    file.write_bytes(data)
    with pytest.raises(InputError, match="is damaged: the sha256 of"):
        load(base, tmp_path)
