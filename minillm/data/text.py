"""Text for language modelling, with a held-out part: a .txt file, or the reviews."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minillm.data.encodings import MOST
from minillm.data.tables import columns
from minillm.data.tasks import VALIDATION_END
from minillm.errors import InputError
from minillm.runtime.reading import read_text

HELD_OUT = 0.1


class Corpus(NamedTuple):
    """Documents for training and for validation."""

    train: Sequence[str]
    held_out: Sequence[str]


def text_file(path: Path) -> Corpus:
    """A .txt file as one document; the last tenth is held out.

    Raises InputError for a file that cannot be read, is not UTF-8, or has fewer than 100 characters.
    """
    if path.suffix != ".txt":
        raise InputError(f"{path} must be a .txt file")
    text = read_text(path, MOST)
    if len(text) < 100:
        raise InputError(f"{path} must have at least 100 characters, got {len(text)}")
    cut = int(len(text) * (1 - HELD_OUT))
    return Corpus([text[:cut]], [text[cut:]])


def reviews_text(path: Path) -> Corpus:
    """The pulled reviews without labels, one document each, in one fixed order.

    The validation and test sentences of the task `reviews` are held out, so a base trained on this text has not seen
    them.
    """
    sources: dict[str, list[str]] = {}
    for source, text in columns(path, "source", "text"):
        sources.setdefault(source, []).append(text)
    sentences = sources.pop("rotten_tomatoes", [])
    random.Random(0).shuffle(sentences)
    unseen = sentences[:VALIDATION_END]
    known = set(unseen)
    others = [text for texts in sources.values() for text in texts]
    train = [text for text in sentences[VALIDATION_END:] + others if text not in known]
    random.Random(0).shuffle(train)
    if not train or not unseen:
        raise InputError(f"{path} does not contain the reviews; `minillm pull reviews` downloads them")
    return Corpus(train, unseen)
