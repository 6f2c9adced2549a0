"""`minillm lab newtask`: which methods learn a task that the base cannot know?

Its labels are permuted, or are other words, or its texts are in an unknown language: each word stands for another one.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minillm.data.tasks import Task
from minillm.errors import InputError
from minillm.lab.crossed import SEEDS, Crossed
from minillm.lab.study import Bench, Settings, Table, Trial, chosen, over_seeds
from minillm.runtime.options import Directory, Names
from minillm.tokenizer import Tokenizer

TASKS = _, PERMUTED, INVENTED, LANGUAGE = "original", "labels permuted", "labels invented", "new language"
LABELS = " dax wug blick fep toma zorp gorp mib lemon golf rubber iced striped chocolate French musical"
"""Invented words, and unrelated ones for a tokenizer that does not know those."""
WORD = re.compile(r"[^\W\d_]+")


@dataclass(kw_only=True)
class NewTask(Crossed):
    """Compare the methods on a task, and on changes of it that the base cannot know.

    Example: minillm lab newtask --minutes 10
    """

    methods: Names = ("zero-shot", "few-shot", "soft-prompt", "prefix", "lora", "full")
    """The methods, separated by commas."""
    out: Directory = Path("newtask")
    """The directory of the results. Finished trials are not run again."""

    name, row = "newtask", "changed"

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        wanted = [(n, how, m) for n in range(SEEDS) for how in TASKS for m in self.methods]
        return [self.settings(m, changed=how, seed=n) for n, how, m in wanted if n == 0 or m != "zero-shot"]

    def measure(self, bench: Bench, settings: Settings) -> dict[str, Any]:
        return self.adapted(bench, settings, changed(bench.task, settings["changed"], bench.experiment.tokenizer))[1]

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        (tables, lines), cells = super().conclude(finished), self.cells(finished)
        for how in TASKS:
            shares = {method: over_seeds(trials) for (on, method), trials in cells.items() if on == how}
            guessed = max((trial.measured["majority_baseline"] for trial in chosen(finished, changed=how)), default=1)
            learned = [method for method, (mean, error) in shares.items() if mean - 2 * error > guessed]
            if shares:
                lines.append(f"{how}: {', '.join(learned) or 'no method'} above guessing by two standard errors")
        return tables, lines


def changed(task: Task, how: str, tokenizer: Tokenizer) -> Task:
    """The task, changed in one of the ways of `TASKS`. Raises InputError for too many labels."""

    def known(words: Sequence[str]) -> list[str]:
        return [word for word in words if tokenizer.unk not in tokenizer.encode(f" {word}")]

    if how == PERMUTED:
        return replace(task, answers=(*task.answers[1:], task.answers[0]))
    if how == INVENTED:
        invented = [f" {label}" for label in known(WORD.findall(LABELS))]
        if len(invented) < len(task.answers):
            raise InputError(f"newtask has {len(invented)} invented labels for this base, the task {len(task.answers)}")
        return replace(task, answers=tuple(invented[: len(task.answers)]))
    if how == LANGUAGE:
        parts = {part: getattr(task, part) for part in ("train", "validation", "test")}
        words = known(sorted({word for rows in parts.values() for row in rows for word in WORD.findall(row.text)}))
        random.Random(0).shuffle(words)
        code = dict(zip(words, words[1:] + words[:1], strict=True))  # one cycle, in which no word stands for itself
        for part, rows in parts.items():
            parts[part] = [row._replace(text=WORD.sub(lambda w: code.get(w[0], w[0]), row.text)) for row in rows]
        return replace(task, **parts)
    return task
