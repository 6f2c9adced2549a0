"""Tokenizers trained on the text that is to be modelled: byte pairs, single characters, or words and numbers.

`minillm.reference.bpe` trains byte pairs in plain Python, with the same merges.
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
    """Byte-level byte pair encoding, cut into words as GPT-2 does, with `vocabulary` tokens at most, one the end."""
    if vocabulary < 257:
        raise InputError(f"a vocabulary of {vocabulary} is too small: there are 256 bytes and the end of a text")
    pipeline = tokenizers.Tokenizer(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    pipeline.train_from_iterator(texts, trainer)
    # The end comes last, so that the ids of all others are those of the reference.
    pipeline.add_special_tokens([END])
    return Tokenizer(pipeline, {"eos": END})


def characters(texts: Iterable[str], vocabulary: int = 2**31) -> Tokenizer:
    """A token for every character of the text, the commonest if there are too many; others are unknown."""
    return _closed(texts, r"[\s\S]", vocabulary)


def words(texts: Iterable[str], vocabulary: int = 2**31) -> Tokenizer:
    """A token for every word, number and sign of the text, the commonest if there are too many; others are unknown."""
    return _closed(texts, WORD, vocabulary)


def _closed(texts: Iterable[str], pattern: str, vocabulary: int) -> Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(pattern, text))
    special = [END, UNKNOWN]
    common = sorted(token for token, _ in counts.most_common(vocabulary - len(special)))
    pipeline = tokenizers.Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(special + common)}, unk_token=UNKNOWN)
    )
    pipeline.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    pipeline.decoder = decoders.Fuse()
    return Tokenizer(pipeline, {"eos": END, "unk": UNKNOWN})


TRAINERS: dict[str, Callable[[Iterable[str], int], Tokenizer]] = {
    "bpe": byte_pairs, "characters": characters, "words": words,
}  # fmt: skip


def train_tokenizer(kind: str, texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of this kind. Raises InputError for a kind that there is not."""
    if kind not in TRAINERS:
        raise InputError(f"there is no tokenizer {kind!r}; there are: {', '.join(TRAINERS)}")
    return TRAINERS[kind](texts, vocabulary)


def token_bytes(tokenizer: Tokenizer) -> list[int]:
    """How many bytes of text each id stands for; special tokens stand for none."""
    pipeline, special = tokenizer.pipeline, set(tokenizer.special.values())
    tokens = sorted(pipeline.get_vocab().items(), key=lambda item: item[1])
    # A byte-level token is written with one character a byte.
    one_a_byte = isinstance(pipeline.model, models.BPE)
    return [0 if index in special else len(token if one_a_byte else token.encode()) for token, index in tokens]
