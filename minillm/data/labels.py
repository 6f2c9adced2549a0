"""Texts and labels as a caller gives them: lists, arrays, columns; labels of any hashable type."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from minillm.errors import InputError


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Raises InputError for one string, for no text, and for what is no string."""
    found = [] if isinstance(texts, str) else list(texts)
    if not found or not all(isinstance(text, str) for text in found):
        odd = texts if isinstance(texts, str) else next((text for text in found if not isinstance(text, str)), [])
        raise InputError(f"texts must be a list of one string or more, got {odd!r}"[:500])
    return found


def distinct(labels: Iterable[Any]) -> list[Any]:
    """Each label once: sorted, or in order of appearance where they cannot be compared."""
    try:
        found: list[Any] = list(dict.fromkeys(labels))
    except TypeError as problem:
        raise InputError(f"labels must be hashable, got {problem}") from None
    try:
        return sorted(found)
    except TypeError:
        return found


def label_array(labels: list[Any]) -> np.ndarray:
    """Labels as numbers or strings of numpy if they are of one such type, else as they are."""
    plain = len({type(label) for label in labels}) == 1 and isinstance(labels[0], str | int | float | np.generic)
    return np.array(labels) if plain else np.fromiter(labels, object, len(labels))


def from_json(label: Any) -> Any:
    """A label as it was before it was JSON, which has lists for tuples."""
    return tuple(map(from_json, label)) if isinstance(label, list) else label
