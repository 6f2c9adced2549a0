"""`minillm prompt`: a template over a task's rows or over one text, measured; its examples in several orders."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minillm.data.tasks import LabelledText, Task
from minillm.data.templates import Question, Template, task_template
from minillm.errors import InputError
from minillm.lab.asking import Asked, Manner, ask, figures
from minillm.lab.ladder import LadderSettings, bench, load_task, versions
from minillm.lab.world import Bench, labels
from minillm.prompting.choosing import (
    CHOICES,
    balanced_shots,
    nearest_shots,
    ordered_shots,
    orders,
    seeded_shots,
)
from minillm.runtime.files import write_text


@dataclass(frozen=True)
class PromptSettings:
    """What is asked (as a ladder says it), in which words, after which examples, and in what manner.

    `prompt` and `labels` take the place of the task's own. Raises InputError for what cannot be asked.
    """

    ladder: LadderSettings
    manner: Manner
    prompt: str | None = None
    labels: tuple[str, ...] | None = None
    instruction: str = ""
    shots: int = 0
    choose: str = "balanced"
    pooling: str = "mean"
    orders: int = 1
    chain: bool = False
    chat: bool = False

    def __post_init__(self):
        if self.choose not in CHOICES:
            raise InputError(f"examples are not chosen by {self.choose!r}; they can be: {', '.join(CHOICES)}")
        if self.shots < 0 or self.orders < 1:
            raise InputError(f"shots is {self.shots} and orders {self.orders}; they are 0 and 1 at least")
        if self.orders > 1 and (self.shots < 2 or self.choose == "nearest"):
            raise InputError("only two examples or more, the same for all texts, have several orders")

    @property
    def needs_no_task(self) -> bool:
        """A text can be asked about in the user's own words alone."""
        return self.prompt is not None and self.labels is not None and self.shots == 0

    def task(self) -> Task:
        """The task, in the user's own words as far as they are given."""
        task = load_task(self.ladder)
        prompt = self.prompt or task.prompt
        answers = task.answers if self.labels is None else self.own_answers()
        if len(answers) != len(task.answers):
            raise InputError(f"{len(answers)} labels are given for the {len(task.answers)} classes of {task.name}")
        return replace(task, prompt=prompt, answers=answers, cue=task.cue if prompt.endswith(task.cue) else "")

    def own_answers(self) -> tuple[str, ...]:
        labels = self.labels or ()
        if len(set(labels)) < 2 or not all(labels):
            raise InputError(f"there must be two different labels at least, and none empty, not {', '.join(labels)}")
        return tuple(f" {label}" for label in labels)

    def dressed(self, template: Template) -> Template:
        return replace(template, instruction=self.instruction, chain=self.chain, chat=self.chat)


def shared_shots(task: Task, settings: PromptSettings) -> list[list[LabelledText]]:
    """The examples that all texts have in common, once for each order of them. Raises InputError for too few rows."""
    count, seed = settings.shots, settings.ladder.seed
    if settings.choose == "balanced":
        shots = balanced_shots(task, count, seed)
    else:
        shots = seeded_shots(task, count, seed) if settings.choose == "seed" else ordered_shots(task, count)
    return orders(shots, settings.orders, seed)


def templates(here: Bench, task: Task, settings: PromptSettings, texts: Sequence[str]) -> list[list[Template]]:
    """The template of every text; once for each order of the examples, if it is not each text's own nearest ones."""
    if settings.choose == "nearest" and settings.shots:
        near = nearest_shots(here.decoder, here.tokenizer, task, texts, settings.shots, settings.pooling)
        return [[settings.dressed(task_template(task, shots)) for shots in near]]
    return [[settings.dressed(task_template(task, shots))] * len(texts) for shots in shared_shots(task, settings)]


def prepared(settings: PromptSettings) -> tuple[Task, Bench]:
    """The task and the base. What cannot work is said before the base is loaded (InputError)."""
    task = settings.task()
    settings.dressed(task_template(task, shared_shots(task, settings)[0]))
    return task, bench(settings.ladder, Path())


def over_text(settings: PromptSettings, text: str) -> tuple[Bench, Asked]:
    """Ask about one text: about a task's, or in the user's own words alone."""
    if settings.needs_no_task:
        assert settings.prompt is not None
        template, answers = settings.dressed(Template(settings.prompt)), settings.own_answers()
        here = bench(settings.ladder, Path())
    else:
        task, here = prepared(settings)
        template, answers = templates(here, task, settings, [text])[0][0], task.answers
    return here, ask(here, [Question(template, text)], answers, settings.manner)


def over_task(settings: PromptSettings) -> Iterator[tuple[Bench, Asked, dict[str, Any]]]:
    """Ask about all test rows, once for every order of the examples: the answers, and the figures."""
    task, here = prepared(settings)
    rows, targets = [row.text for row in task.test], labels(task.test)
    for each in templates(here, task, settings, rows):
        questions = [Question(template, text) for template, text in zip(each, rows, strict=True)]
        asked = ask(here, questions, task.answers, settings.manner)
        yield here, asked, figures(asked, targets)


def spread(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Of the accuracies of several orders, the mean and the standard deviation, before and after calibration."""
    measures: dict[str, dict[str, dict[str, float]]] = {}
    for name in found[0]["measures"]:
        for when in ("before", "after"):
            accuracies = [one["measures"][name][when]["accuracy"] for one in found]
            figure = {"mean": statistics.mean(accuracies), "standard_deviation": statistics.stdev(accuracies)}
            measures.setdefault(name, {})[when] = figure
    return measures


def described(asked: Asked) -> dict[str, Any]:
    """What was asked and answered, row by row, in JSON's types."""
    before, after = asked.preferences.before(), asked.preferences.after()
    rows = []
    for index, question in enumerate(asked.questions):
        row: dict[str, Any] = {"text": question.text, "scores": before["acc"][index].tolist()}
        row["calibrated"] = {name: scores[index].exp().tolist() for name, scores in after.items()}
        if asked.said is not None:
            row["said"] = asked.said[index]
        if asked.voted is not None:
            row["voted"] = asked.voted[index]
        rows.append(row)
    template = asked.questions[0].template
    return {
        "way": template.name,
        "template": asdict(template),
        "answers": list(asked.preferences.answers),
        "tokens_read": asked.preferences.tokens,
        "rows": rows,
    }


def write(path: Path, settings: PromptSettings, found: Sequence[dict[str, Any]], **more: Any) -> None:
    """All that was measured and what it depends on, as JSON."""
    written = {**asdict(settings), "versions": versions(), "asked": list(found), **more}
    write_text(path, json.dumps(written, indent=2, ensure_ascii=False) + "\n")
