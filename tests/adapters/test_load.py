"""A saved adapter loads onto its own base bit for bit, and onto no other."""

import copy
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import minillm
from minillm import Decoder, InputError, Tokenizer
from minillm.adapt import LoRA
from minillm.adapt.surgery import frozen
from minillm.adapters.effect import update_norms
from minillm.adapters.load import load
from tests.decoders import STYLES, random_decoder

from .adapters import CASES, IDS, trained

FILES = {"README.md", "adapter.json", "adapter.safetensors"}


@pytest.fixture
def adapter(tmp_path):
    """A saved LoRA."""
    trained("LoRA").save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def base():
    return random_decoder(STYLES["Llama"])


@pytest.mark.parametrize("style", ["Llama", "Llama, untied", "GPT-2"])
@pytest.mark.parametrize("name", CASES)
def test_a_fresh_base_gives_the_saved_method_bit_for_bit_and_the_same_file(tmp_path, name, style):
    method = trained(name, random_decoder(STYLES[style]))
    method.save(tmp_path / "first")
    assert {path.name for path in (tmp_path / "first").iterdir()} == FILES
    assert load_file(tmp_path / "first" / "adapter.safetensors").keys() == method.state().keys()
    fresh = random_decoder(STYLES[style])
    before = {name: parameter.clone() for name, parameter in fresh.named_parameters()}
    loaded = load(fresh, tmp_path / "first")
    assert torch.equal(loaded(IDS), method(IDS))
    assert not loaded.training
    assert type(loaded) is type(method)
    assert loaded.state().keys() == method.state().keys()
    assert all(torch.equal(loaded.state()[tensor], value) for tensor, value in method.state().items())
    assert all(torch.equal(parameter, before[name]) for name, parameter in fresh.named_parameters())
    loaded.save(tmp_path / "second")
    first, second = (tmp_path / where / "adapter.safetensors" for where in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_adapter_json_has_options_base_and_versions(adapter, base):
    found = json.loads((adapter / "adapter.json").read_text())
    assert found["method"] == "LoRA"
    assert found["options"] == trained("LoRA").options()
    assert found["format"] == 2
    assert found["minillm"] == minillm.__version__
    assert found["tokenizer"] is None
    assert found["base"].keys() == dict(base.named_parameters()).keys()
    assert "license" in found["license"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("place", [0, 5, -1])
def test_another_base_is_refused_by_the_first_weight_that_differs(tmp_path, style, place):
    trained("LoRA", random_decoder(STYLES[style])).save(tmp_path)
    other = random_decoder(STYLES[style])
    name = list(dict(other.named_parameters()))[place]
    with torch.no_grad():
        other.get_parameter(name).view(-1)[0] += 1e-9
        other.get_parameter(list(dict(other.named_parameters()))[-1]).view(-1)[0] += 1e-9
    with pytest.raises(InputError, match=f"belongs to another base: {name} differs"):
        load(other, tmp_path)


def test_a_base_that_was_changed_after_saving_is_another_base(tmp_path, base):
    trained("LoRA", base).save(tmp_path)
    with torch.no_grad():
        base.blocks[1].attention.out.weight[2, 3] += 1e-9
    with pytest.raises(InputError, match=r"another base: blocks\.1\.attention\.out\.weight differs \(1 of"):
        load(base, tmp_path)


def test_a_base_with_other_weights_or_other_arithmetic_is_another_base(adapter, base):
    with pytest.raises(InputError, match=r"another base: head\.weight is only in this decoder"):
        load(random_decoder(STYLES["Llama, untied"]), adapter)
    for changes, message in (
        ({"rope_theta": 50.0}, r"its rope_theta is 100\.0, this decoder's 50\.0"),
        ({"window": 3}, "its window is None, this decoder's 3"),
    ):
        other = Decoder(replace(base.config, **changes)).double()
        other.load_state_dict(base.state_dict())
        with pytest.raises(InputError, match=f"another base: {message}"):
            load(other, adapter)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("loaded_as", "dtype"),
    [
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        pytest.param(torch.float64, torch.float64, marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_a_base_in_another_dtype_takes_its_own_adapter(tmp_path, name, loaded_as, dtype):
    minillm.save(random_decoder(STYLES["Llama"]).float(), None, tmp_path / "base")
    method = trained(name, minillm.load(tmp_path / "base")[0])
    method.save(tmp_path / "adapter")
    base = minillm.load(tmp_path / "base", dtype=loaded_as)[0].to(dtype)
    loaded = load(base, tmp_path / "adapter")
    assert all(torch.equal(loaded.state()[tensor], value.to(loaded.state()[tensor].dtype)) for tensor, value in
               method.state().items())  # fmt: skip
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.3}[dtype]
    with torch.no_grad():
        assert (loaded(IDS).double() - method(IDS).double()).abs().max() <= tolerance * method(IDS).abs().max()


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_trained_on_a_cast_base_goes_onto_the_base_itself(tmp_path, name):
    minillm.save(random_decoder(STYLES["Llama"]).float(), None, tmp_path / "base")
    method = trained(name, minillm.load(tmp_path / "base", dtype=torch.bfloat16)[0])
    method.save(tmp_path / "adapter")
    loaded = load(minillm.load(tmp_path / "base")[0], tmp_path / "adapter")
    for tensor, value in method.state().items():
        assert torch.equal(loaded.state()[tensor].to(value.dtype), value), tensor


def test_an_adapter_of_a_body_in_half_precision_loads_onto_its_base(tmp_path):
    """As it is trained on a CPU: see lab/rungs.py."""
    minillm.save(random_decoder(STYLES["Llama"]).float(), None, tmp_path / "base")
    trained("LoRA", frozen(minillm.load(tmp_path / "base")[0], torch.bfloat16)).save(tmp_path / "adapter")
    load(minillm.load(tmp_path / "base")[0], tmp_path / "adapter")
    load(frozen(minillm.load(tmp_path / "base")[0], torch.bfloat16), tmp_path / "adapter")


def test_a_float32_bias_trained_on_a_bfloat16_base_is_restored_on_the_base_itself(tmp_path):
    """Its difference is to the cast bias, in the dtype of the trained one."""
    minillm.save(random_decoder(STYLES["GPT-2"]).float(), None, tmp_path / "base")
    method = LoRA(frozen(minillm.load(tmp_path / "base")[0], torch.bfloat16), r=2, train_bias=True)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    method.save(tmp_path / "adapter")
    found = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert ["bfloat16", "float32"] in found["differences"].values()
    loaded = load(minillm.load(tmp_path / "base")[0], tmp_path / "adapter")
    assert all(torch.equal(loaded.state()[name], value) for name, value in method.state().items())


def test_a_cast_base_that_cannot_restore_a_fine_tune_is_refused(tmp_path):
    single = random_decoder(STYLES["Llama"]).float()
    trained("all weights", single).save(tmp_path)
    with pytest.raises(InputError, match=r"cast to a dtype too narrow .* onto the base in torch\.float32"):
        load(single.bfloat16(), tmp_path)


def test_an_adapter_without_effect_is_refused_unless_allowed(tmp_path, base):
    LoRA(base, r=2).save(tmp_path)
    with pytest.raises(InputError, match=r"has no effect: .* allow_noop=True"):
        load(base, tmp_path)
    assert torch.equal(load(base, tmp_path, allow_noop=True)(IDS), base(IDS))


@pytest.mark.parametrize("name", CASES)
def test_loading_reports_the_method_in_one_line(tmp_path, base, capsys, name):
    method = trained(name, base)
    method.save(tmp_path)
    load(base, tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"{tmp_path}: {type(method).__name__} (" in printed.err


def test_the_line_has_the_norms_of_each_role_and_the_change_of_the_logits(adapter, base, capsys):
    method = load(base, adapter)
    printed, norms = capsys.readouterr().err, update_norms(method)
    for path, matrix in method.decoder.named_modules():
        if hasattr(matrix, "change"):
            assert norms[path] == pytest.approx((matrix.scale * matrix.b @ matrix.a).norm().item(), rel=1e-12)
    assert len(norms) == 4
    for role in ("query", "value"):
        first, last = sorted(norms[f"blocks.{n}.attention.{role}"] for n in range(2))
        assert f"blocks.attention.{role} {first:.3g} to {last:.3g}" in printed
    probe = (torch.arange(16)[None] * 7919 + 1) % 13
    assert (
        f"largest change of a logit on a probe of 16 tokens: {(method(probe) - base(probe)).abs().max():.3g}\n"
        in printed
    )


def test_the_norm_of_a_trained_copys_update_is_that_of_its_difference(base):
    method = trained("last block", base)
    for name, norm in update_norms(method).items():
        assert norm == pytest.approx((method.state()[name] - base.get_parameter(name)).norm().item(), rel=1e-12)
    assert update_norms(method).keys() == method.state().keys()


def test_another_tokenizer_is_refused(tmp_path, base):
    import tokenizers

    def words(*known):
        vocabulary = {word: index for index, word in enumerate(known)}
        return Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=known[0])), {})

    trained("LoRA", base).save(tmp_path, tokenizer=words("a", "b"))
    load(base, tmp_path)
    load(base, tmp_path, tokenizer=words("a", "b"))
    with pytest.raises(InputError, match=r"another tokenizer than that of this base; .* with --base"):
        load(base, tmp_path, tokenizer=words("a", "c"))


def test_a_directory_without_a_description_is_not_an_adapter(adapter, base):
    (adapter / "adapter.json").unlink()
    for place in (adapter, adapter / "nowhere", adapter / "adapter.safetensors"):
        with pytest.raises(InputError, match="is not an adapter"):
            load(base, place)


def test_an_interrupted_save_leaves_the_old_files(adapter, base, monkeypatch):
    expected = load(base, adapter)(IDS)

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained("LoRA", base, seed=1).save(adapter)
    assert {path.name for path in adapter.iterdir()} == FILES
    assert torch.equal(load(base, adapter)(IDS), expected)


def test_nan_is_not_saved(tmp_path, base):
    method = trained("LoRA", base)
    with torch.no_grad():
        next(iter(method.trainable().values()))[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        method.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_cast_copy_of_a_method_saves_an_adapter_of_the_same_base(tmp_path, base):
    method = trained("LoRA", base)
    method.save(tmp_path / "first")
    copy.deepcopy(method).float().save(tmp_path / "second")
    assert load(base, tmp_path / "second")(IDS).dtype == torch.float64
