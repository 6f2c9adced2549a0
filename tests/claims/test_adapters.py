"""Claims about whole methods: the first step of LoRA, the rounding of a merge, the size of an adapter."""

from dataclasses import replace

import pytest
import torch

from minillm import adapt
from minillm.adapt import FineTune, LoRA, PrefixTuning, SoftPrompt
from minillm.config import DecoderConfig
from minillm.decoder import Decoder
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close, relative_error

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])


def _first_gradients(method):
    """The gradients of the summed next-token loss, by parameter."""
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
    """Against Hu et al. 2021, section 4 ("no additional inference latency"): neighbouring bfloat16 numbers are 0.4 to
    0.8 % apart, so a merge loses most of a dW of a thousandth of W. Added separately, none of it is lost."""
    base = random_decoder(STYLES["Llama"])
    method = LoRA(base, r=5, alpha=5, targets="all-linear")
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.copy_(0.007 * torch.randn_like(parameter))
    lost, kept, sizes = [], [], []
    for dtype in (torch.bfloat16, torch.float32):
        merged = adapt.merge(LoRA(base.to(dtype), r=5, alpha=5, targets="all-linear", state=method.state()))
        for path, update in adapt.updates(method).items():
            before, after = (side.get_submodule(path).weight.double() for side in (base, merged))
            (lost if dtype == torch.bfloat16 else kept).append((after == before).double().mean())
            sizes.append((update.abs().mean() / before.abs().mean()).item())
    shares = [torch.stack(side).mean().item() for side in (lost, kept)]
    print(f"updates of {max(sizes):.2%} of the weights: {shares[0]:.0%} lost in bfloat16, {shares[1]:.0%} in float32")
    assert shares[0] > 0.9
    assert shares[1] < 0.01


def test_a_saved_adapter_is_small(tmp_path):
    """The lecture ("we only publish dW", of Alpaca and Vicuna): an adapter is the difference to a base that others
    have. Measured in bytes of files, description included, for a decoder like GPT-2 in float32."""
    little = {"vocabulary": 503, "layers": 3, "width": 192, "heads": 3, "kv_heads": 3, "feed_forward_width": 768}
    base = Decoder(replace(DecoderConfig.gpt2("small"), **little, context_length=64, dropout=0.0))
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
