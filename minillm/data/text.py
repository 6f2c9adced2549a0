"""Text for language modelling: any .txt file, or the reviews, with a part that is held out."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minillm.data.tables import column, read_rows
from minillm.data.tasks import VALIDATION_END
from minillm.errors import InputError

HELD_OUT = 0.1


class Corpus(NamedTuple):
    """Documents to train on, and others to measure on."""

    train: Sequence[str]
    held_out: Sequence[str]


def text_file(path: Path) -> Corpus:
    """A .txt file as one document, whose last tenth is held out.

    Raises InputError for what cannot be read, is no UTF-8, or has fewer than a hundred characters.
    """
    if path.suffix != ".txt":
        raise InputError(f"{path} is no .txt file")
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}") from error
    if len(text) < 100:
        raise InputError(f"{path} has {len(text)} characters; to learn a language takes a hundred at the very least")
    cut = int(len(text) * (1 - HELD_OUT))
    return Corpus([text[:cut]], [text[cut:]])


def reviews_text(path: Path) -> Corpus:
    """The pulled reviews without their labels, a document each, in one fixed order.

    Held out are the sentences that the task `reviews` validates and tests on: a base that was trained on this text has
    not seen them.
    """
    sources: dict[str, list[str]] = {}
    for row in read_rows(path):
        sources.setdefault(column(row, "source", path), []).append(column(row, "text", path))
    sentences = sources.pop("rotten_tomatoes", [])
    random.Random(0).shuffle(sentences)
    unseen = sentences[:VALIDATION_END]
    known = set(unseen)
    others = [text for texts in sources.values() for text in texts]
    train = [text for text in sentences[VALIDATION_END:] + others if text not in known]
    random.Random(0).shuffle(train)
    if not train or not unseen:
        raise InputError(f"{path} does not hold the reviews; `minillm pull reviews` fetches them")
    return Corpus(train, unseen)
