"""The command line: values and texts that begin with dashes, and options that a method does not have."""

from dataclasses import dataclass

import pytest

from minillm import InputError
from minillm.lab.adapt import Adapt
from minillm.runtime.options import Positional, RunOptions, Text, parse


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
