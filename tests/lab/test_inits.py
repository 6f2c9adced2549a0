"""The starts of soft prompts and prefixes."""

import pytest

from minillm.errors import InputError
from minillm.lab import inits, newtask, study
from minillm.lab.inits import TEXTS, Inits
from minillm.lab.newtask import NewTask
from minillm.lab.study import run_study


def test_other_methods_have_no_starts():
    with pytest.raises(InputError, match="the methods of inits are soft-prompt and prefix, got lora"):
        Inits(methods=("lora",))


@pytest.mark.slow
def test_a_prompt_of_solved_examples_starts_as_few_shot(tmp_path, monkeypatch):
    """Law 9, by the whole experiment."""
    few = {"threads": 1, "train": 40, "test": 8, "minutes": 5.0}
    monkeypatch.setattr(study, "TINY", study.Rows(40, 8, 8, 40))
    for module in (newtask, inits):
        monkeypatch.setattr(module, "SEEDS", 1)
    expected = run_study(NewTask(out=tmp_path / "newtask", methods=("few-shot",), **few))["trials"][0]
    found = run_study(Inits(out=tmp_path / "inits", **few))
    for trial in found["trials"]:
        if trial["settings"]["start"] == "examples":
            assert trial["measured"]["untrained"]["predicted"] == expected["measured"]["predicted"]
    assert {row[0] for row in found["tables"][0]["rows"]} == {"random", "vocabulary", "zero", "gated", *TEXTS}
