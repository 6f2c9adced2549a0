"""From a text to a prompt: zero-shot as it is, few-shot with solved examples before it (Brown et al. 2020)."""

import random
from collections.abc import Sequence

from minillm.errors import InputError
from minillm.tasks import LabelledText, Task


def render(task: Task, text: str, shots: Sequence[LabelledText] = ()) -> str:
    """The prompt for a text, after the shots with their answers; a blank line parts one from the next."""
    solved = [task.prompt.replace("{text}", shot.text) + task.answers[shot.label] for shot in shots]
    return "\n\n".join([*solved, task.prompt.replace("{text}", text)])


def balanced_shots(task: Task, count: int, seed: int) -> list[LabelledText]:
    """Training rows to show, as many of each class as `count` allows, in random order."""
    order = random.Random(seed)
    rows = order.sample(task.train, len(task.train))
    classes = range(len(task.answers))
    shots = [
        row
        for label in classes
        for row in [row for row in rows if row.label == label][: count // len(classes) + (label < count % len(classes))]
    ]
    if len(shots) < count:
        raise InputError(f"the {len(rows)} training rows do not hold {count} shots with every class equally often")
    order.shuffle(shots)
    return shots


def common_start(rows: list[list[int]]) -> int:
    """How many leading tokens all rows share, at least one being left to each: what a prompt has in common.

    Prompts are tokenised whole and parted afterwards, for tokens do not end where strings do: a blank line before
    `Review` is one token at the end of a string and two within it.
    """
    first, last = min(rows), max(rows)
    shared = next(
        (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return min(shared, min(len(row) for row in rows) - 1)
