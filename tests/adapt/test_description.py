"""adapter.json and the tensors are checked, also where every sha256 was forged to agree."""

import json
from dataclasses import fields

import pytest
import torch

from minillm import InputError
from minillm.adapt import InContext
from minillm.adapt.description import Usage
from minillm.adapters.load import load
from tests.adapters import forgery
from tests.adapters.adapters import trained
from tests.decoders import STYLES, random_decoder


@pytest.fixture
def adapter(tmp_path):
    """A saved LoRA."""
    trained("LoRA").save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def base():
    return random_decoder(STYLES["Llama"])


def _misshapen(tensors):
    tensors["blocks.0.attention.query.a"] = tensors["blocks.0.attention.query.a"].T.contiguous()


def _missing(tensors):
    del tensors["blocks.0.attention.query.a"]


def _extra(tensors):
    tensors["blocks.0.attention.key.a"] = torch.ones(2)


def _not_finite(tensors):
    tensors["blocks.0.attention.query.a"][0, 0] = torch.inf


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_misshapen, r"blocks\.0\.attention\.query\.a must be \(2, 30\) .* got \(30, 2\)"),
        (_missing, r"no tensor blocks\.0\.attention\.query\.a"),
        (_extra, r"blocks\.0\.attention\.key\.a"),
        (_not_finite, r"values in blocks\.0\.attention\.query\.a that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_the_options_are_refused_by_name(adapter, base, change, sentence):
    forgery.stored(adapter, change)
    with pytest.raises(InputError, match=sentence):
        load(base, adapter)


def test_another_adapters_tensors_are_refused(adapter, tmp_path, base):
    trained("LoRA", base, seed=1).save(tmp_path / "other")
    (tmp_path / "other" / "adapter.safetensors").replace(adapter / "adapter.safetensors")
    with pytest.raises(InputError, match=r"is damaged: the sha256 of blocks\.0\.attention\.query\.a differs"):
        load(base, adapter)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "Pickle"}, "method must be one of InContext, .*, got 'Pickle'"),
        ({"format": 3}, "has the format 3; this minillm reads 1 and 2"),
        ({"format": True}, "has the format True"),
        ({"options": {}}, "option 'r' is missing"),
        ({"options": {**trained("LoRA").options(), "r": 10**9}}, "the option r must be at most 4096 "),
        ({"options": {**trained("LoRA").options(), "r": -1}}, "must be at least 1, got -1"),
        ({"options": {**trained("LoRA").options(), "targets": ["nothing"]}}, "'nothing' matches nothing"),
        ({"options": [1]}, "the field 'options' has the wrong type"),
        ({"base": {}}, r"embed\.weight is only in this decoder"),
        ({"differences": {"blocks.0.attention.query.a": ["int8", "float32"]}}, "a pair of dtypes"),
        ({"tokenizer": 3}, "the field 'tokenizer' has the wrong type"),
        ({"new": 3}, "the field 'new' is unknown"),
        ({"prompt": 3}, "the field 'prompt' has the wrong type"),
        ({"chat": 1}, "the field 'chat' has the wrong type"),
        ({"labels": [1]}, "the labels must be strings"),
    ],
)
def test_a_description_with_impossible_values_is_refused(adapter, base, changes, sentence):
    forgery.described(adapter, **changes)
    with pytest.raises(InputError, match=sentence):
        load(base, adapter)


def test_an_edited_description_is_refused(adapter, base):
    text = (adapter / "adapter.json").read_text()
    (adapter / "adapter.json").write_text(text.replace('"alpha": 4', '"alpha": 8'))
    with pytest.raises(InputError, match="damaged or edited"):
        load(base, adapter)


def test_a_description_with_a_duplicate_name_is_refused(adapter, base):
    text = (adapter / "adapter.json").read_text()
    (adapter / "adapter.json").write_text(text.replace('"method": "LoRA"', '"method": "LoRA", "method": "LoRA"'))
    with pytest.raises(InputError, match="duplicate name"):
        load(base, adapter)


def test_a_prompt_with_ids_outside_the_vocabulary_is_refused(tmp_path, base):
    InContext(base, torch.tensor([[7, 8]])).save(tmp_path)
    for ids in ([13], [-1], [], [True], ["a"], 3, [[1]], [1] * 17):
        forgery.described(tmp_path, options={"ids": ids})
        with pytest.raises(InputError):
            load(base, tmp_path)


def test_an_adapter_of_the_first_format_is_loaded(adapter, base):
    found = json.loads((adapter / "adapter.json").read_text())
    unknown = set(found) - {field.name for field in fields(Usage)}
    (adapter / "adapter.json").write_text(json.dumps({name: found[name] for name in unknown}))
    forgery.described(adapter, format=1)
    assert load(base, adapter).usage == Usage()


def test_the_usage_of_an_adapter_is_saved_and_loaded(tmp_path, base):
    method = trained("LoRA")
    method.usage = Usage(
        base_name="tiny", prompt="{text}\n", chat=True, labels=[" é"], end=".", command="minillm adapt"
    )
    method.save(tmp_path)
    assert load(base, tmp_path).usage == method.usage
