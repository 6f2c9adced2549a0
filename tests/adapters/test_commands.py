"""An adapter's life by the commands: adapted, looked at, used, merged, shrunk, given to peft and taken back."""

import json
import os
import signal

import pytest
import torch

import minillm
from minillm import adapt
from minillm.cli import main
from minillm.training.loop import Loop
from tests.test_cli import place  # noqa: F401, a fixture

TASK = (
    "--data", "mine.csv", "--text-column", "words", "--label-column", "liked", "--prompt", "{text}:",
    "--labels", "bad,good", "--train", "40", "--test", "30", "--base", "base", "--threads", "1",
)  # fmt: skip
IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])


@pytest.mark.parametrize(
    "method", ["lora", "dora", "pissa", "soft-prompt", "prefix", "features", "output", "last-blocks", "full"]
)
def test_every_method_is_adapted_and_loads_onto_its_base(method, command, place):  # noqa: F811
    printed = command(
        "adapt", "--method", method, *TASK, "--r", "2", "--layers", "1", "--learning-rate", "0.01", "--out", method
    )
    figures = json.loads((place / method / "adapt.json").read_text())
    assert f"accuracy: {figures['accuracy']}" in printed
    decoder, _ = minillm.load(place / "base")
    assert adapt.load(decoder, place / method).state().keys()
    assert "whole" in command("adapter", "verify", method, "--base", "base")
    assert figures["method"] == method


def test_free_answers_are_learnt_and_measured(command, place):  # noqa: F811
    rows = [json.dumps({"asked": f"{n}?", "said": "yes" if n % 2 else "no"}) for n in range(60)]
    (place / "free.jsonl").write_text("\n".join(rows))
    free = ("adapt", "--data", "free.jsonl", "--prompt-column", "asked", "--base", "base", "--threads", "1")
    with pytest.raises(SystemExit):
        command(*free, "--out", "none")
    assert not (place / "none").exists()
    sizes = ("--train", "30", "--test", "20", "--epochs", "6", "--learning-rate", "0.02", "--method", "full")
    command(*free, "--answer-column", "said", *sizes, "--out", "answers")
    figures = json.loads((place / "answers" / "adapt.json").read_text())
    assert figures["losses"][-1] < figures["losses"][0]
    assert figures["validation"][-1] == pytest.approx(figures["nats_per_token"], rel=0.2)
    assert 0 <= figures["exact_match"] <= 1
    words = ("generate", "3?\n", "--model", "base", "--max-new-tokens", "5")
    assert command(*words) != command(*words, "--adapter", "answers"), "an adapter speaks"


def test_a_lora_is_inspected_compared_resized_merged_and_passed_to_peft_and_back(command, place):  # noqa: F811
    command("adapt", *TASK, "--r", "3", "--learning-rate", "0.02", "--out", "one")
    command("adapt", *TASK, "--r", "3", "--learning-rate", "0.02", "--seed", "1", "--out", "two")
    assert '"r": 3' in command("adapter", "inspect", "one")
    assert "|difference|" in command("adapter", "diff", "one", "two", "--base", "base")
    assert "left out" in command("adapter", "resize", "one", "small", "--base", "base", "--r", "1")
    assert "float32" in command("adapter", "merge", "one", "merged", "--base", "base")
    assert "left out" in command("adapter", "extract", "merged", "again", "--base", "base", "--r", "3")
    command("adapter", "export-peft", "one", "peft", "--base", "base")
    command("adapter", "import-peft", "peft", "back", "--base", "base")
    command("export", "base", "--adapter", "one", "--gguf", "one.gguf")

    decoder, _ = minillm.load(place / "base")
    logits = {name: adapt.load(decoder, place / name)(IDS) for name in ("one", "small", "again", "back")}
    assert torch.equal(logits["back"], logits["one"])
    assert torch.allclose(logits["again"], logits["one"], atol=1e-4)
    assert not torch.allclose(logits["small"], logits["one"], atol=1e-4)
    for written in ("merged", "one.gguf"):
        assert torch.allclose(minillm.load(place / written)[0](IDS), logits["one"], atol=1e-4)


@pytest.mark.parametrize(
    "more", [("--method", "lora"), ("--method", "last-blocks", "--layers", "1"), ("--epochs", "1")], ids=" ".join
)
def test_an_interrupt_keeps_the_adapter_as_far_as_it_is_trained(more, command, place, monkeypatch, capsys):  # noqa: F811
    """A real signal in the third step; the figures of the adapter that stood there before are not taken for its own."""
    out, step = place / "cut", Loop.step
    if "--epochs" in more:
        command("adapt", *TASK, "--r", "2", "--out", "cut")

    def interrupted(loop, batches):
        if len(loop.history.losses) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(loop, batches)

    monkeypatch.setattr(Loop, "step", interrupted)
    with pytest.raises(SystemExit) as end:
        command("adapt", *TASK, *more, "--r", "2", "--batch-size", "8", "--out", "cut")
    assert end.value.code == 130
    assert "the adapter is saved as far as it is trained: cut" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["adapter.json", "adapter.safetensors", "classifier.json"]
    decoder, _ = minillm.load(place / "base")
    assert not torch.equal(adapt.load(decoder, out)(IDS), decoder(IDS)), "it has learned something"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("adapt", "--method", "lorra", *TASK, "--out", "no"),
            "there is no method 'lorra'; there are: features, soft-prompt",
        ),
        (
            ("adapt", *TASK, "--targets", "q_proj", "--out", "no"),
            "'q_proj' matches nothing in this decoder; it has: query",
        ),
        (("adapt", *TASK, "--r", "99", "--out", "no"), "a rank of 99 does not fit"),
        (("adapt", *TASK, "--epochs", "0", "--out", "no"), "epochs must be at least 1, got 0"),
        (("adapt", *TASK, "--learning-rate", "0", "--out", "no"), "learning_rate"),
        (("adapt", *TASK, "--out", "mine.csv/no"), "mine.csv is a file"),
        (("adapter", "import-peft", "nowhere", "no", "--base", "base"), "adapter_config.json cannot be read"),
        (("adapter", "inspect", "base"), "is no adapter"),
        (("adapter", "verify", "nowhere", "--base", "base"), "is no adapter"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, sentence, place, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["minillm", *words])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence in printed
    assert len(printed.strip().splitlines()) == 1, printed
    assert not (place / "no").exists()
