"""Cutting text into words before any pair of bytes is merged, as GPT-2 does (Radford et al. 2019), without its regex.

A word is a run of letters, of numbers, of blanks or of other signs, and takes along one space that stands before it.
English endings ('s, 'll, ...) stand alone where they begin a word. Of several blanks the last is left to the word
that follows. SmolLM2 first cuts numbers apart, each digit for itself, and then what lies between them.
"""

import unicodedata

ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def words(text, digits=False):
    """The pieces that merges stay within; joined, they are the text again."""
    if not digits:
        return _cut(text)
    pieces, start = [], 0
    for place, character in enumerate(text):
        if _kind(character) == "number":
            pieces += [*_cut(text[start:place]), character]
            start = place + 1
    return pieces + _cut(text[start:])


def _cut(text):
    pieces, start = [], 0
    while start < len(text):
        end = _end_of_word(text, start)
        pieces.append(text[start:end])
        start = end
    return pieces


def _end_of_word(text, start):
    ending = next((ending for ending in ENDINGS if text.startswith(ending, start)), None)
    if ending:
        return start + len(ending)
    # A space belongs to the word after it.
    first = start + 1 if text[start] == " " and start + 1 < len(text) and _kind(text[start + 1]) != "space" else start
    end = _end_of_run(text, first)
    # Of several blanks before a word the last is left for that word.
    if _kind(text[first]) == "space" and end < len(text) and end - first > 1:
        return end - 1
    return end


def _end_of_run(text, start):
    end = start
    while end < len(text) and _kind(text[end]) == _kind(text[start]):
        end += 1
    return end


def _kind(character):
    category = unicodedata.category(character)
    if category[0] == "Z" or character in "\t\n\v\f\r\x85":
        return "space"
    return {"L": "letter", "N": "number"}.get(category[0], "sign")
