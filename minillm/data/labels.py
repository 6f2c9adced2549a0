"""Validation of texts and labels: lists, arrays, columns; labels of any hashable type."""

from collections.abc import Iterable
from typing import Any
from unicodedata import normalize

import numpy as np

from minillm.errors import InputError


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts in NFC, as those of tables. Raises InputError for a single string, no texts, anything but strings."""
    found = [] if isinstance(texts, str) else list(texts)
    if not found or not all(isinstance(text, str) for text in found):
        odd = texts if isinstance(texts, str) else next((text for text in found if not isinstance(text, str)), [])
        raise InputError(f"texts must be a list of one string or more, got {odd!r}"[:500])
    return [normalize("NFC", text) for text in found]


def distinct(labels: Iterable[Any]) -> list[Any]:
    """The distinct labels: sorted, or in order of appearance if they cannot be compared."""
    try:
        found: list[Any] = list(dict.fromkeys(labels))
    except TypeError as problem:
        raise InputError(f"labels must be hashable, got {problem}") from None
    try:
        return sorted(found)
    except TypeError:
        return found


def label_array(labels: list[Any]) -> np.ndarray:
    """An array of numbers or strings if all labels are of one such type, else of objects."""
    plain = len({type(label) for label in labels}) == 1 and isinstance(labels[0], str | int | float | np.generic)
    return np.array(labels) if plain else np.fromiter(labels, object, len(labels))


def from_json(label: Any) -> Any:
    """A label that was saved as JSON, with its tuples restored (JSON stores them as lists)."""
    return tuple(map(from_json, label)) if isinstance(label, list) else label
