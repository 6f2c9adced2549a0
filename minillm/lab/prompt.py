"""`minillm prompt`: a template over a task's rows or over one text, measured; its examples in several orders."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from minillm.data.tasks import LabelledText, Task
from minillm.data.templates import Question, Template, task_template
from minillm.errors import InputError
from minillm.lab.asking import AnswerOptions, Answers, accuracies, ask
from minillm.lab.experiment import Experiment, ExperimentOptions, labels, versions
from minillm.lab.lecture import example, lecture_answers
from minillm.lab.prompt_report import accuracy_table, order_table, probabilities, prompt_text, prompt_tokens
from minillm.prompting.choosing import CHOICES, balanced_shots, nearest_shots, ordered_shots, orders, seeded_shots
from minillm.runtime.device import keep_freed_memory
from minillm.runtime.files import write_text
from minillm.runtime.options import Text


@dataclass(kw_only=True)
class Prompt(AnswerOptions, ExperimentOptions):
    """Ask a base by a prompt, with examples or a chain of thought or both, and measure its answers.

    Over a task: accuracy by four measures, before and after contextual calibration. For one --text: each label's
    probability. What all prompts have in common is processed once.
    """

    text: Text | None = None
    """One text to ask about, in place of the task's test rows."""
    example: str | None = None
    """The lecture's own: funny, juggler, colour or cans."""
    shots: int = 0
    """Solved examples in the prompt."""
    choose: str = "balanced"
    """How they are chosen from the training rows: balanced, seed, nearest (to each text) or ordered."""
    pooling: str = "mean"
    """What nearest compares: the mean of a text's features, or the last token's."""
    orders: int = 1
    """Put the same examples in this many orders, and compare."""
    chain: bool = False
    """Ask for a chain of thought before the answer."""
    chat: bool = False
    """As a conversation, in the base's chat template."""
    show_tokens: bool = False
    """Print the tokens of the prompt and of the answers, and what a space at the prompt's end would change."""
    instruction: Text = ""
    """The text at the start of the prompt."""
    out: Path | None = None
    """The directory for prompt.json (default: nothing is written)."""

    def __post_init__(self):
        ExperimentOptions.__post_init__(self)
        AnswerOptions.__post_init__(self)
        own = (self.text, self.prompt, self.labels, self.data, self.instruction, self.shots, self.chain, self.free)
        if self.example is not None and (any(own) or self.samples > 1 or self.orders > 1):
            raise InputError("an example has its own text and templates; only --base and --chat change it")
        if self.text is not None and self.orders > 1:
            raise InputError("several orders are compared over a task's rows and not over one --text")
        if self.choose not in CHOICES:
            raise InputError(f"examples are not chosen by {self.choose!r}; they can be: {', '.join(CHOICES)}")
        if self.shots < 0 or self.orders < 1:
            raise InputError(f"shots is {self.shots} and orders {self.orders}; they are 0 and 1 at least")
        if self.orders > 1 and (self.shots < 2 or self.choose == "nearest"):
            raise InputError("only two examples or more, the same for all texts, have several orders")

    def run(self) -> None:
        keep_freed_memory()
        if self.example is not None:
            written = self.over_example(self.example)
        elif self.text is not None:
            written = self.over_text(self.text)
        else:
            written = self.over_task()
        if self.out is not None:
            path = self.out / "prompt.json"
            described = {**self.described_prompt(), "versions": versions(), **written}
            write_text(path, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
            print(f"\nwritten: {path}")

    def described_prompt(self) -> dict[str, Any]:
        """The options, as prompt.json holds them."""
        names = ("prompt", "labels", "instruction", "shots", "choose", "pooling", "orders", "chain", "chat")
        answers = {option.name: getattr(self, option.name) for option in fields(AnswerOptions)}
        return {"ladder": self.described(), "manner": answers, **{name: getattr(self, name) for name in names}}

    def over_example(self, name: str) -> dict[str, Any]:
        """Print a lecture example's prompts and answers."""
        asked, experiment, found = example(name), self.load(), []
        print(asked.about)
        for answer in lecture_answers(experiment, asked, chat=self.chat):
            found.append(answer.described())
            print()
            self.show(experiment, answer.question, asked.labels or (f" {asked.expected}",))
            print(probabilities(answer.labels) if answer.labels else f"it says: {answer.text.strip()}")
            print(f"answer: {answer.answer or 'none that could be read'} ({asked.expected} is expected)")
        return {"asked": found, "example": name}

    def over_text(self, text: str) -> dict[str, Any]:
        """Ask about one text, and print each label's probability."""
        if self.prompt is not None and self.labels is not None and self.shots == 0:
            template, names = self.dressed(Template(self.prompt)), own_answers(self.labels)
            experiment = self.load()
        else:
            task, experiment = self.load_both()
            template, names = self.templates(experiment, task, [text])[0][0], task.answers
        answers = ask(experiment, [Question(template, text)], names, self)
        self.show(experiment, answers.questions[0], names)
        print(probabilities(answers))
        for title, texts in (("it says", answers.generated), ("the majority says", answers.majority)):
            if texts is not None:
                print(f"{title}: {texts[0].strip()}")
        return {"asked": [described_answers(answers)], "text": text}

    def over_task(self) -> dict[str, Any]:
        """Ask about all test rows, once for every order of the examples, and print the accuracies."""
        measured, written = [], []
        for experiment, answers, found in self.measure():
            measured.append(found)
            written.append({**found, **described_answers(answers)})
            self.show(experiment, answers.questions[0], answers.labels.answers)
            count = len(answers.questions)
            print(f"{probabilities(answers)}\n\nover {count} rows:\n{accuracy_table(found)}\n")
        if len(measured) == 1:
            return {"asked": written}
        over = spread(measured)
        print(f"{len(measured)} orders of the same {self.shots} examples:\n{order_table(measured, over)}")
        return {"asked": written, "spread": over}

    def measure(self) -> Iterator[tuple[Experiment, Answers, dict[str, Any]]]:
        """The answers to all test rows and their accuracies, for each order of the examples."""
        task, experiment = self.load_both()
        texts, targets = [row.text for row in task.test], labels(task.test)
        for templates in self.templates(experiment, task, texts):
            questions = [Question(template, text) for template, text in zip(templates, texts, strict=True)]
            answers = ask(experiment, questions, task.answers, self)
            yield experiment, answers, accuracies(answers, targets)

    def show(self, experiment: Experiment, question: Question, answers: Sequence[str]) -> None:
        print(prompt_text(experiment, question))
        if self.show_tokens:
            print(prompt_tokens(experiment, question, answers))

    def load_task(self) -> Task:
        """The task, with the user's own prompt and labels where they are given."""
        task = ExperimentOptions.load_task(self)
        prompt = self.prompt or task.prompt
        answers = task.answers if self.labels is None else own_answers(self.labels)
        if len(answers) != len(task.answers):
            raise InputError(f"{len(answers)} labels are given for the {len(task.answers)} classes of {task.name}")
        return replace(task, prompt=prompt, answers=answers, cue=task.cue if prompt.endswith(task.cue) else "")

    def load_both(self) -> tuple[Task, Experiment]:
        """The task and the base. Raises InputError for what cannot be asked before the base is loaded."""
        task = self.load_task()
        self.dressed(task_template(task, self.shared_shots(task)[0]))
        return task, self.load()

    def dressed(self, template: Template) -> Template:
        return replace(template, instruction=self.instruction, chain=self.chain, chat=self.chat)

    def shared_shots(self, task: Task) -> list[list[LabelledText]]:
        """The examples that all texts share, in each order. Raises InputError for too few rows."""
        if self.choose == "balanced":
            shots = balanced_shots(task, self.shots, self.seed)
        elif self.choose == "seed":
            shots = seeded_shots(task, self.shots, self.seed)
        else:
            shots = ordered_shots(task, self.shots)
        return orders(shots, self.orders, self.seed)

    def templates(self, experiment: Experiment, task: Task, texts: Sequence[str]) -> list[list[Template]]:
        """The template of every text, for each order of the examples; one order for each text's own nearest ones."""
        if self.choose == "nearest" and self.shots:
            near = nearest_shots(experiment.decoder, experiment.tokenizer, task, texts, self.shots, self.pooling)
            return [[self.dressed(task_template(task, shots)) for shots in near]]
        return [[self.dressed(task_template(task, shots))] * len(texts) for shots in self.shared_shots(task)]


def own_answers(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The user's labels as answers. Raises InputError for fewer than two, for equal and for empty ones."""
    if len(set(labels)) < 2 or not all(labels):
        raise InputError(f"there must be two different labels at least, and none empty, not {', '.join(labels)}")
    return tuple(f" {label}" for label in labels)


def spread(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation of the accuracies of several orders, before and after calibration."""
    measures: dict[str, dict[str, dict[str, float]]] = {}
    for name in found[0]["measures"]:
        for when in ("before", "after"):
            each = [one["measures"][name][when]["accuracy"] for one in found]
            figure = {"mean": statistics.mean(each), "standard_deviation": statistics.stdev(each)}
            measures.setdefault(name, {})[when] = figure
    return measures


def described_answers(answers: Answers) -> dict[str, Any]:
    """The questions and answers, row by row, in JSON's types."""
    before, after = answers.labels.before(), answers.labels.after()
    rows = []
    for index, question in enumerate(answers.questions):
        row: dict[str, Any] = {"text": question.text, "scores": before["acc"][index].tolist()}
        row["calibrated"] = {name: scores[index].exp().tolist() for name, scores in after.items()}
        if answers.generated is not None:
            row["said"] = answers.generated[index]
        if answers.majority is not None:
            row["voted"] = answers.majority[index]
        rows.append(row)
    template = answers.questions[0].template
    return {
        "way": template.name,
        "template": asdict(template),
        "answers": list(answers.labels.answers),
        "tokens_read": answers.labels.tokens,
        "rows": rows,
    }
