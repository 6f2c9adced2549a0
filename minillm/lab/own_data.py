"""What is reported about a user's own data before anything runs: how it was read, its classes and its parts."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from minillm.data.conversations import Conversations, EncodedConversation
from minillm.data.table_tasks import TableTask
from minillm.data.tasks import Task
from minillm.lab.report import aligned
from minillm.runtime.progress import note
from minillm.tokenizer import Tokenizer

FEW = 5
"""With fewer training rows of a class, a warning is printed."""


def report(task: Task | Conversations) -> None:
    """Print the overview of a user's own data to stderr, and nothing for a task of minillm."""
    if isinstance(task, TableTask | Conversations):
        note("\n".join(overview(task)))


def overview(task: TableTask | Conversations) -> list[str]:
    """The lines of the report: rows of each part, classes, majority baseline, warnings."""
    lines = [task.note] if task.note else []
    lines.append(
        f"{task.name}: {len(task.train)} rows for training, {len(task.validation)} for validation, {len(task.test)} "
        "for test"
    )
    if isinstance(task, TableTask):
        lines += _classes(task)
    known = {row.text for row in task.train}
    if repeated := sum(row.text in known for row in task.test):
        lines.append(f"warning: {repeated} of the {len(task.test)} test texts are also among the training texts")
    return lines


def trained_tokens(tokenizer: Tokenizer, rows: Sequence[EncodedConversation], colour: bool) -> str:
    """The rows as text, with the trained tokens in colour or in brackets; control characters are escaped."""
    start, end = ("\033[1;32m", "\033[0m") if colour else ("[", "]")
    lines = []
    for number, row in enumerate(rows, 1):
        line = f"--- row {number}: {len(row.ids)} tokens, {len(row.targets)} trained\n"
        for trained, group in groupby(zip(row.ids, row.trained, strict=True), key=itemgetter(1)):
            text = tokenizer.decode([token for token, _ in group])
            shown = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
            line += start + shown + end if trained else shown
        lines.append(line)
    return "\n".join(lines)


def _classes(task: TableTask) -> list[str]:
    counts = [Counter(row.label for row in part) for part in (task.train, task.validation, task.test)]
    rows: list[tuple[str, ...]] = [("label", "answer", "training", "validation", "test")]
    for label, (value, answer) in enumerate(zip(task.values, task.answers, strict=True)):
        rows.append((repr(value), repr(answer.strip()), *(str(count[label]) for count in counts)))
    (most, rows_of_it), *_ = counts[2].most_common(1)
    lines = [aligned(rows, left=2, least=["answer"])]
    lines.append(f"majority baseline: accuracy {rows_of_it / len(task.test):.3f} by always {task.values[most]!r}")
    folded = Counter(value.casefold() for value in task.values)
    if alike := [repr(value) for value in task.values if folded[value.casefold()] > 1]:
        lines.append(f"warning: labels that differ in case only: {', '.join(alike)}")
    if few := [f"{value!r} ({counts[0][label]})" for label, value in enumerate(task.values) if counts[0][label] < FEW]:
        lines.append(f"warning: fewer than {FEW} training rows: {', '.join(few)}")
    return lines
