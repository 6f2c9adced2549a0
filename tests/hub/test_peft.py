"""peft loads what we write, we load what it writes, with the same logits; and there and back no bit is lost."""

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

from .peft_pairs import (
    BASES,
    IDS,
    OURS,
    THEIRS,
    THEIRS_GPT2,
    base_pair,
    by_peft,
    difference,
    from_peft,
    moved,
    ours,
    same_bits,
)  # fmt: skip


@pytest.fixture(params=BASES)
def pair(request, tmp_path):
    """A tiny random model of transformers, and the same decoder as minillm loads it."""
    return base_pair(request.param, tmp_path)


@pytest.mark.parametrize("name", OURS)
def test_peft_loads_ours_and_computes_the_same(pair, tmp_path, name):
    model, base = pair
    method = ours(name, base)
    export_peft(method, tmp_path / "adapter")
    assert difference(method, by_peft(model, tmp_path / "adapter"), base) < 1e-5


@pytest.mark.parametrize("name", OURS)
def test_there_and_back_not_one_bit_is_lost(pair, tmp_path, name):
    _, base = pair
    method = ours(name, base)
    export_peft(method, tmp_path / "adapter", base_name="somebody/base")
    back = import_peft(base, tmp_path / "adapter")
    same_bits(back, method)
    assert torch.equal(back(IDS), method(IDS))
    assert not back.training
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    export_peft(back, tmp_path / "again", base_name="somebody/base")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("style", ["Llama", "Llama, tied"])
def test_dora_goes_both_ways(tmp_path, style):
    model, base = base_pair(style, tmp_path)
    method = DoRA(base, r=2, alpha=4, targets=("query", "down")).eval()
    moved(method.trainable().values())
    export_peft(method, tmp_path / "adapter")
    assert difference(method, by_peft(model, tmp_path / "adapter"), base) < 1e-5
    same_bits(import_peft(base, tmp_path / "adapter"), method)


@pytest.mark.parametrize(
    ("style", "settings"),
    [("Llama", settings) for settings in THEIRS.values()] + [("GPT-2", settings) for settings in THEIRS_GPT2.values()],
    ids=str,
)
def test_we_load_pefts_lora_and_compute_the_same(tmp_path, style, settings):
    model, base = base_pair(style, tmp_path)
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=style == "GPT-2", **settings)
    oracle = from_peft(model, config, tmp_path / "adapter")
    method = import_peft(base, tmp_path / "adapter")
    assert difference(method, oracle, base) < 1e-5
    # And what peft wrote goes back to peft as it was; what it saved of the base itself is not ours to give.
    export_peft(method, tmp_path / "back")
    theirs = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    back = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert back.keys() == {name for name in theirs if "base_layer" not in name}
    assert all(torch.equal(back[name], theirs[name]) for name in back)


@pytest.mark.parametrize("projection", [False, True])
def test_we_load_pefts_prefix_tuning_and_compute_the_same(pair, tmp_path, projection):
    model, base = pair
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=projection,
        encoder_hidden_size=7 if projection else None,
    )  # fmt: skip
    oracle = from_peft(model, config, tmp_path / "adapter")
    method = import_peft(base, tmp_path / "adapter")
    assert difference(method, oracle, base) < 1e-5
    export_peft(method, tmp_path / "back")
    theirs, back = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("adapter", "back"))
    assert torch.equal(theirs["prompt_embeddings"], back["prompt_embeddings"])


def test_we_load_pefts_prompt_tuning_and_compute_the_same_on_rows_without_padding(pair, tmp_path):
    model, base = pair
    oracle = from_peft(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), tmp_path / "adapter")
    method = import_peft(base, tmp_path / "adapter")
    assert difference(method, oracle, base) < 1e-5


def test_padding_stands_between_pefts_prompt_and_its_text_and_before_our_prompt(tmp_path):
    """Which is why the two are compared on rows without it: ours gives a row in a batch what it gives it alone."""
    model, base = base_pair("GPT-2", tmp_path)
    oracle = from_peft(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), tmp_path / "adapter")
    method, row = import_peft(base, tmp_path / "adapter"), IDS[0, :4].tolist()
    ids, mask = pad_left([IDS[1].tolist(), row])
    with torch.no_grad():
        alone = method(torch.tensor([row]))[0, -1]
        batched, theirs = method(ids, mask=mask)[1, -1], oracle(ids, attention_mask=mask.long()).logits[1, -1]
    assert (batched - alone).abs().max() < 1e-5
    assert (theirs - alone).abs().max() > 1e-3


def test_a_prefix_on_padded_rows_is_pefts_too(tmp_path):
    model, base = base_pair("Llama", tmp_path)
    method = ours("prefix", base)
    export_peft(method, tmp_path / "adapter")
    oracle = by_peft(model, tmp_path / "adapter")
    ids, mask = pad_left([IDS[1].tolist(), IDS[0, :4].tolist()])
    # transformers counts padding as positions unless it is told where a row begins; rotary ones only see distances.
    with torch.no_grad():
        alone, theirs = method(IDS[:1, :4])[0, -1], oracle(ids[1:, -4:]).logits[0, -1]
        assert (method(ids, mask=mask)[1, -1] - theirs).abs().max() < 1e-5 * theirs.abs().max()
        assert (alone - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_merged_by_peft_is_merged_by_us(tmp_path):
    model, base = base_pair("GPT-2", tmp_path)
    method = ours("LoRA, of the fused", base)
    export_peft(method, tmp_path / "adapter")
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    with torch.no_grad():
        expected = merged(IDS).logits
        assert (minillm.adapt.merge(method)(IDS) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda base: PrefixTuning(base, 3, gated=True), "no gate"),
        (lambda base: PrefixTuning(base, 3, shift_positions=False), "positions on from P"),
        (lambda base: InContext(base, IDS[:1]), "peft has no InContext"),
        (lambda base: FrozenHead(base, 2), "peft has no FrozenHead"),
        (lambda base: FineTune(base, layers=1), "peft has no FineTune"),
        (lambda base: LoRA(base, 2, 4, train_bias=True), "trained biases"),
        (lambda base: LoRA(base, 2, 4, alphas={"value": 3}), r"one scale for transformer\.h\.0\.attn\.c_attn"),
        (lambda base: DoRA(base, 2, 4, ("out",)), "stored input by output"),
    ],
)
def test_what_pefts_format_cannot_say_is_refused_and_nothing_is_written(tmp_path, make, sentence):
    _, base = base_pair("GPT-2", tmp_path)
    with pytest.raises(InputError, match=sentence):
        export_peft(make(base), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_decoder_that_transformers_does_not_have_has_no_peft_adapter(tmp_path):
    base = random_decoder(STYLES["figure 1"])
    for method in (LoRA(base, 2), PrefixTuning(base, 3), SoftPrompt(base, 3)):
        with pytest.raises(InputError, match="neither a GPT-2 nor a Llama"):
            export_peft(method, tmp_path)


@pytest.fixture
def saved(tmp_path):
    """(a decoder, a LoRA of peft's for it in a directory)."""
    _, base = base_pair("Llama", tmp_path)
    export_peft(ours("LoRA", base), tmp_path / "adapter")
    return base, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"peft_type": "LOHA"}, "has the peft_type 'LOHA'; minillm reads LORA, PREFIX_TUNING, PROMPT_TUNING"),
        ({"peft_type": ["LORA"]}, "has the peft_type"),
        ({"lora_bias": True}, "has lora_bias = True"),
        ({"bias": "all"}, "has bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"alora_invocation_tokens": [1]}, "has alora_invocation_tokens"),
        ({"something_new": 3}, "has something_new = 3"),
        ({"init_lora_weights": "pissa"}, "convert it to a plain one"),
        ({"init_lora_weights": ["pissa"]}, "convert it to a plain one"),
        ({"r": 3}, "the rank 3, its tensors 2"),
        ({"r": "2"}, "must be a number above 0"),
        ({"r": True}, "must be a number above 0"),
        ({"lora_alpha": 0}, "must be a number above 0"),
        ({"lora_alpha": None}, "must be a number above 0"),
        ({"rank_pattern": {"(a+)+$": 2}}, "no regular expressions"),
        ({"rank_pattern": [2]}, "no regular expressions"),
        ({"alpha_pattern": {"q_proj": "big"}}, "must be a number above 0"),
        ({"lora_dropout": 2}, r"dropout must be in \[0, 1\)"),
        ({"lora_dropout": "much"}, "dropout"),
    ],
)
def test_settings_that_ask_for_another_computation_are_refused(saved, changes, sentence):
    base, place = saved
    settings = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(InputError, match=sentence):
        import_peft(base, place)


QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


def _zero(tensors):
    for name in tensors:
        tensors[name] = torch.zeros_like(tensors[name])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(f"{QUERY}.lora_A.weight"), r"layers\.0\.self_attn\.q_proj is \(24, 2\) times \(\)"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(2, 25)}), r"times \(2, 25\)"),
        (lambda t: t.update({f"{QUERY}.lora_B.weight": torch.ones(24)}), r"is \(24,\) times"),
        (lambda t: t.update({f"{QUERY}.lora_C.weight": torch.ones(2)}), "of a kind that minillm does not compute"),
        (lambda t: t.update({"base_model.model.elsewhere.lora_A.weight": torch.ones(2)}), "no update of a matrix"),
        (lambda t: t.update({"weight": torch.ones(2)}), "no update of a matrix"),
        (lambda t: t.update({f"{QUERY}.base_layer.weight": torch.ones(24, 24)}), "the base differs"),
        (lambda t: t.update({f"{QUERY}.base_layer.weight": torch.ones(3)}), "the base differs"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.full((2, 24), torch.nan)}), "not finite"),
        (lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(2, 24).int()}), "is of torch.int32"),
        (lambda t: t.clear(), "changes nothing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(saved, change, sentence):
    base, place = saved
    tensors = load_file(place / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, place / "adapter_model.safetensors")
    with pytest.raises(InputError, match=sentence):
        import_peft(base, place)


def test_a_prompt_of_another_size_is_refused(saved, tmp_path):
    base, _ = saved
    for name, width in (("prefix", 48), ("soft prompt", 24)):
        export_peft(ours(name, base), tmp_path / name)
        file = tmp_path / name / "adapter_model.safetensors"
        for shape in ((4, width), (5, width + 1), (5, 2, width), (60, width)):
            save_file({"prompt_embeddings": torch.ones(shape)}, file)
            with pytest.raises(InputError, match=rf"the prompt is \({shape[0]}, "):
                import_peft(base, tmp_path / name)
        save_file({"other": torch.ones(5, width)}, file)
        with pytest.raises(InputError, match="one tensor prompt_embeddings"):
            import_peft(base, tmp_path / name)


def test_a_pickle_is_not_opened_and_a_damaged_file_is_said_to_be(saved):
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


def test_what_is_imported_can_be_saved_with_its_base_named(saved, tmp_path):
    base, place = saved
    method = import_peft(base, place)
    method.save(tmp_path / "ours")
    assert torch.equal(minillm.adapt.load(base, tmp_path / "ours")(IDS), method(IDS))
