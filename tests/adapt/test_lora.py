"""LoRA: its arithmetic, its cost and its options."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm import Decoder, DecoderConfig, InputError
from minillm.adapt import LoRA
from minillm.adapt.dora import DoRALinear
from minillm.adapt.lora import LoRALinear
from minillm.adapt.low_rank import Update
from minillm.adapt.pissa import PiSSALinear
from minillm.adapt.surgery import frozen
from minillm.adapters.merge import updates
from tests.adapt.low_rank import moved
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.parametrize("targets", [("all-linear",), ("head",), ("embed",), ("positions",), ("embed", "head", "up")])
def test_it_computes_the_decoder_whose_matrices_have_dw_added(targets):
    decoder, scale = random_decoder(STYLES["GPT-2"]), 4 / 2
    method = moved(LoRA(decoder, r=2, alpha=4, targets=targets))
    by_hand = Decoder(decoder.config).double().eval()
    by_hand.load_state_dict(decoder.state_dict())
    # An update of one side of the tied head does not change the other side.
    by_hand.head.weight = torch.nn.Parameter(by_hand.head.weight.detach().clone())
    with torch.no_grad():
        state = method.state()
        for path in {name.rsplit(".", 1)[0] for name in state}:
            by_hand.get_submodule(path).weight += scale * state[f"{path}.b"] @ state[f"{path}.a"]
    assert_close(method(IDS), by_hand(IDS), "law")
    assert (method(IDS) - decoder(IDS)).abs().max() > 1e-3


def test_an_adapted_matrix_shows_its_widths_and_rank():
    with torch.device("meta"):
        method = LoRA(Decoder(DecoderConfig.llama("smollm2-135m")), targets=("query", "value", "embed"))
    assert repr(method.decoder.blocks[0].attention.query) == "LoRALinear(576 -> 576, rank 8)"
    assert repr(method.decoder.blocks[0].attention.value) == "LoRALinear(576 -> 192, rank 8)"
    assert repr(method.decoder.embed) == "LoRAEmbedding(49152 -> 576, rank 8)"


# -- cost --------------------------------------------------------------------------------------------------------------


def extra_flops(layer, inputs, outputs, rank, tokens, **options):
    """FLOPs of an adapted Linear minus those of the frozen one, forward and backward, in float64, whose products the
    counter knows on every CPU."""
    linear = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.float64).requires_grad_(False)
    adapted = layer(linear, Update(rank, 1.0, options.get("dropout", 0.0), False))
    x = torch.randn(tokens, inputs, dtype=torch.float64, requires_grad=options.get("needs_gradient", True))

    def flops(module):
        # The counter does not know in-place products, which cost the same.
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _product}) as counter:
            out = module(x).sum()
            if out.requires_grad:
                out.backward()
        return counter.get_total_flops()

    return flops(adapted) - flops(linear)


def _product(_, left, right, *args, out_shape=None, **kwargs):
    return 2 * left[0] * left[1] * right[1]


SIZES = [(11, 11, 3, 7), (13, 5, 2, 17)]


@pytest.mark.parametrize(("inputs", "outputs", "rank", "tokens"), SIZES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_update_costs_six_rank_flops_a_token_for_every_input_and_output(inputs, outputs, rank, tokens, dropout):
    found = extra_flops(LoRALinear, inputs, outputs, rank, tokens, dropout=dropout)
    assert found == 6 * tokens * rank * (inputs + outputs)


@pytest.mark.parametrize(("inputs", "outputs", "rank", "tokens"), SIZES)
def test_it_costs_less_where_the_input_needs_no_gradient(inputs, outputs, rank, tokens):
    found = extra_flops(LoRALinear, inputs, outputs, rank, tokens, needs_gradient=False)
    assert found == 6 * tokens * rank * (inputs + outputs) - 2 * tokens * rank * inputs


@pytest.mark.parametrize(("inputs", "outputs", "rank", "tokens"), SIZES)
def test_dora_and_pissa_cost_what_their_docstrings_say(inputs, outputs, rank, tokens):
    lora = 6 * tokens * rank * (inputs + outputs)
    norms = 4 * rank * inputs * outputs + 6 * rank**2 * (inputs + outputs)
    assert extra_flops(DoRALinear, inputs, outputs, rank, tokens) == lora + norms
    assert extra_flops(PiSSALinear, inputs, outputs, rank, tokens) == 2 * lora


# -- options -----------------------------------------------------------------------------------------------------------


def scales(method):
    return {path: matrix.scale for path, matrix in method.decoder.named_modules() if isinstance(matrix, LoRALinear)}


def test_a_rank_stabilised_update_is_scaled_by_the_root_of_its_rank():
    decoder = random_decoder(STYLES["Llama"])
    assert set(scales(LoRA(decoder, r=4, alpha=6)).values()) == {6 / 4}
    assert set(scales(LoRA(decoder, r=4, alpha=6, rank_stabilised=True)).values()) == {6 / 2}
    plain = moved(LoRA(decoder, r=4, alpha=6))
    stabilised = LoRA(decoder, r=4, alpha=6, rank_stabilised=True, state=plain.state())
    for path, dw in updates(plain).items():
        assert_close(updates(stabilised)[path], dw * math.sqrt(4), "law")


def test_ranks_and_alphas_are_given_by_pattern_and_the_first_that_matches_counts():
    method = LoRA(
        random_decoder(STYLES["Llama"]), r=2, alpha=4, targets=("query", "key", "up"),
        ranks={"blocks.0.attention.query": 5, "blocks.0.*": 3}, alphas={"up": 8},
    )  # fmt: skip
    ranks = {name.removesuffix(".a"): len(p) for name, p in method.trainable().items() if name.endswith(".a")}
    assert ranks == {
        "blocks.0.attention.query": 5, "blocks.0.attention.key": 3, "blocks.0.feed_forward.up": 3,
        "blocks.1.attention.query": 2, "blocks.1.attention.key": 2, "blocks.1.feed_forward.up": 2,
    }  # fmt: skip
    assert scales(method) == {path: (8 if "up" in path else 4) / rank for path, rank in ranks.items()}


def test_dropout_applies_to_the_input_of_a_alone_and_only_in_training():
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 7).double().requires_grad_(False)
    adapted = LoRALinear(linear, Update(2, 1.0, 0.4, False))
    torch.nn.init.normal_(adapted.b)
    x = torch.randn(3, 5).double()
    frozen_part, whole = linear(x), linear(x) + x @ adapted.a.T @ adapted.b.T
    assert_close(adapted.eval()(x), whole, "law")
    adapted.train()
    torch.manual_seed(1)
    keep = torch.rand_like(x) >= 0.4
    torch.manual_seed(1)
    assert_close(adapted(x), frozen_part + (x * keep / 0.6) @ adapted.a.T @ adapted.b.T, "law")
    assert (adapted(x) - whole).abs().max() > 1e-3


def test_dropout_has_the_gradient_of_its_definition():
    torch.manual_seed(0)
    adapted = LoRALinear(torch.nn.Linear(5, 7).double().requires_grad_(False), Update(2, 1.5, 0.4, False))
    torch.nn.init.normal_(adapted.b)
    x = torch.randn(3, 5).double().requires_grad_()

    def by_definition():
        dropped = torch.where(torch.rand_like(x) >= 0.4, x / 0.6, 0.0)
        return x @ adapted.weight.T + adapted.bias + 1.5 * dropped @ adapted.a.T @ adapted.b.T

    gradients = []
    for run in (lambda: adapted(x), by_definition):
        torch.manual_seed(2)
        gradients.append(torch.autograd.grad(run().square().sum(), (x, adapted.a, adapted.b)))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, "law")


def test_the_targets_biases_are_trained_if_asked_for_and_the_bases_are_not():
    decoder = random_decoder(STYLES["GPT-2"])
    before = decoder.blocks[0].attention.query.bias.clone()
    method = LoRA(decoder, r=2, train_bias=True)
    assert torch.equal(method(IDS), decoder(IDS))
    trained = {name for name in method.trainable() if name.endswith(".bias")}
    assert trained == {f"blocks.{block}.attention.{role}.bias" for block in (0, 1) for role in ("query", "value")}
    method(IDS).square().sum().backward()
    torch.optim.SGD(method.trainable().values(), lr=0.1).step()
    assert not torch.equal(method.state()["blocks.0.attention.query.bias"], before)
    assert torch.equal(decoder.blocks[0].attention.query.bias, before)
    with pytest.raises(InputError, match="none of the targets has a bias"):
        LoRA(random_decoder(STYLES["Llama"]), train_bias=True)


def test_half_precision_matrices_have_float32_factors():
    body = frozen(random_decoder(STYLES["GPT-2"]).float(), torch.bfloat16)
    method = LoRA(body, r=2, train_bias=True, dropout=0.1, targets=("all-linear", "head", "embed"))
    assert {parameter.dtype for parameter in method.trainable().values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        method.train()(IDS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in method.trainable().values())


def test_the_head_of_a_float32_decoder_trains_under_autocast():
    method = LoRA(random_decoder(STYLES["Llama"]).float(), r=2, targets=("all-linear", "head", "embed"))
    with torch.autocast("cpu", torch.bfloat16):
        method(IDS).float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in method.trainable().values())
