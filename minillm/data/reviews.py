"""The task `reviews`: is this sentence from a film review negative or positive?

8,530 sentences of Rotten Tomatoes (Pang & Lee 2005), in one fixed shuffle of the order of the pulled file.
"""

from pathlib import Path

from minillm.data.tables import columns
from minillm.data.tasks import LabelledText, Task, divide

PROMPT = "Review: {text}\nSentiment:"
ANSWERS = (" negative", " positive")
VALIDATION = 200
"""Validation rows: to score all 600 between test and training rows after every epoch takes a third of a training."""


def reviews_task(path: Path, train: int, test: int) -> Task:
    """The task from the pulled CSV file. Raises InputError if it has too few rows."""
    rows = [
        LabelledText(text, int(label))
        for text, label, source in columns(path, "text", "label", "source")
        if source == "rotten_tomatoes"
    ]
    trained, validation, tested = divide(rows, train, test)
    return Task("reviews", PROMPT, ANSWERS, trained, validation[:VALIDATION], tested)
