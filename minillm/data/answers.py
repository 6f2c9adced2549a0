"""The token ids of answers, none of which begins another.

Labels are events that exclude one another. "The text continues with ' not'" includes "it continues with ' not sure'",
so ' not' would always score higher. Where one answer's ids begin another's, every answer of the set gets the same end:
the event is then "the text continues with this answer, which ends there", and the probabilities of all answers sum to
at most 1. In all other sets the ids are those of the answers alone.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer


def encode_answers(tokenizer: Tokenizer, answers: Sequence[str], after: str = "") -> list[list[int]]:
    """The answers' ids, with an end where one begins another: the token of `after` that follows every answer, else eos.

    `after` is the text that follows an answer in the prompt's format. Raises InputError if two answers have the same
    ids, as words outside the tokenizer's vocabulary may have, and if an end is needed and there is none.
    """
    encoded = [tokenizer.encode(answer) for answer in answers]
    for index, ids in enumerate(encoded):
        if (first := encoded.index(ids)) < index:
            same = " and ".join(repr(answers[place]) for place in (first, index))
            raise InputError(f"the answers {same} are the same to this base's tokenizer; give others (--labels)")
    if not (alike := _alike(encoded)):
        return encoded
    for end in _ends(tokenizer, answers, encoded, after):
        ended = [[*ids, end] for ids in encoded]
        if not _alike(ended):
            return ended
    shorter, longer = (answers[encoded.index(ids)] for ids in alike)
    raise InputError(
        f"the answer {shorter!r} begins the answer {longer!r}, so their end must be scored too, but this base's "
        "tokenizer has no end of text (eos): give labels that do not begin alike (--labels), or the text that ends an "
        "answer (end)"
    )


def _alike(encoded: Sequence[list[int]]) -> tuple[list[int], ...]:
    """An answer and another one that it begins; empty if there are none."""
    # In sorted order, the next answer after one that begins others is one of these.
    return next((pair for pair in pairwise(sorted(encoded)) if pair[1][: len(pair[0])] == pair[0]), ())


def _ends(tokenizer: Tokenizer, answers: Sequence[str], encoded: Sequence[list[int]], after: str) -> Iterator[int]:
    """The tokens that may end an answer, the best first."""
    followed = [tokenizer.encode(answer + after) for answer in answers]
    next_tokens = {row[len(ids)] for row, ids in zip(followed, encoded, strict=True) if len(row) > len(ids)}
    # Not if the end of an answer merges with the text after it.
    kept = all(row[: len(ids)] == ids for row, ids in zip(followed, encoded, strict=True))
    if kept and len(next_tokens) == 1:
        yield next_tokens.pop()
    if tokenizer.eos is not None:
        yield tokenizer.eos
