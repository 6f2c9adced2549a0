"""LoRA: what it costs, where it starts, what it leaves alone."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm import Decoder, DecoderConfig, InputError
from minillm.adapt import LoRA
from minillm.adapt.lora import LoRALinear
from minillm.adapt.surgery import frozen
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def moved(method):
    """As if it had been trained: B is no longer 0."""
    with torch.no_grad():
        for name, parameter in method.trainable().items():
            if name.endswith(".b"):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return method


def test_it_starts_as_the_base_bit_for_bit_and_then_leaves_it():
    decoder = random_decoder(STYLES["Llama"])
    method = LoRA(decoder, r=2, alpha=4)
    assert torch.equal(method(IDS), decoder(IDS))
    assert (moved(method)(IDS) - decoder(IDS)).abs().max() > 1e-3


def test_it_computes_the_decoder_whose_matrices_have_dw_added():
    decoder, scale = random_decoder(STYLES["GPT-2"]), 4 / 2
    method = moved(LoRA(decoder, r=2, alpha=4, targets=("all-linear",)))
    expected = method(IDS)
    with torch.no_grad():
        for path, module in method.decoder.named_modules():
            if isinstance(module, LoRALinear):
                decoder.get_submodule(path).weight += scale * module.b @ module.a
    assert_close(decoder(IDS), expected, "law")


def test_only_a_and_b_of_the_targets_are_trained_and_they_are_counted_as_the_paper_counts():
    with torch.device("meta"):
        small = LoRA(Decoder(DecoderConfig.gpt2("small")), r=4)
        medium = LoRA(Decoder(DecoderConfig.gpt2("medium")), r=4)
        llama = LoRA(Decoder(DecoderConfig.llama("llama-2-7b")), r=8)
        smollm2 = LoRA(Decoder(DecoderConfig.llama("smollm2-135m")), r=8)
    counts = [sum(p.numel() for p in method.trainable().values()) for method in (small, medium, llama, smollm2)]
    assert counts == [147_456, 393_216, 4_194_304, 460_800]
    assert {name.rsplit(".", 2)[-2] for name in small.trainable()} == {"query", "value"}


def test_a_step_leaves_the_base_as_it_was_bit_for_bit():
    decoder = random_decoder(STYLES["Llama"])
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    method = moved(LoRA(decoder, r=2, alpha=4))
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    for _ in range(3):
        method(IDS).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())
    assert all(parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize(("inputs", "outputs", "rank", "tokens"), [(11, 11, 3, 7), (13, 5, 2, 17)])
def test_an_update_costs_six_rank_flops_a_token_for_every_input_and_output(inputs, outputs, rank, tokens):
    linear = torch.nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    adapted = LoRALinear(linear, rank, 1.0)
    x = torch.randn(tokens, inputs, requires_grad=True)

    def flops(module):
        # Products in place are unknown to the counter: they cost what the others do.
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _product}) as counter:
            module(x).sum().backward()
        return counter.get_total_flops()

    assert flops(adapted) - flops(linear) == 6 * tokens * rank * (inputs + outputs)


def _product(_, left, right, *args, out_shape=None, **kwargs):
    return 2 * left[0] * left[1] * right[1]


def test_a_rank_that_no_matrix_can_have_is_refused():
    for rank in (0, 11):
        with pytest.raises(InputError, match=f"a rank of {rank} does not fit"):
            LoRA(random_decoder(STYLES["Llama"]), r=rank)


def test_half_precision_matrices_keep_a_and_b_in_float32():
    body = frozen(random_decoder(STYLES["Llama"]).float(), torch.bfloat16)
    method = LoRA(body, r=2)
    assert {parameter.dtype for parameter in method.trainable().values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        method(IDS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in method.trainable().values())
