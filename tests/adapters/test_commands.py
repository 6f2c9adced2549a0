"""The commands on adapters: adapt, inspect, verify, generate, merge, extract, resize, PEFT."""

import json
import signal

import pytest
import torch
from torch import nn

import minillm
from minillm import adapt
from minillm.cli import main
from minillm.training.checkpoints import CHECKPOINT, METRICS
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
    assert f"accuracy: {figures['accuracy']:.3g}\n" in printed
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
    """A real signal in the third step; the same command continues, and its adapter is that of a whole run."""
    out, step = place / "cut", Loop.step
    whole = ("adapt", *TASK, *more, "--batch-size", "8", "--out", "whole", "--overwrite")
    overwrite = ("--overwrite",) if out.exists() else ()

    def interrupted(loop, batches):
        if loop.done == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(loop, batches)

    monkeypatch.setattr(Loop, "step", interrupted)
    with pytest.raises(SystemExit) as end:
        command("adapt", *TASK, *more, "--batch-size", "8", "--out", "cut", *overwrite)
    assert end.value.code == 130
    printed = capsys.readouterr().err
    assert "saved what was trained so far: cut\n" in printed
    assert "minillm: interrupted at step 3 of " in printed
    assert printed.endswith("; the same command continues from there\n")
    files = {"README.md", "adapt.json", "adapter.json", "adapter.safetensors", "classifier.json", METRICS, "run.json"}
    assert {path.name for path in out.iterdir()} == {*files, CHECKPOINT}
    decoder, _ = minillm.load(place / "base")
    assert not torch.equal(adapt.load(decoder, out)(IDS), decoder(IDS)), "three steps were trained"
    monkeypatch.undo()
    command("adapt", *TASK, *more, "--batch-size", "8", "--out", "cut")
    command(*whole)
    assert {path.name for path in out.iterdir()} == files
    assert (out / "adapter.safetensors").read_bytes() == (place / "whole" / "adapter.safetensors").read_bytes()
    one, two = (json.loads((path / "adapt.json").read_text()) for path in (out, place / "whole"))
    assert one["chosen"] == two["chosen"]


def test_a_finished_run_is_reused_and_a_directory_with_another_is_refused(command, place, capsys):  # noqa: F811
    words = ("adapt", *TASK, "--r", "2", "--epochs", "1", "--out", "mine")
    printed = command(*words)
    written = {path: path.read_bytes() for path in (place / "mine").iterdir()}
    assert command(*words) == printed
    for more, sentence in (
        (("--r", "3"), "mine holds a run with r 2, and this one has 3; give another --out, or start over with"),
        (("--method", "dora"), "mine holds a run with method 'lora', and this one has 'dora'"),
        (("--train", "41"), "mine holds a run with train 40, and this one has 41"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            command(*words, *more)
        assert sentence in capsys.readouterr().err
    (place / "mine" / "adapt.json").unlink()
    with pytest.raises(SystemExit):
        command(*words)
    assert "adapter.json exists; give another --out, or replace it with --overwrite" in capsys.readouterr().err
    del written[place / "mine" / "adapt.json"]
    assert all(path.read_bytes() == content for path, content in written.items())
    command(*words, "--r", "3", "--overwrite")
    assert '"r": 3' in command("adapter", "inspect", "mine")


def test_no_command_replaces_a_result_unless_it_is_told_to(command, place, capsys):  # noqa: F811
    decoder, tokenizer = minillm.load(place / "base")
    method = adapt.LoRA(decoder, r=2)
    for parameter in method.trainable().values():
        nn.init.normal_(parameter)
    method.save(place / "small.adapter", tokenizer=tokenizer)
    for words in (
        ("adapter", "merge", "small.adapter", "--base", "base"),
        ("adapter", "resize", "small.adapter", "--base", "base", "--r", "1"),
        ("adapter", "export-peft", "small.adapter", "--base", "base"),
        ("adapter", "export-gguf", "small.adapter", "--base", "base"),
        ("export", "base", "--adapter", "small.adapter"),
    ):
        out = place / f"{words[1]}.out"
        if "gguf" in words[1] or words[0] == "export":
            out.write_text("mine")
        else:
            out.mkdir()
            (out / "mine.txt").write_text("mine")
        with pytest.raises(SystemExit) as end:
            command(*words, "--out", out.name)
        assert end.value.code == 2
        assert f"{out.name} exists; give another --out, or replace it with --overwrite" in capsys.readouterr().err
        assert [path.read_text() for path in ([out] if out.is_file() else out.iterdir())] == ["mine"]
        command(*words, "--out", out.name, "--overwrite")


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
