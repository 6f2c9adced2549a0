"""`minillm prompt`: evaluate a prompt template on a task or on one text, with its examples in several orders."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from minillm.data.table_tasks import answers_of
from minillm.data.tasks import LabelledText, Task
from minillm.data.templates import Question, Template, task_template
from minillm.errors import InputError, check_at_least
from minillm.lab.asking import AnswerOptions, Answers, accuracies, ask, prompt_room
from minillm.lab.experiment import DataOptions, Experiment, doubts, labels, versions
from minillm.lab.lecture import EXAMPLES, lecture_answers
from minillm.lab.own_data import report
from minillm.lab.prompt_report import accuracy_table, order_table, probabilities, prompt_text, prompt_tokens
from minillm.prompting.choosing import balanced_shots, nearest_shots, ordered_shots, orders, seeded_shots
from minillm.prompting.lengths import fit, fit_examples
from minillm.runtime.device import keep_freed_memory
from minillm.runtime.files import check_unused
from minillm.runtime.options import Directory, Text
from minillm.runtime.reading import text_or_stdin


@dataclass(kw_only=True)
class Prompt(AnswerOptions, DataOptions):
    """Prompt a model, with examples or a chain of thought, and measure its answers.

    For a task: accuracy by its measures, before and after contextual calibration. For one --text: the probability of
    each label. The common prefix of all prompts is processed once.

    Example: minillm prompt --shots 8 --orders 3
    """

    text: Text | None = None
    """One text to classify, instead of the test rows; - is standard input."""
    example: Literal["funny", "juggler", "colour", "cans"] | None = None
    """An example prompt of the lecture, as it stands."""
    shots: int = 0
    """The number of examples in the prompt."""
    choose: Literal["balanced", "seed", "nearest", "ordered"] = "balanced"
    """How examples are chosen from the training rows: balanced, at random with equal class counts; seed, at random;
    nearest, for each text the most similar; ordered, the first."""
    pooling: Literal["mean", "last"] = "mean"
    """The features for nearest: their mean over the tokens, or those of the last token."""
    orders: int = 1
    """The number of orders of the examples to compare."""
    chain: bool = False
    """Generate a chain of thought before the answer."""
    chat: bool = False
    """Apply the chat template of the base."""
    show_tokens: bool = False
    """Print the tokens of prompt and answers, and the effect of a trailing space."""
    instruction: Text = ""
    """The text at the start of the prompt."""
    out: Directory | None = None
    """The directory of prompt.json; nothing is written if not given."""
    overwrite: bool = False
    """Replace an existing prompt.json."""

    def __post_init__(self):
        DataOptions.__post_init__(self)
        self.text = text_or_stdin(self.text)
        AnswerOptions.__post_init__(self)
        own = (self.text, self.prompt, self.labels, self.data, self.instruction, self.shots, self.chain, self.free)
        if self.example is not None and (any(own) or self.samples > 1 or self.orders > 1):
            raise InputError("--example has its own text and templates; only --base and --chat can be given with it")
        if self.text is not None and self.orders > 1:
            raise InputError("--orders compares accuracies over test rows; it cannot be given with --text")
        if self.channel and (self.chain or self.chat or self.text is not None or self.example is not None):
            raise InputError("--channel compares accuracies over test rows, without --chain and --chat")
        check_at_least(0, shots=self.shots)
        check_at_least(1, orders=self.orders)
        if self.orders > 1 and (self.shots < 2 or self.choose == "nearest"):
            raise InputError(
                "--orders needs at least two examples (--shots) that are the same for all texts (not --choose nearest)"
            )

    def run(self) -> None:
        keep_freed_memory()
        if self.out is not None:
            check_unused(self.out / "prompt.json", self.overwrite)
        if self.example is not None:
            lines, written = self.over_example(self.example)
        elif self.text is not None:
            lines, written = self.over_text(self.text)
        else:
            lines, written = self.over_task()
        described = {**self.described_prompt(), "versions": versions(), **written}
        if self.out is not None:
            self.save(self.out, "prompt.json", json.dumps(described, indent=2, ensure_ascii=False))
            lines.append(f"\nsaved: {self.out / 'prompt.json'}")
        self.show("\n".join(lines), described)

    def described_prompt(self) -> dict[str, Any]:
        """The options in JSON's types."""
        names = ("prompt", "labels", "instruction", "shots", "choose", "pooling", "orders", "chain", "chat")
        answers = {option.name: getattr(self, option.name) for option in fields(AnswerOptions)} | {"seed": self.seed}
        return {"ladder": self.described(), "manner": answers, **{name: getattr(self, name) for name in names}}

    def over_example(self, name: str) -> tuple[list[str], dict[str, Any]]:
        """The prompts and answers of a lecture example, as lines and in JSON's types."""
        asked, experiment, found = EXAMPLES[name], self.load(), []
        lines = [asked.about]
        for answer in lecture_answers(experiment, asked, chat=self.chat):
            found.append(answer.described())
            lines += ["", *self.shown(experiment, answer.question, asked.labels or (f" {asked.expected}",))]
            lines.append(probabilities(answer.labels) if answer.labels else f"output: {answer.text.strip()}")
            lines.append(f"answer: {answer.answer or 'could not be parsed'} (expected: {asked.expected})")
        return lines, {"asked": found, "example": name}

    def over_text(self, text: str) -> tuple[list[str], dict[str, Any]]:
        """The probability of each label for one text."""
        if self.prompt is not None and self.labels is not None and self.shots == 0:
            values = [label.partition("=")[0].strip() for label in self.labels]
            template, names = self.dressed(Template(self.prompt)), answers_of(values, self.labels)
            experiment = self.load()
        else:
            task, experiment = self.load_both()
            template, names = self.templates(experiment, task, [text])[0][0], task.answers
        answers = ask(experiment, self.fitted(experiment, [Question(template, text)], ["--text"], names), names, self)
        lines = [*self.shown(experiment, answers.questions[0], names), probabilities(answers)]
        for title, texts in (("output", answers.generated), ("majority vote", answers.majority)):
            if texts is not None:
                lines.append(f"{title}: {texts[0].strip()}")
        return lines, {"asked": [described_answers(answers)], "text": text}

    def over_task(self) -> tuple[list[str], dict[str, Any]]:
        """The accuracies on all test rows, for each order of the examples."""
        lines, measured, asked = [], [], []
        task, experiment = self.load_both()
        for answers, found in self.measure(task, experiment):
            measured.append(found)
            asked.append({**found, **described_answers(answers)})
            lines += self.shown(experiment, answers.questions[0], answers.labels.answers)
            count = len(answers.questions)
            doubtful = doubts(found["measures"]["acc"]["before"])
            lines.append(f"{probabilities(answers)}\n\n{count} test rows:\n{accuracy_table(found)}")
            lines += [*doubtful, ""]
        written: dict[str, Any] = {"ladder": self.described(task), "asked": asked}
        if len(measured) > 1:
            written["spread"] = spread(measured)
            orders = order_table(measured, written["spread"])
            lines.append(f"{len(measured)} orders of the {self.shots} examples:\n{orders}")
        return lines, written

    def measure(self, task: Task, experiment: Experiment) -> Iterator[tuple[Answers, dict[str, Any]]]:
        """The answers to all test rows and their accuracies, for each order of the examples."""
        texts, targets = [row.text for row in task.test], labels(task.test)
        for templates in self.templates(experiment, task, texts):
            questions = [Question(template, text) for template, text in zip(templates, texts, strict=True)]
            places = [row.place or "a text" for row in task.test]
            questions = self.fitted(experiment, questions, places, task.answers)
            answers = ask(experiment, questions, task.answers, self)
            yield answers, accuracies(answers, targets)

    def fitted(
        self, experiment: Experiment, questions: Sequence[Question], places: Sequence[str], answers: Sequence[str]
    ) -> list[Question]:
        """The questions, with examples and texts cut as --truncate says. Raises InputError for one that is too long."""
        room = prompt_room(experiment, questions[0].template, answers, self)
        templates = {
            template: fit_examples(experiment.tokenizer, template, room, self.truncate)
            for template in dict.fromkeys(question.template for question in questions)
        }
        questions = [question._replace(template=templates[question.template]) for question in questions]
        return fit(experiment.tokenizer, questions, [room] * len(questions), self.truncate, places)[0]

    def shown(self, experiment: Experiment, question: Question, answers: Sequence[str]) -> list[str]:
        """The prompt, and its tokens if requested."""
        tokens = [prompt_tokens(experiment, question, answers)] if self.show_tokens else []
        return [prompt_text(experiment, question), *tokens]

    def load_task(self) -> Task:
        """The task, with the user's own prompt and labels if given."""
        task = self.given_task()
        if self.data is not None:
            return task
        prompt, answers = self.prompt or task.prompt, answers_of([one.strip() for one in task.answers], self.labels)
        return replace(task, prompt=prompt, answers=answers, cue=task.cue if prompt.endswith(task.cue) else "")

    def load(self) -> Experiment:
        experiment = super().load()
        if self.chat:
            experiment.tokenizer.check_template()
        return experiment

    def load_both(self) -> tuple[Task, Experiment]:
        """The task and the base. Raises InputError for invalid options before the base is loaded."""
        task = self.load_task()
        self.dressed(task_template(task, self.shared_shots(task)[0]))
        experiment = self.load()
        report(task)
        return task, experiment

    def dressed(self, template: Template) -> Template:
        return replace(template, instruction=self.instruction, chain=self.chain, chat=self.chat)

    def shared_shots(self, task: Task) -> list[list[LabelledText]]:
        """The examples for all texts, in each order. Raises InputError for too few rows."""
        choose = {"balanced": balanced_shots, "seed": seeded_shots}.get(self.choose, ordered_shots)
        return orders(choose(task, self.shots, self.seed), self.orders, self.seed)

    def templates(self, experiment: Experiment, task: Task, texts: Sequence[str]) -> list[list[Template]]:
        """The template of each text, for each order of the examples."""
        if self.choose == "nearest" and self.shots:
            near = nearest_shots(experiment.decoder, experiment.tokenizer, task, texts, self.shots, self.pooling)
            return [[self.dressed(task_template(task, shots)) for shots in near]]
        return [[self.dressed(task_template(task, shots))] * len(texts) for shots in self.shared_shots(task)]


def spread(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation of the accuracies over the orders, before and after calibration."""

    def figure(name: str, when: str) -> dict[str, float]:
        each = [one["measures"][name][when]["accuracy"] for one in found]
        return {"mean": statistics.mean(each), "standard_deviation": statistics.stdev(each)}

    return {name: {when: figure(name, when) for when in ("before", "after")} for name in found[0]["measures"]}


def described_answers(answers: Answers) -> dict[str, Any]:
    """The questions and answers of each row, in JSON's types."""
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
