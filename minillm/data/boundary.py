"""Where a prompt's tokens end and an answer's begin.

A blank belongs to the word after it: " positive" is one token, and " " and "positive" are two others, which a model has
hardly seen side by side. So a prompt ends without a blank and an answer begins with its own: a prompt that ends with
one asks a question that looks the same and is another (lm-eval moves such blanks over; here they are refused).
"""

from collections.abc import Sequence

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer


def refuse_trailing_blank(prompt: str) -> None:
    """Raises InputError for a prompt that ends with a blank."""
    if prompt.endswith(" "):
        raise InputError(
            f"the prompt ends with a blank, {prompt[-20:]!r}: it would part the answer from its own blank, and its "
            "tokens would be others; leave the blank out"
        )


def refuse_merging(tokenizer: Tokenizer, prompt: str, answers: Sequence[str]) -> None:
    """Raises InputError where an answer's tokens are not the same behind the end of this prompt as by themselves."""
    before = tokenizer.encode(prompt)
    for answer in answers:
        if tokenizer.encode(prompt + answer) != before + tokenizer.encode(answer):
            raise InputError(
                f"the end of the prompt, {prompt[-20:]!r}, and the answer {answer!r} share a token: "
                "begin the answer with a blank, or end the prompt with a line's end"
            )


def start_token(tokenizer: Tokenizer) -> int:
    """What stands for an empty prompt, as in lm-eval: bos, or eos where there is none.

    Raises InputError for a tokenizer with neither.
    """
    start = tokenizer.bos if tokenizer.bos is not None else tokenizer.eos
    if start is None:
        raise InputError("this tokenizer has neither bos nor eos, one of which has to stand for an empty prompt")
    return start


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Every token in brackets; line ends are written \\n, and what is no whole character by itself is a U+FFFD."""
    return "".join(f"[{tokenizer.decode([token])}]" for token in ids).replace("\n", "\\n")
