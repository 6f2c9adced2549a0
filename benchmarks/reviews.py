"""The work of all sides: the ladder's training rows of `reviews`, as token ids, in batches by length.

All sides use minillm's ids: transformers' conversion of this GGUF file does not split digits.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from minillm.data.tasks import LabelledText, Task
    from minillm.data.templates import Template

BASE = "smollm2-135m-instruct"
TEST = 400  # the ladder's default; the training rows do not depend on it


class Work(NamedTuple):
    """Prompts and answers as ids. Every answer is one token, so that two logits after a prompt are compared."""

    prompts: list[list[int]]
    labels: list[int]
    answers: list[int]

    def tokens(self, batches: list[list[int]]) -> int:
        """The number of tokens without padding."""
        return sum(len(self.prompts[row]) for batch in batches for row in batch)

    def batches(self, size: int) -> list[list[int]]:
        """Batches of rows of similar length, in random order (group_by_length in a Trainer)."""
        from minillm.data.batches import length_buckets

        return length_buckets([len(prompt) for prompt in self.prompts], size, random.Random(0))


def reviews(rows: int) -> Work:
    """The first training rows of the task. Raises InputError if it has fewer rows."""
    # Imported here, because --help should not load torch.
    from minillm.data.reviews import reviews_task
    from minillm.data.templates import task_template
    from minillm.hub.pull import pull

    task = reviews_task(pull("reviews"), rows, TEST)
    return _work(task_template(task), task, task.train)


def few_shot(rows: int, shots: int) -> Work:
    """The first test rows of the task, each after the same examples. Raises InputError if it has fewer rows."""
    from minillm.data.reviews import reviews_task
    from minillm.data.templates import task_template
    from minillm.hub.pull import pull
    from minillm.prompting.choosing import balanced_shots

    task = reviews_task(pull("reviews"), 500, rows)
    return _work(task_template(task, balanced_shots(task, shots, seed=0)), task, task.test)


def _work(template: "Template", task: "Task", rows: Sequence["LabelledText"]) -> Work:
    from minillm.hub import load

    tokenizer = load(BASE)[1]
    assert tokenizer is not None
    answers = [tokenizer.encode(answer) for answer in task.answers]
    assert all(len(answer) == 1 for answer in answers)
    prompts = [template.encode(tokenizer, row.text) for row in rows]
    return Work(prompts, [row.label for row in rows], [answer[0] for answer in answers])
