"""Byte-level byte-pair encoding: text to token ids and back (Sennrich et al. 2016; Radford et al. 2019).

A token is a string of bytes, so any text can be encoded and no token is unknown. Training starts from the 256 single
bytes. Each step counts the pairs of adjacent tokens and merges the most frequent pair into a new token; the list of
these merges, in order, is the tokenizer. Encoding applies the same merges in the same order.

Merges never cross the boundaries of words (see `words`). Special tokens are not handled here.
"""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from minillm.reference.words import words


class BytePairs(NamedTuple):
    """A tokenizer: the id of each token and the rank of each merge. `digits`: whether each digit is its own word."""

    ids: dict
    ranks: dict
    digits: bool = False


def train(text, vocabulary, digits=False):
    """Merge the most frequent pair of tokens until there are `vocabulary` tokens; lower ids win a tie."""
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
    """From the characters of a file: {token: id}, and merges in order, as pairs or as "left right" strings."""
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
    """Tokens may end in the middle of a character: bytes that are not valid UTF-8 become U+FFFD."""
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
    """The printable bytes come first, as in GPT-2's vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [byte for byte in range(256) if byte not in printable]


def byte_characters():
    """Files write a byte as a printable character: itself if it is one, else the next from U+0100 on."""
    order = _byte_order()
    return {byte: chr(byte) if place < 188 else chr(256 + place - 188) for place, byte in enumerate(order)}


def as_bytes(token):
    bytes_of = {character: byte for byte, character in byte_characters().items()}
    return bytes(bytes_of[character] for character in token)
