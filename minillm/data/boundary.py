"""Where a prompt's tokens end and an answer's begin.

A space belongs to the word after it: " positive" is one token, and " " and "positive" are two others, which a model has
rarely seen next to each other. So a prompt ends without a space and an answer begins with one: a prompt that ends with
a space has other tokens than it seems to (lm-eval moves such spaces to the answer; here they are refused).
"""

from collections.abc import Sequence

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer


def refuse_trailing_space(prompt: str) -> None:
    """Raises InputError for a prompt that ends with a space."""
    if prompt.endswith(" "):
        raise InputError(
            f"the prompt ends with a space, {prompt[-20:]!r}, which would change the tokens of the answer; "
            "leave the space out"
        )


def refuse_merging(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> None:
    """Raises InputError where an answer's tokens are not the same behind the end of this prompt as by themselves."""
    before = tokenizer.encode(prompt)
    for answer in answers:
        if tokenizer.encode(prompt + answer) != before + tokenizer.encode(answer):
            raise InputError(
                f"the end of the prompt, {prompt[-20:]!r}, and the answer {answer!r} share a token: "
                "begin the answer with a space, or end the prompt with a newline"
            )


def start_token(tokenizer: Tokenizer) -> int:
    """The token that stands for an empty prompt, as in lm-eval: bos, or eos where there is none.

    Raises InputError for a tokenizer with neither.
    """
    start = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if start is None:
        raise InputError("this tokenizer has neither bos nor eos, one of which has to stand for an empty prompt")
    return start


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Every token in brackets; newlines are written \\n, and incomplete characters U+FFFD."""
    return "".join(f"[{tokenizer.decode([token])}]" for token in ids).replace("\n", "\\n")
