"""Claims about the methods themselves: what each trains and publishes, how it first moves, and what merging loses."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from minillm import adapt
from minillm.adapt import FineTune, FrozenHead, LoRA, PrefixTuning, SoftPrompt
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close, relative_error

SMALL, MEDIUM = DecoderConfig.gpt2("small"), DecoderConfig.gpt2("medium")
SMOLLM2 = DecoderConfig.llama("smollm2-135m")
IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])


@cache
def _shapes(config):
    """A decoder of that size that takes no memory."""
    with torch.device("meta"):
        return Decoder(config)


@pytest.mark.parametrize(
    ("what", "config", "build", "trained"),
    [
        ("soft prompt of 10 on SmolLM2", SMOLLM2, lambda base: SoftPrompt(base, 10), 5_760),
        ("prefix of 10 on SmolLM2", SMOLLM2, lambda base: PrefixTuning(base, 10), 115_200),
        ("prefix of 5 on GPT-2 medium", MEDIUM, lambda base: PrefixTuning(base, 5), 245_760),
        ("prefix of 10 on GPT-2 medium", MEDIUM, lambda base: PrefixTuning(base, 10), 491_520),
        ("prefix of 5 by an MLP", MEDIUM, lambda base: PrefixTuning(base, 5, hidden=512), 25_744_896),
        ("head of 2 classes on GPT-2 small", SMALL, lambda base: FrozenHead(base, 2), 1_538),
        ("last 2 blocks of SmolLM2", SMOLLM2, lambda base: FineTune(base, layers=2), 7_080_768),
        ("all of SmolLM2", SMOLLM2, FineTune, 134_515_008),
        ("LoRA, r 8, on SmolLM2", SMOLLM2, lambda base: LoRA(base, r=8), 460_800),
    ],
)
def test_each_method_trains_as_many_numbers_as_its_paper_counts(what, config, build, trained):
    """Lester et al. 2021, section 2; Li & Liang 2021, sections 4.2 and 4.3; the lecture's places 2, 3 and 4. (LoRA's
    other ones: in `test_counts.py` by the formula, in `tests/adapt/test_lora.py` by the class.)"""
    base = _shapes(config)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(base).trainable().values())
    whole = sum(parameter.numel() for parameter in base.parameters())
    print(f"{what}: {count:,} of {whole:,}, {count / whole:.3%}")
    assert count == trained


def _first_gradients(method):
    """Of the summed loss of the next tokens, by parameter."""
    logits = method(IDS)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, IDS[:, 1:].flatten(), reduction="sum").backward()
    return {name: parameter.grad for name, parameter in method.trainable().items()}


@pytest.mark.parametrize("style", ["GPT-2", "Llama"])
def test_in_a_decoder_loras_first_step_is_full_fine_tunings_times_s_squared_a_transposed_a(style):
    """Derived: with B = 0, dL/dB = s G Aᵀ and dL/dA = 0, so that a step of gradient descent of size η moves the matrix
    by s (-η s G Aᵀ) A = -η G (s² Aᵀ A), where full fine-tuning moves it by -η G."""
    base, rate = random_decoder(STYLES[style]), 0.01
    low_rank = LoRA(base, r=5, alpha=3, targets="all-linear")
    full, factors = _first_gradients(FineTune(base)), low_rank.state()
    factors = {name: factor.clone() for name, factor in factors.items()}
    _first_gradients(low_rank)
    torch.optim.SGD(low_rank.trainable().values(), lr=rate).step()
    errors = []
    for path, moved in adapt.updates(low_rank).items():
        a, scale = factors[f"{path}.a"], 3 / 5
        expected = -rate * full[f"{path}.weight"] @ (scale**2 * a.T @ a)
        errors.append(relative_error(moved, expected))
        assert_close(moved, expected, "law", path)
        assert moved.abs().max() > 0
    print(f"{style}: {len(errors)} matrices, largest error {max(errors):.1e}")


def test_most_of_a_small_update_is_rounded_away_when_it_is_merged_in_half_precision():
    """Against Hu et al. 2021, section 4 ("no additional inference latency"): merging has its price in bfloat16, whose
    neighbours are 0.4 to 0.8 % apart. A dW of a thousandth of W mostly leaves W as it was; kept apart, none is lost."""
    base = random_decoder(STYLES["Llama"])
    method = LoRA(base, r=5, alpha=5, targets="all-linear")
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.copy_(0.007 * torch.randn_like(parameter))
    lost, kept, left = [], [], []
    for dtype in (torch.bfloat16, torch.float32):
        merged = adapt.merge(LoRA(base.to(dtype), r=5, alpha=5, targets="all-linear", state=method.state()))
        for path, update in adapt.updates(method).items():
            before, after = (side.get_submodule(path).weight.double() for side in (base, merged))
            (lost if dtype == torch.bfloat16 else kept).append((after == before).double().mean())
            left.append((update.abs().mean() / before.abs().mean()).item())
    shares = [torch.stack(side).mean().item() for side in (lost, kept)]
    print(f"updates of {max(left):.2%} of the weights: {shares[0]:.0%} lost in bfloat16, {shares[1]:.0%} in float32")
    assert shares[0] > 0.9
    assert shares[1] < 0.01


def test_merging_and_subtracting_an_adapter_again_does_not_give_the_base_back():
    """Against Hu et al. 2021, section 4 ("we can recover W0 by subtracting BA"), with a whole decoder in bfloat16: that
    is why a merge here is a new decoder, and dropping it is exact."""
    base = random_decoder(STYLES["Llama"]).bfloat16()
    method = LoRA(base, r=5, alpha=5, targets="all-linear")
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    merged, changed, matrices = adapt.merge(method), 0, 0
    for path, update in adapt.updates(method).items():
        before = base.get_submodule(path).weight
        again = (merged.get_submodule(path).weight - update).to(before.dtype)
        changed, matrices = changed + (again != before).sum().item(), matrices + before.numel()
    print(f"{changed / matrices:.0%} of the weights are not the base's again")
    assert changed / matrices > 0.1


def test_we_only_publish_dw_and_it_is_small(tmp_path):
    """The lecture (Llama, then Alpaca and Vicuna): what is published is the difference to a base that others have.
    Measured in files, for a decoder of GPT-2's choices in float32: text, hashes and all."""
    little = {"vocabulary": 503, "layers": 3, "width": 192, "heads": 3, "kv_heads": 3, "feed_forward_width": 768}
    base = Decoder(replace(SMALL, **little, context_length=64, dropout=0.0))
    whole = sum(parameter.numel() * 4 for parameter in base.parameters())
    methods = {
        "soft prompt": SoftPrompt(base, 10),
        "LoRA": LoRA(base, r=4),
        "prefix": PrefixTuning(base, 10),
        "last block": FineTune(base, layers=1),
        "all weights": FineTune(base),
    }
    sizes = {}
    for name, method in methods.items():
        with torch.no_grad():
            for parameter in method.trainable().values():
                parameter += 1e-4 * torch.randn_like(parameter)
        method.save(tmp_path / name)
        sizes[name] = sum(path.stat().st_size for path in (tmp_path / name).iterdir()) / whole
    print(f"of the base's {whole:,} bytes:", ", ".join(f"{name} {share:.2%}" for name, share in sizes.items()))
    assert sorted(sizes, key=sizes.get) == list(methods)
    assert sizes["LoRA"] < 0.03
    assert sizes["all weights"] < 0.9
