"""Tokenizers trained on a text: byte-pair encoding (BPE), characters, or words and numbers.

`minillm.reference.bpe` trains BPE in plain Python, with the same merges.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer

END, UNKNOWN = "<|endoftext|>", "<|unknown|>"
WORD = r" ?[0-9]+| ?[A-Za-z]+|[\s\S]"
"""A word or a number with the space before it, or any other character."""


def byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenisation, of at most `vocabulary` tokens including the end of text."""
    if vocabulary < 257:
        raise InputError(f"vocabulary must be at least 257, for the 256 bytes and the end of text, got {vocabulary}")
    pipeline = tokenizers.Tokenizer(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    pipeline.train_from_iterator(texts, trainer)
    # Added last, so that all other ids are those of the reference.
    pipeline.add_special_tokens([END])
    return Tokenizer(pipeline, {"eos": END})


def characters(texts: Iterable[str], vocabulary: int = 2**31) -> Tokenizer:
    """A token for every character, or for the most common ones if too many; others are unknown."""
    return _closed(texts, r"[\s\S]", vocabulary)


def words(texts: Iterable[str], vocabulary: int = 2**31) -> Tokenizer:
    """A token for every word, number and other character, or for the most common if too many; others are unknown."""
    return _closed(texts, WORD, vocabulary)


def _closed(texts: Iterable[str], pattern: str, vocabulary: int) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(pattern, text))
    special = [END, UNKNOWN]
    common = sorted(token for token, _ in counts.most_common(vocabulary - len(special)))
    ids = {token: index for index, token in enumerate(special + common)}
    pipeline = tokenizers.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    pipeline.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    pipeline.decoder = decoders.Fuse()
    return Tokenizer(pipeline, {"eos": END, "unk": UNKNOWN})


TRAINERS: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
    "bpe": byte_pairs, "characters": characters, "words": words,
}  # fmt: skip


def train_tokenizer(kind: str, texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of this kind. Raises InputError for an unknown kind."""
    if kind not in TRAINERS:
        raise InputError(f"no tokenizer {kind!r}; available: {', '.join(TRAINERS)}")
    return TRAINERS[kind](texts, vocabulary)


def token_bytes(tokenizer: Tokenizer) -> list[int]:
    """The number of text bytes that each id encodes; 0 for special tokens."""
    pipeline, special = tokenizer.pipeline, set(tokenizer.special.values())
    tokens = sorted(pipeline.get_vocab().items(), key=lambda item: item[1])
    # A byte-level token is written with one character per byte.
    byte_level = isinstance(pipeline.model, models.BPE)
    return [0 if index in special else len(token if byte_level else token.encode()) for token, index in tokens]
