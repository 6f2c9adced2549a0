"""Splitting text into words before bytes are merged, as GPT-2 does (Radford et al. 2019), without its regex.

A word is a run of letters, of numbers, of whitespace or of other characters, with one space before it where there is
one. English endings ('s, 'll, ...) are words of their own. A run of whitespace before a word ends one character early,
so that a last space joins the word. SmolLM2 first splits off every digit, and then splits the text between digits.
"""

import unicodedata

ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def words(text, digits=False):
    """The words of the text; merges never cross them, and joined they are the text."""
    if not digits:
        return _split(text)
    pieces, start = [], 0
    for place, character in enumerate(text):
        if _kind(character) == "number":
            pieces += [*_split(text[start:place]), character]
            start = place + 1
    return pieces + _split(text[start:])


def _split(text):
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
    # The last of several whitespace characters before a word is left for that word.
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
    return {"L": "letter", "N": "number"}.get(category[0], "other")
