"""Adapters in peft's format: each side loads what the other saved, with equal logits, and no bit changes."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file

import minillm
from minillm import InputError
from minillm.adapt import DoRA, FineTune, FrozenHead, InContext, LoRA, PrefixTuning, SoftPrompt
from minillm.data.batches import pad_left
from minillm.hub.peft import export_peft, import_peft
from tests.decoders import STYLES, random_decoder

from .peft_pairs import BASES, IDS, OURS, THEIRS, base_pair, by_peft, difference, from_peft, moved, ours, same_bits


@pytest.fixture(params=BASES)
def pair(request, tmp_path):
    """A tiny random model of transformers, and the same decoder in minillm."""
    return base_pair(request.param, tmp_path)


@pytest.mark.parametrize("name", OURS)
def test_peft_loads_an_export_with_equal_logits_and_we_import_it_bit_for_bit(pair, tmp_path, name):
    model, base = pair
    method = ours(name, base)
    export_peft(method, tmp_path / "adapter", base_name="somebody/base")
    assert difference(method, by_peft(model, tmp_path / "adapter"), base) < 1e-5
    back = import_peft(base, tmp_path / "adapter")
    same_bits(back, method)
    assert torch.equal(back(IDS), method(IDS))
    assert not back.training
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    export_peft(back, tmp_path / "again", base_name="somebody/base")
    first, again = (tmp_path / place / "adapter_model.safetensors" for place in ("adapter", "again"))
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("style", ["Llama", "Llama, tied"])
def test_dora_goes_both_ways(tmp_path, style):
    model, base = base_pair(style, tmp_path)
    method = DoRA(base, r=2, alpha=4, targets=("query", "down")).eval()
    moved(method.trainable().values())
    export_peft(method, tmp_path / "adapter")
    assert difference(method, by_peft(model, tmp_path / "adapter"), base) < 1e-5
    same_bits(import_peft(base, tmp_path / "adapter"), method)


@pytest.mark.parametrize(("style", "settings"), THEIRS, ids=str)
def test_a_lora_of_peft_is_imported_with_equal_logits(tmp_path, style, settings):
    model, base = base_pair(style, tmp_path)
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=style == "GPT-2", **settings)
    oracle = from_peft(model, config, tmp_path / "adapter")
    method = import_peft(base, tmp_path / "adapter")
    assert difference(method, oracle, base) < 1e-5
    # The export equals what peft wrote, but for its copies of matrices of the base.
    export_peft(method, tmp_path / "back")
    theirs = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    back = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert back.keys() == {name for name in theirs if "base_layer" not in name}
    assert all(torch.equal(back[name], theirs[name]) for name in back)


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=7),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    ],
    ids=["prefix", "prefix by an MLP", "prompt"],
)
def test_prefix_and_prompt_tuning_of_peft_are_imported_with_equal_logits(pair, tmp_path, config):
    model, base = pair
    oracle = from_peft(model, copy.deepcopy(config), tmp_path / "adapter")
    method = import_peft(base, tmp_path / "adapter")
    assert difference(method, oracle, base) < 1e-5
    export_peft(method, tmp_path / "back")
    theirs, back = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("adapter", "back"))
    assert torch.equal(theirs["prompt_embeddings"], back["prompt_embeddings"])


def test_peft_puts_padding_between_prompt_and_text_and_minillm_before_both(tmp_path):
    """So a padded row equals the row alone in minillm only, and the other tests use rows without padding."""
    model, base = base_pair("GPT-2", tmp_path)
    oracle = from_peft(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), tmp_path / "adapter")
    method, row = import_peft(base, tmp_path / "adapter"), IDS[0, :4].tolist()
    ids, mask = pad_left([IDS[1].tolist(), row])
    with torch.no_grad():
        alone = method(torch.tensor([row]))[0, -1]
        batched, theirs = method(ids, mask=mask)[1, -1], oracle(ids, attention_mask=mask.long()).logits[1, -1]
    assert (batched - alone).abs().max() < 1e-5
    assert (theirs - alone).abs().max() > 1e-3


def test_a_merge_by_peft_equals_our_merge(tmp_path):
    model, base = base_pair("GPT-2", tmp_path)
    method = ours("LoRA, of the fused", base)
    export_peft(method, tmp_path / "adapter")
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    with torch.no_grad():
        expected = merged(IDS).logits
        assert (minillm.adapt.merge(method)(IDS) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: PrefixTuning(base, 3, gated=True), "no gate"),
        (lambda base: PrefixTuning(base, 3, shift_positions=False), "positions start at P"),
        (lambda base: InContext(base, IDS[:1]), "peft has no InContext"),
        (lambda base: FrozenHead(base, 2), "peft has no FrozenHead"),
        (lambda base: FineTune(base, layers=1), "peft has no FineTune"),
        (lambda base: LoRA(base, 2, 4, train_bias=True), "trained biases"),
        (lambda base: LoRA(base, 2, 4, alphas={"value": 3}), r"one scale for transformer\.h\.0\.attn\.c_attn"),
        (lambda base: DoRA(base, 2, 4, ("out",)), r"stored as \(in, out\)"),
    ],
)
def test_what_pefts_format_cannot_express_is_refused_and_nothing_is_written(tmp_path, make, message):
    _, base = base_pair("GPT-2", tmp_path)
    with pytest.raises(InputError, match=message):
        export_peft(make(base), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_of_a_decoder_of_neither_family_cannot_be_exported(tmp_path):
    base = random_decoder(STYLES["figure 1"])
    for method in (LoRA(base, 2), PrefixTuning(base, 3), SoftPrompt(base, 3)):
        with pytest.raises(InputError, match="neither a GPT-2 nor a Llama"):
            export_peft(method, tmp_path)


@pytest.fixture
def saved(tmp_path):
    """A decoder, and the directory of a LoRA for it in peft's format."""
    _, base = base_pair("Llama", tmp_path)
    export_peft(ours("LoRA", base), tmp_path / "adapter")
    return base, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA, PREFIX_TUNING, PROMPT_TUNING, got 'LOHA'"),
        ({"peft_type": ["LORA"]}, "peft_type must be"),
        ({"lora_bias": True}, "has lora_bias = True"),
        ({"bias": "all"}, "has bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"alora_invocation_tokens": [1]}, "has alora_invocation_tokens"),
        ({"something_new": 3}, "has something_new = 3"),
        ({"init_lora_weights": "pissa"}, "adapter to a plain LoRA"),
        ({"init_lora_weights": ["pissa"]}, "adapter to a plain LoRA"),
        ({"r": 3}, "the rank 3 in the settings, 2 in its tensors"),
        ({"r": "2"}, "must be a positive number"),
        ({"r": True}, "must be a positive number"),
        ({"lora_alpha": 0}, "must be a positive number"),
        ({"lora_alpha": None}, "must be a positive number"),
        ({"rank_pattern": {"(a+)+$": 2}}, "not regular expressions"),
        ({"rank_pattern": [2]}, "not regular expressions"),
        ({"alpha_pattern": {"q_proj": "big"}}, "must be a positive number"),
        ({"lora_dropout": 2}, r"dropout must be in \[0, 1\)"),
        ({"lora_dropout": "much"}, "dropout"),
    ],
)
def test_settings_that_minillm_does_not_compute_with_are_refused(saved, changes, message):
    base, place = saved
    settings = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(InputError, match=message):
        import_peft(base, place)


QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_A.weight"), r"layers\.0\.self_attn\.q_proj must .* got \(24, 2\) times \(\)"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(2, 25)}), r"times \(2, 25\)"),
        (lambda t: t.update({f"{QUERY}.lora_B.weight": torch.ones(24)}), r"got \(24,\) times"),
        (lambda t: t.update({f"{QUERY}.lora_C.weight": torch.ones(2)}), "of a kind that minillm does not support"),
        (lambda t: t.update({"base_model.model.elsewhere.lora_A.weight": torch.ones(2)}), "not belong to a matrix"),
        (lambda t: t.update({"weight": torch.ones(2)}), "not belong to a matrix"),
        (lambda t: t.update({f"{QUERY}.base_layer.weight": torch.ones(24, 24)}), "the base differs"),
        (lambda t: t.update({f"{QUERY}.base_layer.weight": torch.ones(3)}), "the base differs"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.full((2, 24), torch.nan)}), "not finite"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(2, 24).int()}), "dtype, got torch.int32"),
        (lambda t: t.clear(), "changes nothing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(saved, change, message):
    base, place = saved
    tensors = load_file(place / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, place / "adapter_model.safetensors")
    with pytest.raises(InputError, match=message):
        import_peft(base, place)


def test_a_prompt_of_another_shape_is_refused(saved, tmp_path):
    base, _ = saved
    for name, width in (("prefix", 48), ("soft prompt", 24)):
        export_peft(ours(name, base), tmp_path / name)
        file = tmp_path / name / "adapter_model.safetensors"
        for shape in ((4, width), (5, width + 1), (5, 2, width), (60, width)):
            save_file({"prompt_embeddings": torch.ones(shape)}, file)
            with pytest.raises(InputError, match=rf"the prompt must have the shape .* got \({shape[0]}, "):
                import_peft(base, tmp_path / name)
        save_file({"other": torch.ones(5, width)}, file)
        with pytest.raises(InputError, match="one tensor prompt_embeddings"):
            import_peft(base, tmp_path / name)


def test_damaged_pickled_and_missing_files_are_refused(saved):
    base, place = saved
    file = place / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        import_peft(base, place)
    file.rename(place / "adapter_model.bin")
    with pytest.raises(InputError, match="is a pickle, which is never opened"):
        import_peft(base, place)
    (place / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        import_peft(base, place)


def test_an_imported_adapter_can_be_saved_by_minillm(saved, tmp_path):
    base, place = saved
    method = import_peft(base, place)
    method.save(tmp_path / "ours")
    assert torch.equal(minillm.adapt.load(base, tmp_path / "ours")(IDS), method(IDS))
