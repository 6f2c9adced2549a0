"""Byte-level byte-pair encoding: text to token ids and back (Sennrich et al. 2016; Radford et al. 2019).

A token is a string of bytes, so any text has tokens and none is unknown. Training starts from the 256 single bytes.
Again and again it counts which two tokens stand side by side most often and makes one token of them; the list of
these merges, in order, is the tokenizer. Encoding does the same merges in the same order.

Merges never cross the borders of words (see `words`). Special tokens are no business of this file.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from minillm.reference.words import words


class BytePairs(NamedTuple):
    """A tokenizer: each token's id, and each merge's rank. `digits`: whether each digit is a word of its own."""

    ids: dict
    ranks: dict
    digits: bool = False


def train(text, vocabulary, digits=False):
    """Merge the commonest pair of tokens until there are `vocabulary` tokens; of equal pairs the one of lower ids."""
    ids = {bytes([byte]): number for number, byte in enumerate(_byte_order())}
    ranks = {}
    spelled = {word: [bytes([byte]) for byte in word.encode()] for word in words(text, digits)}
    counts = Counter(words(text, digits))
    while len(ids) < vocabulary:
        pairs = Counter()
        for word, tokens in spelled.items():
            for pair in pairwise(tokens):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        ranks[best] = len(ranks)
        ids.setdefault(best[0] + best[1], len(ids))
        spelled = {word: _merged(tokens, best) for word, tokens in spelled.items()}
    return BytePairs(ids, ranks, digits)


def load(vocabulary, merges, digits=False):
    """From a file's characters: {token: id} and pairs of tokens, or "left right" strings, in the order of merging."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    ids = {as_bytes(token): number for token, number in vocabulary.items()}
    return BytePairs(ids, {(as_bytes(left), as_bytes(right)): rank for rank, (left, right) in enumerate(pairs)}, digits)


def encode(tokenizer, text):
    ids = []
    for word in words(text, tokenizer.digits):
        tokens = [bytes([byte]) for byte in word.encode()]
        while possible := [pair for pair in pairwise(tokens) if pair in tokenizer.ranks]:
            tokens = _merged(tokens, min(possible, key=tokenizer.ranks.get))
        ids += [tokenizer.ids[token] for token in tokens]
    return ids


def decode(tokenizer, ids):
    """Tokens may end in the middle of a character: what is no UTF-8 becomes the sign for that."""
    tokens = {number: token for token, number in tokenizer.ids.items()}
    return b"".join(tokens[number] for number in ids).decode(errors="replace")


def _merged(tokens, pair):
    merged = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


def _byte_order():
    """The bytes that print come first, as in GPT-2's vocabulary."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return prints + [byte for byte in range(256) if byte not in prints]


def byte_characters():
    """Files write a byte as a character that prints: itself if it does, else the next from U+0100 on."""
    order = _byte_order()
    return {byte: chr(byte) if place < 188 else chr(256 + place - 188) for place, byte in enumerate(order)}


def as_bytes(token):
    bytes_of = {character: byte for byte, character in byte_characters().items()}
    return bytes(bytes_of[character] for character in token)
