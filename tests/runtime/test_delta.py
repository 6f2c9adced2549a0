"""Base and difference restore the fine-tune bit for bit; the difference alone does not."""

import json
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from minillm import InputError
from minillm.adapters.load import load
from minillm.adapters.merge import merge
from minillm.runtime.delta import decode, encode
from tests.adapters import forgery
from tests.adapters.adapters import IDS, trained
from tests.decoders import STYLES, random_decoder
from tests.strategies import randoms, sizes
from tests.tolerances import relative_error

pytestmark = pytest.mark.checked

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def any_bits(random, shape, dtype):
    """Numbers of every kind: infinities, NaN with a payload, zeros of both signs."""
    count = int(np.prod(shape))
    return torch.frombuffer(bytearray(random.bytes(max(count, 1) * 8)), dtype=dtype)[:count].reshape(shape)


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def test_a_zero_difference_takes_almost_no_space_and_a_small_one_less_than_the_weights():
    base = 0.1 * normal(317, 211, seed=0)
    whole = base.numel() * 4
    assert len(encode(base, base)) < whole / 100
    tuned = base + 1e-5 * normal(*base.shape, seed=1)
    assert len(encode(tuned, base)) < 0.65 * whole
    assert len(encode(tuned.bfloat16(), base.bfloat16())) < 0.25 * whole / 2


def test_a_difference_fits_every_base():
    """So the file without its base determines no weight."""
    first, second = normal(7, 11, seed=0), normal(7, 11, seed=1)
    published = encode(first * 1.25, first)
    assert torch.equal(encode(decode(published, second), second), published)
    assert relative_error(decode(published, second).nan_to_num(0, 0, 0).clamp(-9, 9), first * 1.25) > 0.5


def test_a_decompression_bomb_raises_before_it_takes_memory():
    base = torch.zeros(5, 3)
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(50_000_000), 9)), dtype=torch.uint8)
    tracemalloc.start()
    with pytest.raises(InputError, match="does not decompress to the 60 bytes"):
        decode(bomb, base)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_damaged_difference_raises():
    whole, short, long = (zlib.compress(bytes(size)) for size in (60, 59, 61))
    for stored in (short, long, whole[:-1], whole + b"0", whole + whole, b"", bytes(range(60))):
        with pytest.raises(InputError, match="a difference to the base"):
            decode(torch.tensor(list(stored), dtype=torch.uint8), torch.zeros(5, 3))


def test_differences_chain_each_on_its_predecessor(tmp_path):
    """Llama, Alpaca, Vicuna: three parties, each publishing its own difference."""
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


def test_the_published_file_contains_no_weights(tmp_path):
    base = random_decoder(STYLES["Llama"])
    method = trained("all weights", base)
    method.save(tmp_path)
    published = load_file(tmp_path / "adapter.safetensors")
    assert {tensor.dtype for tensor in published.values()} == {torch.uint8}
    whole = (tmp_path / "adapter.safetensors").read_bytes() + (tmp_path / "adapter.json").read_bytes()
    for name, weight in method.decoder.named_parameters():
        alone = decode(published[name], torch.zeros_like(weight)).nan_to_num(0, 0, 0)
        assert relative_error(alone, weight) > 0.5, name
        for model in (method.decoder, base):
            assert model.get_parameter(name).detach().numpy().tobytes()[:64] not in whole, name


def test_a_forged_dtype_of_a_difference_raises(tmp_path):
    base = random_decoder(STYLES["Llama"])
    trained("last block", base).save(tmp_path)
    stored = json.loads((tmp_path / "adapter.json").read_text())["differences"]
    for forged in (["float64", "float32"], ["bfloat16", "float64"], ["int64", "float64"], ["float64", "int64"]):
        forgery.described(tmp_path, differences={**stored, "norm.weight": forged})
        with pytest.raises(InputError):
            load(base, tmp_path)
