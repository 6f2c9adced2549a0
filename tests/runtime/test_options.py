"""The command line and files of options: values, texts that begin with dashes, and what is refused."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from minillm import InputError
from minillm.cli import COMMANDS
from minillm.lab.adapt import Adapt
from minillm.runtime.option import options_of
from minillm.runtime.options import NO_SETTINGS, Positional, RunOptions, Text, parse


@dataclass(kw_only=True)
class Say(RunOptions):
    """A command.

    Example: minillm say hello
    """

    word: Positional[str]
    """The text to say."""
    prompt: Text = ""
    """The text before it."""


@pytest.mark.parametrize(
    ("words", "word", "prompt"),
    [
        (["hi", "--prompt=--text"], "hi", "--text"),
        (["--prompt=-", "hi"], "hi", "-"),
        (["--prompt", "a", "--", "--prompt"], "--prompt", "a"),
        (["--", "-hello"], "-hello", ""),
    ],
)
def test_a_value_after_an_equals_sign_and_a_text_after_two_dashes_may_begin_with_dashes(words, word, prompt):
    said = parse(Say, "minillm say", words)
    assert (said.word, said.prompt) == (word, prompt)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hi", "--prompt", "--text"], "--prompt needs a value"),
        (["--", "-a", "-b"], "unexpected argument: '-b'"),
        (["-hello"], "unknown option: '-hello'"),
    ],
)
def test_otherwise_dashes_begin_an_option(words, message):
    with pytest.raises(InputError, match=message):
        parse(Say, "minillm say", words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "prefix", "--targets", "query"], "prefix has no option --targets; its options: --virtual-tokens"),
        (["--virtual-tokens", "5"], "lora has no option --virtual-tokens; its options: --r, --alpha"),
        (["--method", "full", "--layers", "3"], "full has no option --layers; its options: --epochs"),
        (["--method", "features", "--epochs", "3"], "features has no option --epochs; its options: none"),
    ],
)
def test_an_option_that_the_method_does_not_have_is_refused(words, message):
    with pytest.raises(InputError, match=message):
        parse(Adapt, "minillm adapt", ["--out", "my.adapter", *words])


def test_the_methods_own_options_are_taken():
    for words in (["--r", "4", "--targets", "up"], ["--method", "prefix", "--virtual-tokens", "3", "--epochs", "1"]):
        parse(Adapt, "minillm adapt", ["--out", "my.adapter", *words])


def commands(found=COMMANDS):
    for name, (one, _) in found.items():
        if isinstance(one, dict):
            yield from commands(one)
        else:
            module, _, command = one.partition(":")
            if issubclass(command := getattr(import_module(f"minillm.{module}"), command), RunOptions):
                yield pytest.param(name, command, id=name)


VALUES = {bool: [True, False], int: [0, -3], float: [0.5, 2.0], str: ["", "a\nb \\n — é"], Path: [Path("a b/c")]}


@pytest.mark.parametrize(("name", "command"), [*commands()])
def test_every_option_of_every_command_is_the_same_after_a_file(name, command):
    for option in options_of(command).values():
        values = list(option.choices) or VALUES.get(option.kind) or [(), tuple(map(option.item, "ab"))]
        for value in [*values, *([None] if option.optional else [])]:
            found = option.from_json(json.loads(json.dumps(value, default=str)))
            assert (found, type(found)) == (value, type(value)), option.flag


NEEDED = {"adapt": ["--out", "a"], "generate": ["hello"], "pretrain": ["--task", "reviews-text"]}
NEEDED |= {"predict": ["my.adapter"], "attention": ["hello"]}
MORE = ["--seed", "3", "--threads", "1", "--device", "cpu"]


@pytest.mark.parametrize(("name", "command"), [*commands()])
def test_a_run_file_gives_the_same_options_and_the_command_line_takes_precedence(name, command, tmp_path):
    options = parse(command, f"minillm {name}", [*NEEDED.get(name, []), *MORE, "--json"])
    (path := tmp_path / "run.json").write_text(options.run_file())
    found = json.loads(options.run_file())
    assert found["command"] == name
    assert not {"json", "quiet", "verbose", "config", "overwrite", "dry_run"} & set(found)
    again = parse(command, f"minillm {name}", ["--config", str(path)])
    assert {**vars(again), "_command_line": 0} == {**vars(options), "json": False, "config": path, "_command_line": 0}
    other = parse(command, f"minillm {name}", [*NEEDED.get(name, []), "--seed", "4", "--config", str(path)])
    assert (other.seed, other.threads) == (4, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sed": 1}, "unknown option: 'sed'; did you mean seed?"),
        ({"lr": 1}, "unknown option: 'lr'; did you mean learning_rate?"),
        ({"length": 3}, "unknown option: 'length'; did you mean virtual_tokens?"),
        ({"seed": "1"}, "seed must be an integer, got '1'"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"overwrite": 1}, "overwrite must be true or false, got 1"),
        ({"targets": "query"}, "targets must be a list of texts, got 'query'"),
        ({"targets": [1]}, r"targets must be a list of texts, got \[1\]"),
        ({"alpha": None}, "alpha must be a finite number, got None"),
        ({"data": 3}, "data must be a path, got 3"),
        ({"method": "lorra"}, "unknown value for method: 'lorra'; did you mean lora?"),
        ({"seed": -1}, r"seed must be an integer in"),
        ({"command": "ladder"}, "these are options of the command ladder, not of adapt"),
        ([], "must be a JSON object"),
    ],
)
def test_a_wrong_file_of_options_is_one_sentence(content, message, tmp_path):
    (path := tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        parse(Adapt, "minillm adapt", ["--out", "my.adapter", "--config", str(path)])
    assert str(path) in str(error.value) or content == {"seed": -1}


def test_options_that_are_missing_or_contradict_each_other_are_named():
    with pytest.raises(InputError, match=r"^--out is missing; `minillm adapt --help` lists the options"):
        parse(Adapt, "minillm adapt", [])
    with pytest.raises(InputError, match="give either --quiet or --verbose, not both"):
        parse(Say, "minillm say", ["a", "--quiet", "--verbose"]).printing()
    with pytest.raises(InputError, match="--quiet takes no value, got 'yes'"):
        parse(Say, "minillm say", ["a", "--quiet=yes"])
    assert {"json", "quiet", "verbose"} < set(NO_SETTINGS)
