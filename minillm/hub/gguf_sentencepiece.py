"""SentencePiece's BPE (Llama 2, Mistral, Gemma) in a GGUF file: pieces with scores, llama.cpp's tokenizer `llama`.

llama.cpp joins the two neighbouring pieces that form the piece with the highest score; the `tokenizers` library joins
the pair that comes first in its merges. Both give the same ids if the merges are all pairs of pieces that form a piece,
sorted by its score. A space is written ▁, and a character without a piece as its bytes, like <0xE2>.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers

from minillm.errors import InputError

LONGEST, MOST = 512, 2**21
"""Characters of a piece and of all: each place in a piece is a pair, and Gemma's 262,144 pieces have 1.6 million."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
NEVER = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
# (normalizer, pre-tokenizer): whether a text starts with an additional space. After REPLACE, SPLIT finds nothing.
SPACES: list[tuple[Any, Any, bool]] = [
    ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None, True),
    (REPLACE, None, False),
    (REPLACE, SPLIT, False),
    (None, NEVER, False),
]


def pairs(piece: str, known: Collection[str]) -> Iterator[tuple[str, str]]:
    """The pairs of known pieces that form a piece."""
    for cut in range(1, len(piece)):
        if piece[:cut] in known and piece[cut:] in known:
            yield piece[:cut], piece[cut:]


def sentencepiece(
    vocabulary: dict[str, int], scores: Mapping[str, float], unknown: str | None, space: bool
) -> tokenizers.Tokenizer:
    """A pipeline that joins characters to the pieces in `scores`; `space` starts a text with an additional space."""
    if max(map(len, scores), default=0) > LONGEST or sum(map(len, scores)) > MOST:
        raise InputError(f"pieces must have at most {LONGEST} characters, and {MOST} together")
    ranked = [(scores[piece], *map(len, pair), pair) for piece in scores for pair in pairs(piece, scores)]
    merges = [pair for *_, pair in sorted(ranked, key=lambda entry: entry[:3], reverse=True)]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    pipeline = tokenizers.Tokenizer(model)
    replace = normalizers.Replace(" ", "▁")
    pipeline.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if space else replace
    first_space = [decoders.Strip(" ", 1, 0)] if space else []
    pipeline.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *first_space]
    )
    return pipeline


def piece_scores(pipeline: dict[str, Any]) -> dict[str, float]:
    """The score of each piece that merges form, from a pipeline in JSON.

    Raises InputError if no scores give the ids of these merges.
    """
    model = pipeline["model"]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    added = {token["content"] for token in pipeline["added_tokens"] if not token["special"]}
    # llama.cpp also joins characters that are not pieces.
    known, present = model["vocab"].keys() | set("".join(model["vocab"])), set(merges)
    for piece in model["vocab"].keys() - added - set(BYTES):
        for left, right in pairs(piece, known):
            if (left, right) not in present:
                raise InputError(f"llama.cpp joins {left!r} and {right!r}, but the merges of this tokenizer do not")
    return _ranked(merges)


def _ranked(merges: list[tuple[str, ...]]) -> dict[str, float]:
    """Falling scores in the order of the merges.

    Pieces whose merges alternate have equal scores: then llama.cpp joins the first pair in the text. The ids are the
    same for runs of one character, like the spaces of Llama 2 and Mistral. Raises InputError for other pieces.
    """
    spans: dict[str, list[int]] = {}
    for rank, pair in enumerate(merges):
        spans.setdefault("".join(pair), [rank, rank])[1] = rank
    scores: dict[str, float] = {}
    characters, end = set(), -1
    for piece, (first, last) in spans.items():
        alternates = first < end
        characters = set(piece) | (characters if alternates else set())
        if alternates and len(characters) > 1:
            raise InputError(f"llama.cpp has one score per token, but merges of {piece!r} and others alternate")
        scores[piece] = scores[next(reversed(scores))] if alternates else -float(len(scores))
        end = max(end, last)
    return scores


def adds_space(pipeline: dict[str, Any]) -> bool:
    """Whether a text starts with an additional space. Raises InputError for a pipeline unlike SentencePiece's."""
    model, parts = pipeline["model"], (pipeline["normalizer"], pipeline["pre_tokenizer"])
    spaces = [space for *known, space in SPACES if parts == tuple(known)]
    if not spaces or not model["vocab"].keys() >= set(BYTES):
        raise InputError(
            "llama.cpp needs all 256 byte tokens, and a space at the start of every text (a normalizer that prepends "
            "▁) or of none: it has no Metaspace that adds a space only where there is none"
        )
    return spaces[0]
