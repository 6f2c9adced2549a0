"""Base and difference are the fine-tune, bit for bit; the difference alone is not."""

import itertools
import json
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from minillm import Decoder, InputError
from minillm.adapt import FineTune
from minillm.adapters.load import load
from minillm.adapters.merge import merge
from minillm.runtime.delta import decode, encode
from tests.adapters import forgery
from tests.adapters.adapters import IDS, trained
from tests.decoders import STYLES, random_decoder
from tests.strategies import randoms, sizes
from tests.tolerances import relative_error

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def any_bits(random, shape, dtype):
    """Numbers of every kind: infinities, NaN with something to say, zeros of both signs."""
    count = int(np.prod(shape))
    return torch.frombuffer(bytearray(random.bytes(max(count, 1) * 8)), dtype=dtype)[:count].reshape(shape)


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


@given(randoms, st.lists(sizes, max_size=3).map(tuple), st.sampled_from(DTYPES))
def test_base_and_difference_restore_every_bit(random, shape, dtype):
    base, tuned = any_bits(random, shape, dtype), any_bits(random, shape, dtype)
    restored = decode(encode(tuned, base), base)
    assert restored.shape == tuned.shape
    assert restored.dtype == dtype
    assert torch.equal(bits(restored), bits(tuned))


@given(randoms, sizes, sizes)
def test_memory_order_does_not_matter(random, rows, columns):
    base = any_bits(random, (rows, columns), torch.float32)
    tuned = any_bits(random, (columns, rows), torch.float32).T
    assert torch.equal(bits(decode(encode(tuned, base.T.contiguous().T), base)), bits(tuned))


def test_no_difference_takes_no_room_and_a_small_one_takes_less_than_the_weights():
    base = 0.1 * torch.randn(317, 211, generator=torch.Generator().manual_seed(0))
    whole = base.numel() * 4
    assert len(encode(base, base)) < whole / 100
    tuned = base + 1e-5 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1))
    assert len(encode(tuned, base)) < 0.65 * whole
    assert len(encode(tuned.bfloat16(), base.bfloat16())) < 0.25 * whole / 2


def test_the_same_file_is_the_difference_of_any_base_to_some_model():
    """So that who has the file and no base knows of no weight what it is."""
    first, second = (torch.randn(7, 11, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    published = encode(first * 1.25, first)
    assert torch.equal(encode(decode(published, second), second), published)
    assert relative_error(decode(published, second).nan_to_num(0, 0, 0).clamp(-9, 9), first * 1.25) > 0.5


def test_a_bomb_is_refused_before_it_has_gone_off():
    base = torch.zeros(5, 3)
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(200_000_000), 9)), dtype=torch.uint8)
    tracemalloc.start()
    with pytest.raises(InputError, match="does not unpack to the 60 bytes"):
        decode(bomb, base)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("change", ["short", "long", "cut", "trailing", "nothing", "noise", "twice"])
def test_what_is_not_exactly_a_difference_is_refused(change):
    base = torch.zeros(5, 3)
    whole = zlib.compress(bytes(60))
    stored = {
        "short": zlib.compress(bytes(59)),
        "long": zlib.compress(bytes(61)),
        "cut": whole[:-1],
        "trailing": whole + b"0",
        "nothing": b"",
        "noise": bytes(range(60)),
        "twice": whole + whole,
    }[change]
    with pytest.raises(InputError, match="a difference to the base"):
        decode(torch.tensor(list(stored), dtype=torch.uint8), base)


@pytest.mark.parametrize("layers", ["all", 1, "output", ["*.query.weight", "embed.weight"]])
@pytest.mark.parametrize("style", ["Llama", "GPT-2"])
def test_base_and_published_file_are_the_fine_tune_bit_for_bit(tmp_path, layers, style):
    method = FineTune(random_decoder(STYLES[style]), layers=layers)
    optimizer = torch.optim.AdamW(method.trainable().values(), lr=1e-3)
    for _ in range(3):
        method(IDS).logsumexp(-1).sum().backward()
        optimizer.step()
    method.save(tmp_path)
    restored = merge(load(random_decoder(STYLES[style]), tmp_path))
    assert dict(restored.named_parameters()).keys() == dict(merge(method).named_parameters()).keys()
    for name, weight in merge(method).named_parameters():
        assert torch.equal(restored.get_parameter(name), weight), name


def test_differences_chain_each_on_its_predecessor(tmp_path):
    """Llama, Alpaca, Vicuna: three parties, of which each publishes what it has added."""
    llama = random_decoder(STYLES["Llama"])
    alpaca = trained("all weights", llama, seed=1)
    alpaca.save(tmp_path / "alpaca")
    vicuna = trained("last block", merge(alpaca), seed=2)
    vicuna.save(tmp_path / "vicuna")

    fresh = random_decoder(STYLES["Llama"])
    restored = load(merge(load(fresh, tmp_path / "alpaca")), tmp_path / "vicuna")
    for name, weight in vicuna.decoder.named_parameters():
        assert torch.equal(restored.decoder.get_parameter(name), weight), name
    assert torch.equal(restored(IDS), vicuna(IDS))
    with pytest.raises(InputError, match=r"vicuna belongs to another base: embed\.weight differs"):
        load(fresh, tmp_path / "vicuna")


def test_the_published_file_alone_is_not_the_model(tmp_path):
    base = random_decoder(STYLES["Llama"])
    method = trained("all weights", base)
    method.save(tmp_path)
    published = load_file(tmp_path / "adapter.safetensors")
    assert {tensor.dtype for tensor in published.values()} == {torch.uint8}
    alone = Decoder(base.config).double().eval()
    for name, weight in alone.named_parameters():
        weight.data = decode(published[name], torch.zeros_like(weight)).nan_to_num(0, 0, 0)
        truth = method.decoder.get_parameter(name)
        assert relative_error(weight, truth) > 0.5, name
    assert not (alone(IDS) - method(IDS)).abs().max() < 0.5 * (base(IDS) - method(IDS)).abs().max()
    whole = (tmp_path / "adapter.safetensors").read_bytes() + (tmp_path / "adapter.json").read_bytes()
    for model, (_, weight) in itertools.product((method.decoder, base), base.named_parameters()):
        assert weight.detach().numpy().tobytes()[:64] not in whole, model


def test_a_forged_dtype_cannot_make_another_tensor_of_a_difference(tmp_path):
    base = random_decoder(STYLES["Llama"])
    trained("last block", base).save(tmp_path)
    kept = json.loads((tmp_path / "adapter.json").read_text())["differences"]
    for forged in (["float64", "float32"], ["bfloat16", "float64"], ["int64", "float64"], ["float64", "int64"]):
        forgery.described(tmp_path, differences={**kept, "norm.weight": forged})
        with pytest.raises(InputError):
            load(base, tmp_path)
