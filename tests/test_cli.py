"""The command line: the ladder on a tiny base, one-line errors, help."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from typing import get_type_hints
from unittest.mock import Mock

import pytest
import torch
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, pre_tokenizers

import minillm
from minillm import Decoder, DecoderConfig, Tokenizer, save
from minillm.cli import COMMANDS, main
from minillm.lab.ladder import RUNGS

KEYS = {
    "name", "accuracy", "standard_error", "trainable_parameters", "stored_bytes", "train_seconds", "eval_seconds",
    "tokens_per_second", "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a tiny byte-level model and an easy data set: the last word of a text determines the label."""
    place = tmp_path_factory.mktemp("place")
    byte_names = pre_tokenizers.ByteLevel.alphabet()
    names = [*sorted(byte_names), "es", "<|end|>"]
    pipeline = Pipeline(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[("e", "s")]))
    pipeline.add_special_tokens(["<|end|>"])
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig.tiny(vocabulary=258, context_length=512))
    save(decoder, Tokenizer(pipeline, {"eos": "<|end|>"}), place / "base")
    rows = [f"word {n} {'yes' if n % 2 else 'no'},{n % 2}" for n in range(90)]
    (place / "mine.csv").write_text("words,liked\n" + "\n".join(rows) + "\n")
    (place / "one.csv").write_text("words,liked\n" + "a,1\n" * 90)
    (place / "broken").mkdir()
    for path in (place / "base").iterdir():
        data = path.read_bytes()
        (place / "broken" / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    (place / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    return place


def run(place, *words, **more):
    return subprocess.run(
        [sys.executable, "-m", "minillm", *words], cwd=place, capture_output=True, text=True, timeout=240, **more
    )


LADDER = (
    "ladder", "--base", "base", "--data", "mine.csv", "--text-column", "words", "--label-column", "liked",
    "--prompt", "{text}:", "--labels", "bad,very good", "--train", "40", "--test", "30", "--threads", "1",
)  # fmt: skip


@pytest.mark.slow
def test_the_ladder_runs_all_rungs_and_continues_after_finished_ones(place, command):
    command(*LADDER, "--rungs", "zero-shot", "--out", "out")
    begun = json.loads((place / "out" / "ladder.json").read_text())
    assert [rung["name"] for rung in begun["rungs"]] == ["zero-shot"]

    table = command(*LADDER, "--rungs", ",".join(RUNGS), "--out", "out")
    ladder = json.loads((place / "out" / "ladder.json").read_text())
    assert [rung["name"] for rung in ladder["rungs"]] == list(RUNGS)
    assert ladder["rungs"][0] == begun["rungs"][0], "a finished rung is not run again"
    assert {"base", "train", "test", "seed", "device", "versions"} <= set(ladder)
    assert (ladder["task"], ladder["data"]) == (None, "mine.csv")
    for rung in ladder["rungs"]:
        assert set(rung) >= KEYS
        assert 0 <= rung["accuracy"] <= 1
        assert rung["technique"] in table
    assert (place / "out" / "ladder.png").read_bytes().startswith(b"\x89PNG")
    allowed = (".json", ".png", ".svg", ".safetensors", "")
    assert not [path for path in (place / "out").rglob("*") if path.suffix not in allowed]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("generate", "hello", "--base", "no-such-model"), "no-such-model"),
        (("generate", "hello", "--base", "cut.gguf"), "cut.gguf"),
        (("generate", "hello", "--base", "broken"), "broken"),
        (("generate", "", "--base", "base"), "no tokens"),
        (("generate", "hello", "--base", "base", "--top-p", "2"), "top_p"),
        (("generate", "hello", "--base", "base", "--chat"), "chat template"),
        (
            ("generate", "hello", "--base", "base", "--device", "tpu"),
            "unknown value for --device: 'tpu'; did you mean cpu?",
        ),
        (("generate", "hello", "--base", "base", "--threads", "0"), "threads must be at least 1 and at most"),
        (("generate", "hello", "--base", "base", "--threads", "100000"), "got 100000"),
        (("generate", "hello", "--base", "base", "--temperature", "nan"), "--temperature must be a finite number, got"),
        (("prompt", "--temperature", "nan"), "--temperature must be a finite number, got 'nan'"),
        (("lab", "juggler", "--temperature", "inf"), "--temperature must be a finite number, got 'inf'"),
        (("generate", "hello", "--base", "base", "--top-k", "1.5"), "--top-k must be an integer, got '1.5'"),
        (("generate", "hello", "world", "--base", "base"), "unexpected argument: 'world'"),
        (("generate", "-hello", "--base", "base"), "unknown option: '-hello'"),
        (("generate", "hello", "--base"), "--base needs a value"),
        (("generate", "hello", "--base", "base", "--seed", "9223372036854775808"), "seed must be an integer"),
        (("pretrain", "--task", "word_problems", "--threads", "0"), "threads must be at least 1"),
        (("pretrain", "--task", "word_problems", "--out", "mine.csv"), "mine.csv is a file"),
        (("lab", "juggler", "--threads", "-1"), "threads must be at least 1 and at most"),
        (("check", "--base", "tiny", "--seed", "-1"), "got -1"),
        (("export", "nothing", "--out", "untouched"), "there is no model 'nothing'"),
        ((*LADDER, "--labels", "good,good"), "at least two different non-empty texts"),
        (("pull", "review"), "unknown value for NAME: 'review'; did you mean reviews?"),
        (("lader",), "unknown command: 'lader'; did you mean ladder?"),
        (("export", "tiny", "--out", "untouched"), "save the model in Hugging Face's layout instead"),
        (("swim",), "unknown command: 'swim'; there are: pull, generate"),
        (("generate", "hello", "--model", "base"), "unknown option: '--model'; did you mean --base?"),
        (("generate", "hello", "--bass", "base"), "unknown option: '--bass'; did you mean --base?"),
        (("generate", "hello", "--zz", "base"), "unknown option: '--zz'; there are: --json"),
        (("generate", "hello", "--device", "gpu"), "did you mean cuda?"),
        (("adapt", "--rank", "8"), "unknown option: '--rank'; did you mean --r?"),
        (("adapt", "--lr", "1"), "unknown option: '--lr'; did you mean --learning-rate?"),
        (("adapt", "--bs", "1"), "unknown option: '--bs'; did you mean --batch-size?"),
        (("adapt", "--length", "1"), "unknown option: '--length'; did you mean --virtual-tokens?"),
        (("ladder", "--labels", "good,bad"), "--prompt and --labels need --data"),
        ((*LADDER, "--task", "reviews"), "give either --data or --task, not both"),
        (("adapt", "--rate", "1"), "unknown option: '--rate'; did you mean --learning-rate?"),
        (("adapt", "--method=lorra"), "unknown value for --method: 'lorra'; did you mean lora?"),
        (("adapter",), "a command is missing; there are: inspect, diff"),
        ((*LADDER, "--rungs", "zero-shot,lorra"), "unknown rung: 'lorra'; did you mean lora?"),
        ((*LADDER, "--train", "4000"), "too few for 4000 to train"),
        ((*LADDER, "--data", "one.csv"), "at least 2 classes and fewer than rows, got 1 in"),
        ((*LADDER, "--label-column", "stars"), "no column 'stars'; columns: words, liked"),
        ((*LADDER, "--prompt", "Well?"), "has no {text}"),
        ((*LADDER, "--labels", "bad"), "1 labels are given for the 2 classes"),
        ((*LADDER, "--base", "no-such-model"), "no-such-model"),
        (("ladder", "--seeds", "0"), "seeds must be at least 1, got 0"),
        (("ladder", "--task", "poems"), "unknown value for --task: 'poems'; there are: reviews, word_problems"),
        ((*LADDER, "--threads", "0"), "threads"),
        ((*LADDER, "--seed", "-1"), "seed"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2_and_nothing_is_written(place, words, sentence, monkeypatch, capsys):
    words = (*words, *(("--out", "untouched") if words[0] == "ladder" else ()))
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["minillm", *words])
    with pytest.raises(SystemExit) as end:
        main()
    printed, complaint = capsys.readouterr()
    assert end.value.code == 2
    assert printed == "", "errors are found before anything is printed"
    assert sentence in complaint
    assert len(complaint.strip().splitlines()) == 1, complaint
    assert not (place / "untouched").exists()


def test_wrong_input_gives_no_traceback_in_a_process(place):
    result = run(place, "generate", "hello", "--base", "no-such-model")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("minillm: there is no model 'no-such-model'")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("The operator 'aten::lu' is not currently implemented for the MPS device. If you\nwant"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with"),
        TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."),
    ],
)
def test_an_operation_that_an_accelerator_does_not_have_is_named_with_the_way_out(place, monkeypatch, capsys, error):
    def fail(*arguments):
        raise error

    monkeypatch.chdir(place)
    monkeypatch.setattr("minillm.ops.norm.rms_norm", fail)
    monkeypatch.setattr("sys.argv", ["minillm", "generate", "abc", "--base", "base"])
    with pytest.raises(SystemExit, match="2"):
        main()
    reason = str(error).partition("\n")[0]
    expected = (
        f"minillm: the accelerator failed in rms_norm (operations.py): {reason}; --device cpu computes without it"
    )
    assert capsys.readouterr().err.splitlines() == [expected]


def test_other_errors_of_torch_are_not_hidden(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("minillm.ops.norm.rms_norm", lambda *arguments: torch.ones(2) @ torch.ones(3))
    monkeypatch.setattr("sys.argv", ["minillm", "generate", "abc", "--base", "base"])
    with pytest.raises(RuntimeError, match="size"):
        main()


def test_generate_continues_the_prompt_and_is_reproducible_by_its_seed(place, command):
    words = ("generate", "abc", "--base", "base", "--max-new-tokens", "20", "--temperature", "1.5", "--seed", "3")
    first = command(*words)
    assert first == command(*words)
    assert first.startswith("abc")
    assert first != command(*words[:-1], "4")


def test_a_console_that_is_not_utf8_shows_escapes(place, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdout", console)
    monkeypatch.setattr("sys.argv", ["minillm", "generate", "Στέé", "--base", "base", "--max-new-tokens", "1"])
    main()
    assert console.buffer.getvalue().startswith(b"\\u03a3\\u03c4\\u03ad\xe9")


@pytest.mark.parametrize("words", [["--help"], ["swim"]])
def test_a_closed_pipe_ends_the_command_without_a_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    program = "import os; from minillm.cli import main; os.dup2(1, 2) if {} else None; main()"
    done = subprocess.run(
        [sys.executable, "-c", program.format(words == ["swim"]), *words], stdout=writer, stderr=subprocess.PIPE,
        timeout=60,
    )  # fmt: skip
    os.close(writer)
    # A message is not the result of a command: on a closed standard error it is lost, and the exit code stays.
    assert (done.returncode, done.stderr) == (141 if words == ["--help"] else 2, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_an_output_that_cannot_be_written_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minillm", "--help"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (2, b"minillm: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        (OSError(28, "No space left on device", "out/a"), "out/a: No space left on device"),
        (PermissionError(13, "Permission denied", "out"), "out: Permission denied"),
        (MemoryError(), "not enough memory; use a smaller model, batch or text"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "not enough memory for 7.28 TiB; "),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"), "not enough memory for 20.00 GiB; "),
        (RuntimeError("MPS backend out of memory (Tried to allocate 1.5 GB on"), "not enough memory for 1.5 GB; "),
    ],
    ids=repr,
)
def test_what_the_system_refuses_is_one_sentence(problem, sentence, monkeypatch, capsys):
    monkeypatch.setattr("minillm.cli._run", Mock(side_effect=problem))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"minillm: {sentence}")


def test_torch_s_own_error_for_too_much_memory_is_one_sentence_and_other_errors_are_not_hidden(monkeypatch, capsys):
    monkeypatch.setattr("minillm.cli._run", lambda words: torch.empty(1 << 50))
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(f"minillm: not enough memory for {1 << 52} bytes; ")
    monkeypatch.setattr("minillm.cli._run", Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main()


def test_own_data_is_divided_and_reported_before_it_is_used(place, monkeypatch, capsys):
    words = ("adapt", "--base", "base", "--text-column", "words", "--label-column", "liked", "--method", "features")
    rows = [f"word {n} {'yes' if n % 2 else 'no'};{n % 2}" for n in range(90)]
    (place / "excel.csv").write_text("words;liked\n" + "\n".join(rows), "cp1252")
    monkeypatch.chdir(place)
    monkeypatch.setattr(
        "sys.argv", ["minillm", *words, "--data", "excel.csv", "--labels", "1=good,0=bad", "--out", "own"]
    )
    main()
    printed, report = capsys.readouterr()
    lines = report.splitlines()
    assert lines[0] == "excel.csv: recognised delimiter ';'; --delimiter and --encoding overrule"
    assert lines[1] == "excel: 74 rows for training, 8 for validation, 8 for test"
    assert [line.split() for line in lines[4:6]] == [
        ["'0'", "'bad'", *["37", "4", "4"]],
        ["'1'", "'good'", *["37", "4", "4"]],
    ]
    assert "majority_baseline: 0.5\n" in printed
    written = json.loads((place / "own" / "adapt.json").read_text("utf-8"))
    assert (written["ladder"]["train"], written["ladder"]["test"]) == (74, 8)
    assert (written["accuracy"] == 1) == ("warning: " not in report)


ADAPT = ("adapt", *LADDER[1:])


def files(place):
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in str(path)}


def test_a_run_file_reruns_the_same_run(place, command):
    first = json.loads(command(*ADAPT, "--method", "lora", "--epochs", "1", "--out", "first", "--json"))
    assert json.loads((place / "first" / "run.json").read_text())["epochs"] == 1
    again = json.loads(command("adapt", "--config", "first/run.json", "--out", "again", "--json"))
    assert (first["chosen"], first["accuracy"]) == (again["chosen"], again["accuracy"])
    one, other = (place / name / "adapter.safetensors" for name in ("first", "again"))
    assert one.read_bytes() == other.read_bytes()
    assert json.loads(command("adapt", "--config", "first/run.json", "--json")) == first, "it is complete"


@pytest.mark.parametrize("words", [ADAPT, LADDER], ids=lambda words: words[0])
def test_a_dry_run_checks_and_describes_and_writes_nothing(place, command, words, monkeypatch, capsys):
    before = files(place)
    rungs = ("--rungs", "zero-shot,lora") if words == LADDER else ()
    planned = json.loads(command(*words, *rungs, "--out", "planned", "--dry-run", "--json"))
    # 40 rows in batches of 16, two epochs; A and B of query (24 x 24) and value (12 x 24) with rank 8 in two blocks.
    lora = {"trainable_parameters": 2 * 8 * (24 + 24 + 12 + 24), "steps": 6}
    assert (planned["lora"] if rungs else {name: planned[name] for name in lora}) == lora
    assert planned["out"] == "planned"
    shown = command(*words, *rungs, "--out", "planned", "--dry-run")
    assert "\nout: planned\n" in shown
    assert shown.endswith("dry run: nothing was trained or written\n")
    with pytest.raises(SystemExit, match="2"):
        command(*words, "--data", "one.csv", "--out", "planned", "--dry-run")
    monkeypatch.setenv("MINILLM_HOME", str(place / "nowhere"))
    with pytest.raises(SystemExit, match="2"):
        command(words[0], "--base", "tiny", "--out", "planned", "--dry-run")
    assert "reviews is not in the cache, and a dry run downloads nothing; `minillm pull" in capsys.readouterr().err
    assert files(place) == before


def test_a_dry_run_keeps_the_results_that_it_would_overwrite(place, command):
    whole = (*ADAPT, "--method", "output", "--out", "kept")
    command(*whole)
    (place / "kept" / "checkpoint.safetensors").write_bytes(b"")
    before = files(place)
    assert json.loads(command(*whole, "--dry-run", "--json"))["steps"] == 0, "it is complete"
    assert json.loads(command(*whole, "--dry-run", "--json", "--overwrite"))["steps"] > 0
    with pytest.raises(SystemExit, match="2"):
        command(*whole, "--dry-run", "--seed", "1")
    assert files(place) == before


def test_a_dry_run_of_pretraining(place, command):
    before, words = files(place), ("--task", "word_problems", "--preset", "nano", "--steps", "9", "--out", "planned")
    planned = json.loads(command("pretrain", *words, "--dry-run", "--json"))
    assert (planned["steps"], planned["validation_rows"]) == (9, 64)
    assert planned["rows"] > 9
    assert files(place) == before


def test_quiet_prints_results_only_and_verbose_what_is_loaded(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for level in ("--quiet", "--verbose"):
        words = [*ADAPT, "--method", "output", "--epochs", "1", "--out", level[2:], level]
        monkeypatch.setattr("sys.argv", ["minillm", *words])
        main()
        printed, notes = capsys.readouterr()
        assert "accuracy: " in printed
        if level == "--quiet":
            assert notes == ""
    assert re.search(r"base: [\d,]+ parameters, loaded in \S+ s\n", notes)
    assert re.search(r"\nfloat32: |\nbfloat16: ", notes)
    assert re.search(r"\noutput: 3 steps\n", notes)
    assert re.search(r"\noutput: 3 steps in \S+ s\n", notes)


def test_a_text_is_read_from_standard_input(place, command, monkeypatch):
    words = ("--base", "base", "--max-new-tokens", "3")
    expected = command("generate", "abc\nd", *words)
    for given in (b"abc\nd\n", b"abc\r\nd\r\n", b"\xef\xbb\xbfabc\nd"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert command("generate", "-", *words) == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc\nd")))
    found = json.loads(command("generate", "-", *words, "--json"))
    assert (found["prompt"], found["prompt"] + found["generated"]) == ("abc\nd", expected[:-1])


def test_standard_input_that_is_not_utf8_is_one_sentence(place, command, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(SystemExit, match="2"):
        command("generate", "-", "--base", "base")
    assert capsys.readouterr().err.startswith("minillm: standard input cannot be read as UTF-8 (")


def test_help_names_every_command(capsys, monkeypatch):
    for words, commands in (([], COMMANDS), (["adapter"], COMMANDS["adapter"][0]), (["lab"], COMMANDS["lab"][0])):
        monkeypatch.setattr("sys.argv", ["minillm", *words, "--help"])
        main()
        printed = capsys.readouterr().out
        assert all(f"\n  {command} " in printed for command in commands)
        assert f"usage: minillm {' '.join([*words, '[-h]'])} COMMAND" in printed


def _commands(commands, words=()):
    for name, (found, _) in commands.items():
        yield from _commands(found, (*words, name)) if isinstance(found, dict) else [((*words, name), found)]


@pytest.mark.parametrize(("words", "place"), [*_commands(COMMANDS)], ids=str)
def test_every_command_has_an_example_and_every_option_has_help(words, place, capsys, monkeypatch):
    module, _, name = place.partition(":")
    command = getattr(import_module(f"minillm.{module}"), name)
    monkeypatch.setattr("sys.argv", ["minillm", *words, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert command.__doc__.splitlines()[0] in printed
    assert f"Example: minillm {' '.join(words)} " in printed
    assert "None" not in printed
    for name, hint in get_type_hints(command, include_extras=True).items():
        flag = {"length": "--virtual-tokens"}.get(name, f"--{name.replace('_', '-')}")
        start = name.upper() if "Positional" in str(hint) else flag
        assert re.search(rf" {start}( [A-Z,]+| {{[^}}]+}})? (?!-)[A-Za-z]+ [A-Za-z]", printed), f"{flag} has no help"


def test_options_are_in_groups(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["minillm", "adapt", "--help"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    groups = [printed.index(f" {name} options ") for name in ("Adapt", "Method", "Training", "Data", "Run")]
    options = ("--out DIR", "--dropout FLOAT", "--learning-rate FLOAT", "--base MODEL", "--seed INT")
    places = [printed.index(option) for option in options]
    assert sorted(groups + places) == [place for pair in zip(groups, places, strict=True) for place in pair]


def test_help_loads_no_torch():
    program = "import sys; from minillm.cli import main; main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(command, place):
    def completed(*words):
        typed = f"COMP_WORDS=(minillm {shlex.join(words)}); COMP_CWORD={len(words)}; _minillm; echo ${{COMPREPLY[*]}}"
        return subprocess.run(["bash", "-c", f"{script}\n{typed}"], capture_output=True, text=True).stdout.split()

    script = command("--completion")
    assert completed("ad") == ["adapt", "adapter"]
    assert completed("adapter", "in") == ["inspect"]
    assert completed("adapt", "--method", "lora", "--virt") == ["--virtual-tokens"]
    assert "--shots" in completed("lab", "juggler", "")


def test_the_version_is_printed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["minillm", "--version"])
    main()
    assert capsys.readouterr().out == f"minillm {minillm.__version__}\n"


def test_torchrun_starts_only_commands_that_divide_their_work(place, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("sys.argv", ["minillm", "generate", "abc", "--base", "base"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "minillm generate is one process" in capsys.readouterr().err
