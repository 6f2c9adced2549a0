"""The work that all sides are given: the ladder's training rows of `reviews`, as token ids, in batches by length.

The ids are minillm's, for everyone: transformers' conversion of this GGUF file forgets to part digits.
"""

import random
from typing import NamedTuple

BASE = "smollm2-135m-instruct"
TEST = 400  # what the ladder sets aside by default; the rows to train on do not depend on it


class Work(NamedTuple):
    """Prompts and answers as ids. Every answer is one token, so that two logits after a prompt decide."""

    prompts: list[list[int]]
    labels: list[int]
    answers: list[int]

    def tokens(self, batches: list[list[int]]) -> int:
        """The tokens to read, padding not counted."""
        return sum(len(self.prompts[row]) for batch in batches for row in batch)

    def batches(self, size: int) -> list[list[int]]:
        """Rows of about the same length together, in random order: what a trainer would call group_by_length."""
        from minillm.batches import length_buckets

        return length_buckets([len(prompt) for prompt in self.prompts], size, random.Random(0))


def reviews(rows: int) -> Work:
    """The first training rows of the task. Raises InputError where there are not so many."""
    # Imported where they are needed, since a command's --help must not wait for torch.
    from minillm.hub import load
    from minillm.hub.pull import pull
    from minillm.prompting.template import task_template
    from minillm.tasks.reviews import reviews_task

    task = reviews_task(pull("reviews"), rows, TEST)
    tokenizer = load(BASE)[1]
    assert tokenizer is not None
    answers = [tokenizer.encode(answer) for answer in task.answers]
    assert all(len(answer) == 1 for answer in answers)
    template = task_template(task)
    prompts = [template.encode(tokenizer, row.text) for row in task.train]
    return Work(prompts, [row.label for row in task.train], [answer[0] for answer in answers])
