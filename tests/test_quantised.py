"""A quantised base: the numbers of GGUF's blocks, and with them the logits and gradients of the base in float32."""

import copy
import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm import InputError, adapt, generate
from minillm.adapt.surgery import frozen, lower
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from minillm.fast import decoding
from minillm.fast.decoding import Products, prepare
from minillm.hub.gguf_export import export
from minillm.hub.gguf_file import GGUFFile
from minillm.quantised import Quantised, in_bits, quantised
from tests.hub.gguf_writing import llama_config, random_decoder, write_llama
from tests.strategies import randoms
from tests.tolerances import relative_error

KINDS = {4: GGMLQuantizationType.Q4_1, 8: GGMLQuantizationType.Q8_0}
METHODS = {
    "LoRA": lambda base: adapt.LoRA(base, r=2, targets="all-linear"),
    "DoRA": lambda base: adapt.DoRA(base, r=2),
    "prefix": lambda base: adapt.PrefixTuning(base, 2),
    "soft prompt": lambda base: adapt.SoftPrompt(base, 2),
}
bits = st.sampled_from((4, 8))


def pair(width=32, number=4):
    """A decoder with quantised matrices, and one with the same numbers in float32."""
    torch.manual_seed(0)
    sizes = {"width": width, "heads": 2, "kv_heads": 1, "feed_forward_width": 2 * width, "tie_embeddings": True}
    decoder = Decoder(DecoderConfig.tiny(**sizes)).eval()
    state = {name: in_bits(name, 20 * tensor, number) for name, tensor in decoder.state_dict().items()}
    state["head.weight"] = state["embed.weight"]
    decoder.load_state_dict(state, assign=True)
    decoder.head.weight = decoder.embed.weight
    plain = Decoder(decoder.config).eval()
    plain.load_state_dict({name: tensor.detach() + 0 for name, tensor in state.items()})
    return decoder.requires_grad_(False), plain.requires_grad_(False)


@given(number=bits, random=randoms)
def test_the_numbers_are_those_of_gguf(number, random):
    """Also where a group has equal numbers, or only zeros; and quantised numbers stay as they are."""
    rows = random.standard_normal((3, 96)).astype(np.float32)
    rows[0, :32], rows[1, 32:64] = 0.5, 0
    expected = torch.from_numpy(dequantize(quantize(rows, KINDS[number]), KINDS[number]))
    found = quantised(torch.from_numpy(rows), number)
    step = found.scale.float().repeat_interleave(32, 1)
    # gguf divides by the scale before it is rounded to float16: at a half, one may round up and the other down.
    assert ((found.dense() - expected).abs() <= 1.001 * step).all()
    assert ((found.dense() - expected).abs() > 1e-6).float().mean() < 0.02
    assert ((found.dense() - torch.from_numpy(rows)).abs() <= (0.5 + 16 / 2048 + 127 / 2048) * step + 1e-3).all()
    assert torch.equal(quantised(expected, number).dense(), expected)
    assert torch.equal(quantised(found.dense(), number).dense(), found.dense())


@pytest.mark.parametrize("number", [4, 8])
def test_a_weight_takes_5_or_8_and_a_half_bits(number):
    found = quantised(torch.randn(64, 96), number)
    stored = sum(part.nbytes for part in found.parts if part is not None)
    assert 8 * stored == {4: 5, 8: 8.5}[number] * 64 * 96
    assert (found.shape, found.dtype, found.requires_grad) == ((64, 96), torch.float32, False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [4, 8])
def test_logits_and_gradients_equal_those_of_the_same_numbers_in_float32(method, number):
    found = []
    for base in pair(number=number):
        torch.manual_seed(1)
        model = METHODS[method](base)
        for parameter in model.trainable().values():
            torch.nn.init.normal_(parameter, std=0.3)
        logits = model(torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]]))
        logits.logsumexp(-1).sum().backward()
        found.append([logits, *(parameter.grad for parameter in model.trainable().values())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_no_dequantised_matrix_is_kept_for_the_backward_pass():
    base, _ = pair()
    sizes, saved = {tuple(matrix.shape) for matrix in base.parameters() if matrix.dim() == 2}, []
    model = adapt.LoRA(base, r=2, targets="all-linear")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        model(torch.arange(9)[None]).sum()
    matrices = [one for one in saved if tuple(one.shape) in sizes or tuple(one.shape[::-1]) in sizes]
    assert matrices
    assert all(isinstance(one, Quantised) for one in matrices)


def test_fine_tuned_copies_are_in_float32_and_the_rest_stays_quantised():
    base, _ = pair()
    model = adapt.FineTune(base, 1)
    assert not any(isinstance(parameter, Quantised) for parameter in model.trainable().values())
    kinds = [isinstance(block.feed_forward.up.weight, Quantised) for block in model.decoder.blocks]
    assert kinds == [True] * (len(kinds) - 1) + [False]
    lower(model.decoder, torch.bfloat16)
    assert isinstance(model.decoder.blocks[0].feed_forward.up.weight, Quantised)


def test_quantised_weights_do_not_change():
    base, _ = pair()
    weight = base.blocks[0].attention.query.weight
    for change in (weight.zero_, lambda: weight.add_(1), lambda: weight.copy_(torch.ones(32, 32))):
        with pytest.raises(InputError, match="frozen"):
            change()
    assert isinstance(frozen(base).blocks[0].attention.query.weight, Quantised)
    assert isinstance(weight.to("cpu", copy=True), Quantised)
    assert copy.deepcopy(base)(torch.tensor([[1, 2]])).equal(base(torch.tensor([[1, 2]])))


def test_what_cannot_be_quantised_is_named():
    with pytest.raises(InputError, match="multiple of 32 numbers can be quantised, got 33"):
        quantised(torch.ones(2, 33), 4)
    for number in (1e6, float("nan")):
        with pytest.raises(InputError, match="only weights up to 65504"):
            quantised(torch.full((2, 32), number), 8)
    for wrong in ({"quantise": 3}, {"quantise": 4, "dtype": torch.bfloat16}):
        with pytest.raises(InputError, match="quantise must be 4 or 8"):
            minillm.load("tiny", **wrong)


def test_a_saved_model_and_a_merged_adapter_have_the_numbers(tmp_path):
    base, plain = pair()
    method = adapt.LoRA(base, r=2, targets=("query",))
    torch.nn.init.normal_(method.decoder.blocks[0].attention.query.b)
    minillm.save(base, None, tmp_path / "a")
    export(base, None, tmp_path / "a.gguf")
    minillm.save(adapt.merge(method), None, tmp_path / "merged")
    ids = torch.tensor([[3, 1, 4]])
    for place in ("a", "a.gguf"):
        assert torch.equal(minillm.load(tmp_path / place)[0](ids), plain(ids))
    assert relative_error(minillm.load(tmp_path / "merged")[0](ids), method(ids)) < 1e-5


@pytest.mark.skipif(not decoding.FOUR_BITS, reason="torch has no 4-bit kernel for this CPU")
def test_decoding_multiplies_4_bits_with_the_error_of_bfloat16():
    base, plain = pair(width=64)
    layer = base.blocks[0].attention
    product = Products((layer.query, layer.key, layer.value), narrow=False)
    x = torch.randn(3, 2, 64)
    exact = torch.cat([one(x) for one in product.linears], -1)
    rounded = torch.cat([one(x.bfloat16().float()) for one in product.linears], -1)
    assert 0 < relative_error(product(x), exact) <= 2 * relative_error(rounded, exact) + 8 / 256
    biased, bias = copy.deepcopy(layer.out), torch.nn.Parameter(torch.randn(64), requires_grad=False)
    biased.bias = bias
    plain_out, with_bias = (Products((one,), narrow=False)(x) for one in (layer.out, biased))
    assert torch.equal(with_bias, plain_out + bias)
    with torch.no_grad():
        assert relative_error(prepare(base)(torch.tensor([[3, 1, 4]])), plain(torch.tensor([[3, 1, 4]]))) < 0.02


@pytest.mark.parametrize("number", [4, 8])
def test_blocks_of_a_gguf_file_are_kept_as_they_are_stored(number, tmp_path, monkeypatch):
    """The rows of queries and keys are interleaved in the file. Embeddings in 4 bits are kept in 8."""
    path, read = write_llama(tmp_path / "a.gguf", random_decoder(llama_config()), KINDS[number]), []
    exact, _ = minillm.load(path)
    whole = GGUFFile.read
    monkeypatch.setattr(GGUFFile, "read", lambda file, name: read.append(name) or whole(file, name))
    found, _ = minillm.load(path, quantise=number)
    assert [name for name in read if "norm" not in name] == (["token_embd.weight"] if number == 4 else [])
    for (name, one), (_, other) in zip(found.named_parameters(), exact.named_parameters(), strict=True):
        assert torch.equal(one + 0, other + 0) or (name == "embed.weight" and number == 4), name


@pytest.fixture
def place(tmp_path):
    return tmp_path


def test_commands_quantise_the_base(place, command):
    loaded, _ = minillm.load("tiny", quantise=4)
    kept = {name for name, parameter in loaded.named_parameters() if isinstance(parameter, Quantised)}
    assert {"embed.weight", "blocks.0.attention.out.weight"} <= kept
    with torch.no_grad():
        assert torch.equal(generate(loaded, torch.tensor([[1, 2]]), max_new_tokens=2)[:, :2], torch.tensor([[1, 2]]))
    options = "--base", "tiny", "--task", "word_problems", "--train", "32", "--test", "8", "--epochs", "1"
    command("adapt", *options, "--quantise", "4", "--out", "mine")
    assert json.loads((place / "mine" / "classifier.json").read_text())["parameters"]["quantise"] == 4
    (place / "new.csv").write_text("text\nTom has 3 apples.\n")
    assert "Tom" in command("predict", "mine", "new.csv")
