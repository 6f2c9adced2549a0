"""The model card of an adapter is valid on the hub, and another README.md is left alone."""

import re

import pytest
from huggingface_hub import ModelCard

from minillm.adapt.card import card, write_card
from minillm.adapt.description import Usage, describe
from tests.adapters.adapters import trained

METHOD = trained("LoRA")


def _card(directory, **usage):
    METHOD.usage = Usage(**usage)
    METHOD.save(directory)
    return (directory / "README.md").read_text()


@pytest.mark.parametrize(
    ("base", "on_the_hub"),
    [
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("hf:ORG/NAME", "ORG/NAME"),
        ("./my model", None), (None, None),
    ],
)  # fmt: skip
def test_the_metadata_of_a_card_is_that_of_the_hub(tmp_path, base, on_the_hub):
    found = ModelCard(_card(tmp_path, base_name=base, labels=[" a"])).data.to_dict()
    assert found.get("base_model") == on_the_hub
    assert (found["library_name"], found["pipeline_tag"], found["tags"]) == (
        "minillm", "text-classification", ["adapter", "LoRA"],
    )  # fmt: skip


def test_a_card_describes_the_training_the_use_and_the_measurements(tmp_path):
    text = _card(tmp_path / "my.adapter", base_name="tiny", prompt="Q: {text}\nA:", command="minillm adapt --base tiny")
    assert "```bash\nminillm adapt --base tiny\n```" in text
    assert "```text\nQ: {text}\nA:\n```" in text
    assert 'minillm generate "a text" --base tiny --adapter my.adapter' in text
    assert "Measurements" not in text
    write_card(tmp_path / "my.adapter", describe(tmp_path / "my.adapter"), {"exact_match": 0.25, "rows": 1234})
    measured = r"Measurements.*\| exact match \| 0.25 \|\n\| rows \| 1,234 \|"
    assert re.search(measured, (tmp_path / "my.adapter/README.md").read_text(), re.S)
    assert "TextClassifier.load" in card(describe(_saved_labels(tmp_path)), "x", {})


def _saved_labels(directory):
    _card(directory, labels=[" a", " b"], prompt="{text}")
    return directory


def test_a_readme_that_is_no_card_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    assert _card(tmp_path) == "# My project\n"
