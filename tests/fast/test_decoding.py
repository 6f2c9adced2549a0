"""The copy of a decoder for decoding: the same logits, half the bytes, and made again after a change."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import minillm
from minillm import adapt, generate
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.fast import decoding
from minillm.fast.decoding import half_is_slow, prepare
from minillm.generation import DecodingCache
from tests.decoders import STYLES, random_decoder, random_prefix
from tests.strategies import masks, randoms
from tests.tolerances import assert_close, relative_error

METHODS = {
    "LoRA": lambda base: adapt.LoRA(base, r=2, targets="all-linear"),
    "DoRA": lambda base: adapt.DoRA(base, r=2),
    "LoRA of the ends": lambda base: adapt.LoRA(base, r=2, targets=("head", "embed")),
}


def adapted(method, base):
    torch.manual_seed(0)
    found = METHODS[method](base).eval()
    for parameter in found.trainable().values():
        torch.nn.init.normal_(parameter, std=0.3)
    return found


def logits(model, decoder, ids, mask=None):
    """After each token, one step each; the first step has two tokens."""
    cache, found = DecodingCache(model), []
    cache.rest(ids)
    for start, end in zip([0, *range(2, ids.shape[1])], range(2, ids.shape[1] + 1), strict=True):
        found.append(cache.logits(ids[:, start:end], None if mask is None else mask[:, :end], decoder))
    return torch.stack(found, 1)


class Prefixed:
    """A decoder after a prefix."""

    def __init__(self, decoder, keys_values):
        self.decoder, self.keys_values = decoder, keys_values

    def prefix(self):
        return self.keys_values


@given(data=st.data(), random=randoms)
def test_steps_equal_the_decoder(data, random):
    """In all styles, with and without prefix, gate, padding and adapter, for one row and several."""
    rows, length = data.draw(st.sampled_from((1, 3))), data.draw(st.integers(2, 4))
    decoder = random_decoder(STYLES[data.draw(st.sampled_from(list(STYLES)))])
    method = data.draw(st.sampled_from((None, None, *METHODS)))
    decoder = decoder if method is None else adapted(method, decoder).decoder
    ids = torch.from_numpy(random.integers(0, 13, (rows, length)))
    mask = torch.from_numpy(data.draw(masks(rows, length))) if data.draw(st.booleans()) else None
    prefix = random_prefix(decoder.config, 3, data.draw(st.sampled_from((1, rows))), data.draw(st.booleans()))
    model = Prefixed(decoder, data.draw(st.sampled_from((None, prefix))))
    prepared = prepare(decoder)
    assert prepared is not decoder
    assert_close(logits(model, prepared, ids, mask), logits(model, decoder, ids, mask), "law", terms=30)


@pytest.fixture
def halved(monkeypatch):
    monkeypatch.setattr(decoding, "LARGE", 0)
    monkeypatch.setattr(decoding, "half_is_slow", lambda: False)


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("style", ["figure 1", "GPT-2", "Qwen"])
def test_float16_is_as_exact_as_rounded_weights(style, method, halved):
    """At most twice the error that rounding the weights to float16 causes, and 8 ulp."""
    base = random_decoder(STYLES[style])
    body = base if method is None else adapted(method, base).decoder
    exact = copy.deepcopy(base) if method is None else adapt.merge(adapted(method, base))
    rounded, ids = copy.deepcopy(exact), torch.randint(0, 13, (1, 9))
    rounded.load_state_dict({name: tensor.half() for name, tensor in exact.state_dict().items()})
    expected, simpler = (logits(one, one, ids) for one in (exact, rounded))
    found = logits(body.float(), prepare(body), ids)
    ulp = torch.finfo(torch.float16).eps
    assert relative_error(found, expected) <= 2 * relative_error(simpler, expected) + 8 * ulp
    assert relative_error(found, expected) > 1e-5, "it ran in float32"


class Reads(TorchDispatchMode):
    """The bytes of the matrices that are multiplied, and the number of operations that are no views."""

    def __init__(self):
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.kernels += not func.is_view
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.mv.default):
            self.bytes += max(side.nbytes for side in args if isinstance(side, torch.Tensor))
        return func(*args, **(kwargs or {}))


def read_in_a_step(decoder, prepared):
    cache = DecodingCache(decoder)
    cache.logits(torch.tensor([[1, 2, 3]]), None, prepared)
    cache.logits(torch.tensor([[4]]), None, prepared)
    with Reads() as reads:
        cache.logits(torch.tensor([[5]]), None, prepared)
    return reads.bytes, reads.kernels


def test_a_step_of_one_row_reads_every_matrix_once_in_two_bytes_a_weight(halved):
    small, large = (Decoder(DecoderConfig.tiny(layers=layers)).eval() for layers in (2, 3))
    matrices = sum(parameter.nbytes for parameter in large.parameters() if parameter.dim() == 2)
    fast, plain = read_in_a_step(large, prepare(large)), read_in_a_step(large, large)
    assert (fast[0], plain[0]) == (matrices / 2, matrices)
    layer, plain_layer = fast[1] - read_in_a_step(small, prepare(small))[1], plain[1] - read_in_a_step(small, small)[1]
    assert layer <= 0.75 * plain_layer


def copied(prepared):
    """The products whose matrices were copied."""
    products = [product for block in prepared.blocks for product in block.products]
    return [product for product in (*products, prepared.head) if "matrices" in vars(product)]


def test_where_float16_is_slow_nothing_is_copied(halved, monkeypatch):
    monkeypatch.setattr(decoding, "half_is_slow", lambda: True)
    decoder = Decoder(DecoderConfig.tiny()).eval()
    generate(decoder, torch.ones(1, 3, dtype=torch.long), max_new_tokens=3)
    assert copied(prepare(decoder)) == []
    assert isinstance(half_is_slow(), bool)


def test_batches_and_prompts_copy_no_block(halved):
    decoder = Decoder(DecoderConfig.tiny(context_length=2 * decoding.FEW)).eval()
    generate(decoder, torch.ones(2, 3, dtype=torch.long), max_new_tokens=3)
    generate(decoder, torch.ones(1, decoding.FEW + 1, dtype=torch.long), max_new_tokens=1)
    prepared = prepare(decoder)
    assert copied(prepared) == [prepared.head]


@pytest.mark.parametrize("change", ["step", "fused step", "load", "cast", "module", "hook"])
def test_a_change_of_the_model_is_noticed(change, halved):
    decoder, ids = Decoder(DecoderConfig.tiny()).eval(), torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        decoder.embed.weight.mul_(20)
    generate(decoder, ids, max_new_tokens=3)
    before = prepare(decoder)
    assert prepare(decoder) is before
    if change in ("step", "fused step"):
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.1, fused=change == "fused step")
        decoder(ids).logsumexp(-1).sum().backward()
        optimizer.step()
    elif change == "load":
        decoder.load_state_dict({name: -tensor for name, tensor in decoder.state_dict().items()})
    elif change == "cast":
        decoder.double()
    elif change == "module":
        decoder.blocks[0].feed_forward = copy.deepcopy(decoder.blocks[1].feed_forward)
    else:
        decoder.blocks[0].register_forward_hook(lambda module, inputs, out: -out)
    found = generate(decoder, ids, max_new_tokens=9)
    with minillm.backend("plain"):
        assert torch.equal(found, generate(decoder, ids, max_new_tokens=9))
    assert prepare(decoder) is not before


def test_a_number_that_exceeds_float16_continues_in_float32(halved):
    decoder, ids = random_decoder(STYLES["Llama"]).float(), torch.tensor([[3, 1, 4]])
    with torch.no_grad():
        decoder.blocks[0].feed_forward.up.weight.mul_(1e6)
        decoder.blocks[0].feed_forward.down.weight.mul_(1e-6)
    cache, prepared = DecodingCache(decoder), prepare(decoder)
    with torch.no_grad():
        assert not prepared(ids[:, :1]).isfinite().all()
        steps = torch.stack([cache.logits(ids[:, [place]], None, prepared) for place in range(3)], 1)
        assert_close(steps, decoder(ids), "law in float32", terms=30)
    assert torch.equal(cache.ids, ids)


def test_only_decoders_that_are_evaluated_on_a_cpu_in_one_wide_dtype_are_prepared():
    decoder = Decoder(DecoderConfig.tiny()).eval()
    assert prepare(decoder.train()) is decoder
    assert prepare(decoder.eval().bfloat16()) is decoder
    with torch.autocast("cpu", torch.bfloat16):
        assert prepare(decoder.float()) is decoder
    assert prepare(decoder.to("meta")) is decoder


def test_the_copy_is_freed_with_its_decoder():
    decoder = Decoder(DecoderConfig.tiny()).eval()
    copied = weakref.ref(prepare(decoder))
    del decoder
    gc.collect()
    assert copied() is None
