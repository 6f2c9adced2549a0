"""Splitting text into words before bytes are merged, as GPT-2 does (Radford et al. 2019).

A word is a run of letters, of numbers, of whitespace or of other characters, with one space before it where there is
one. English endings ('s, 'll, ...) are words of their own. A run of whitespace before a word ends one character early,
so that a last space joins the word. SmolLM2 first splits off every digit, and then splits the text between digits.
"""

import re
import unicodedata

ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
WORD = re.compile(r" ?a+| ?1+| ?!+|\s+(?!\S)|\s+")
"""GPT-2's regular expression without the endings, for the kinds of the characters."""


def words(text, digits=False):
    """The words of the text; merges never cross them, and joined they are the text."""
    if not digits:
        return _split(text)
    pieces, start = [], 0
    for place, character in enumerate(text):
        if _kind(character) == "1":
            pieces += [*_split(text[start:place]), character]
            start = place + 1
    return pieces + _split(text[start:])


def _split(text):
    pieces, start, kinds = [], 0, "".join(map(_kind, text))
    while start < len(text):
        ending = next((ending for ending in ENDINGS if text.startswith(ending, start)), None)
        word = WORD.match(kinds, start)
        assert word is not None
        end = start + len(ending) if ending else word.end()
        pieces.append(text[start:end])
        start = end
    return pieces


def _kind(character):
    """A space, a tab for other whitespace, `a` for letters, `1` for numbers, `!` for the rest."""
    category = unicodedata.category(character)
    if category[0] == "Z" or character in "\t\n\v\f\r\x85":
        return " " if character == " " else "\t"
    return {"L": "a", "N": "1"}.get(category[0], "!")
