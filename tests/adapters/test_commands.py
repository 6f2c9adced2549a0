"""The commands on adapters: adapt, inspect, verify, generate, merge, extract, resize, PEFT."""

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


OPTIONS = {
    **dict.fromkeys(("lora", "dora", "pissa"), ("--r", "2")), "soft-prompt": (), "prefix": (), "features": (),
    "output": (), "last-blocks": ("--layers", "1"), "full": (),
}  # fmt: skip


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_trains_and_its_adapter_loads(method, command, place):  # noqa: F811
    rate = () if method == "features" else ("--learning-rate", "0.01")
    printed = command("adapt", "--method", method, *TASK, *OPTIONS[method], *rate, "--out", method)
    figures = json.loads((place / method / "adapt.json").read_text())
    assert f"accuracy: {figures['accuracy']:.4g}\n" in printed
    decoder, _ = minillm.load(place / "base")
    assert adapt.load(decoder, place / method).state().keys()
    assert "OK: " in command("adapter", "verify", method, "--base", "base")
    assert figures["method"] == method


def test_free_answers_are_learned_and_measured(command, place):  # noqa: F811
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
    words = ("generate", "3?\n", "--base", "base", "--max-new-tokens", "5")
    assert command(*words) != command(*words, "--adapter", "answers"), "the adapter changes the output"


def test_a_lora_is_inspected_compared_resized_merged_and_converted(command, place):  # noqa: F811
    command("adapt", *TASK, "--r", "3", "--learning-rate", "0.02", "--out", "one")
    command("adapt", *TASK, "--r", "3", "--learning-rate", "0.02", "--seed", "1", "--out", "two")
    assert '"r": 3' in command("adapter", "inspect", "one")
    assert "|difference|" in command("adapter", "diff", "one", "two", "--base", "base")
    assert "relative error" in command("adapter", "resize", "one", "--out", "small", "--base", "base", "--r", "1")
    assert "float32" in command("adapter", "merge", "one", "--out", "merged", "--base", "base")
    assert "relative error" in command("adapter", "extract", "merged", "--out", "again", "--base", "base", "--r", "3")
    command("adapter", "export-peft", "one", "--out", "peft", "--base", "base")
    command("adapter", "import-peft", "peft", "--out", "back", "--base", "base")
    command("export", "base", "--adapter", "one", "--out", "one.gguf")
    assert "saved: lora.gguf" in command("adapter", "export-gguf", "one", "--out", "lora.gguf", "--base", "base")

    decoder, _ = minillm.load(place / "base")
    logits = {name: adapt.load(decoder, place / name)(IDS) for name in ("one", "small", "again", "back")}
    assert torch.equal(logits["back"], logits["one"])
    assert torch.allclose(logits["again"], logits["one"], atol=1e-4)
    assert not torch.allclose(logits["small"], logits["one"], atol=1e-4)
    for written in ("merged", "one.gguf"):
        assert torch.allclose(minillm.load(place / written)[0](IDS), logits["one"], atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x10" + bytes(7) + b"{}", None])
@pytest.mark.parametrize("action", ["inspect", "verify"])
def test_a_broken_or_missing_tensor_file_is_reported(action, content, place, monkeypatch, capsys):  # noqa: F811
    adapter = place / "broken.adapter"
    base, _ = minillm.load(place / "base")
    adapt.LoRA(base, r=1).save(adapter)
    if content is None:
        (adapter / "adapter.safetensors").unlink()
    else:
        (adapter / "adapter.safetensors").write_bytes(content)
    base = ("--base", str(place / "base")) if action == "verify" else ()
    monkeypatch.setattr("sys.argv", ["minillm", "adapter", action, str(adapter), *base])
    with pytest.raises(SystemExit) as end:
        main()
    printed, complaint = capsys.readouterr()
    assert (end.value.code, printed) == (2, "")
    assert "adapter.safetensors cannot be read" in complaint


@pytest.mark.parametrize(
    "more", [("--r", "2"), ("--method", "last-blocks", "--layers", "1"), ("--epochs", "1")], ids=" ".join
)
def test_an_interrupt_saves_what_was_trained_so_far(more, command, place, monkeypatch, capsys):  # noqa: F811
    """A real signal in the third step; the measurements of an earlier adapter in the directory are deleted."""
    out, step = place / "cut", Loop.step
    if "--epochs" in more:
        command("adapt", *TASK, "--r", "2", "--out", "cut")

    def interrupted(loop, batches):
        if len(loop.history.losses) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(loop, batches)

    monkeypatch.setattr(Loop, "step", interrupted)
    with pytest.raises(SystemExit) as end:
        command("adapt", *TASK, *more, "--batch-size", "8", "--out", "cut")
    assert end.value.code == 130
    assert "interrupted: saved what was trained so far: cut" in capsys.readouterr().err
    files = {"README.md", "adapter.json", "adapter.safetensors", "classifier.json"}
    assert {path.name for path in out.iterdir()} == files
    decoder, _ = minillm.load(place / "base")
    assert not torch.equal(adapt.load(decoder, out)(IDS), decoder(IDS)), "two steps were trained"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("adapt", "--method", "lorra", *TASK, "--out", "no"),
            "unknown value for --method: 'lorra'; did you mean lora?",
        ),
        (
            ("adapt", *TASK, "--targets", "c_attn", "--out", "no"),
            "'c_attn' matches nothing in this decoder, which has query",
        ),
        (("adapt", *TASK, "--r", "99", "--out", "no"), "must be at most"),
        (("adapt", *TASK, "--epochs", "0", "--out", "no"), "epochs must be at least 1, got 0"),
        (("adapt", *TASK, "--learning-rate", "0", "--out", "no"), "learning_rate"),
        (("adapt", *TASK, "--out", "mine.csv/no"), "mine.csv is a file"),
        (
            ("adapter", "import-peft", "nowhere", "--out", "no", "--base", "base"),
            "adapter_config.json cannot be read",
        ),
        (("adapter", "inspect", "base"), "is not an adapter: it has no file adapter.json"),
        (("adapter", "verify", "nowhere", "--base", "base"), "is not an adapter: there is no such directory"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, sentence, place, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["minillm", *words])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr().err
    assert end.value.code == 2
    # Before it, the overview of the data may stand.
    assert sentence in printed.splitlines()[-1]
    assert printed.count("minillm: ") == 1, printed
    assert not (place / "no").exists()
