"""The token boundary between a prompt and its answer.

A tokenizer joins a space to the word after it: " positive" is one token; " " and "positive" are two others, a sequence
that is rare in training data. So a prompt must not end with a space, and an answer begins with one. (lm-eval moves a
trailing space to the answer; minillm refuses it.)
"""

from collections.abc import Sequence

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer


def refuse_trailing_space(prompt: str) -> None:
    """Raises InputError for a prompt that ends with a space."""
    if prompt.endswith(" "):
        raise InputError(
            f"the prompt ends with a space, {prompt[-20:]!r}, which would change the tokens of the answer: remove it"
        )


def refuse_merging(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> None:
    """Raises InputError if the tokens of an answer change when it follows this prompt."""
    before = tokenizer.encode(prompt)
    for answer in answers:
        if tokenizer.encode(prompt + answer) != before + tokenizer.encode(answer):
            raise InputError(
                f"the end of the prompt, {prompt[-20:]!r}, and the answer {answer!r} share a token: "
                "begin the answer with a space, or end the prompt with a newline"
            )


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Each token in brackets; newlines are shown as \\n and incomplete characters as U+FFFD."""
    return "".join(f"[{tokenizer.decode([token])}]" for token in ids).replace("\n", "\\n")
