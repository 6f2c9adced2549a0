"""`minillm lab forgetting`: what does each method lose of the base's own abilities, and which remedies help?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from minillm.adapt.surgery import frozen
from minillm.data.conversation_tables import lecture
from minillm.data.conversations import EncodedConversation, answered
from minillm.data.templates import task_template
from minillm.data.word_problems import PRETRAINED_FORMS, PRETRAINED_STEPS, exchanges, problems
from minillm.lab.experiment import Experiment
from minillm.lab.pictures import look
from minillm.lab.study import Bench, Settings, Study, Table, Trial, chosen
from minillm.prompting.forgetting import losses, own_text
from minillm.runtime.options import Directory, Names
from minillm.training.loop import FORGETTING_STEPS
from minillm.training.methods import METHODS
from minillm.training.schedule import TrainingSettings

EPOCHS, TRAIN, ROWS = 4, 128, 32
REMEDIES: dict[str, Settings] = {
    "-": {}, "replay": {"replay": 64}, "L2": {"l2_base": 0.01}, "budget": {"forgetting_budget": 0.02}, "rate / 4": {},
}  # fmt: skip


@dataclass(kw_only=True)
class Forgetting(Study):
    """Measure what a model forgets while it is adapted, by method and training step, and compare remedies.

    It is the rise of the loss on text that the base itself sampled and on the answers to word problems and, unless the
    base is tiny, to questions on the lecture.

    Example: minillm lab forgetting --methods full,lora
    """

    methods: Names = ("full", "lora", "last-blocks", "prefix", "soft-prompt", "dora", "pissa", "output", "features")
    """The methods, separated by commas. Remedies are tried with full and lora."""
    out: Directory = Path("forgetting")
    """The directory of the results. Finished trials are not run again."""

    name = "forgetting"

    def __post_init__(self):
        super().__post_init__()
        self.known, self.before = dict[str, list[EncodedConversation]](), dict[str, list[float]]()

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        tried = [(remedy, m) for remedy in REMEDIES for m in self.methods if remedy == "-" or m in ("full", "lora")]
        return [self.settings(method, remedy=remedy, epochs=EPOCHS, train=TRAIN) for remedy, method in tried]

    def measure(self, bench: Bench, settings: Settings) -> dict[str, Any]:
        base, precision, method = bench.experiment.decoder, bench.experiment.precision, settings["method"]
        if not self.known:  # the same for all trials
            self.known = known_texts(bench.experiment, self.base == "tiny")
            self.before = {name: losses(base, rows, precision) for name, rows in self.known.items()}
        # So large a budget measures forgetting, and ends nothing.
        options = {"forgetting_budget": 1e9} if method in METHODS and method != "output" else {}
        options |= settings | REMEDIES[settings["remedy"]]
        if settings["remedy"] == "rate / 4":
            options["learning_rate"] /= 4
        classifier, measured = self.adapted(bench, options, replace(bench.task, validation=[]))
        model: Any = classifier.method_
        if method in ("output", "features"):  # classifiers: their body under the head of the base
            model = frozen(model.decoder)
            model.head = base.head
        for state, at in (("on", model), ("off", base)):
            after = {name: losses(at, rows, precision) for name, rows in self.known.items()}
            measured[state] = {name: rises(rows, self.before[name], after[name]) for name, rows in self.known.items()}
        return measured

    def passes(self, bench: Bench, settings: Settings) -> float:
        """Also over the known texts: twice at the end, and over the base's own text in the training."""
        template, tokenizer = task_template(bench.task), bench.experiment.tokenizer
        row = fmean(len(template.encode(tokenizer, row.text)) for row in bench.task.test)
        tokens = {name: sum(len(one.ids) for one in rows) for name, rows in self.known.items()}
        steps = settings["epochs"] * settings["train"] / TrainingSettings.batch_size
        times = math.ceil(steps / FORGETTING_STEPS)
        during = times * tokens.get("own text", 0) if settings["method"] in METHODS else 0
        return super().passes(bench, settings) + (2 * sum(tokens.values()) + during) / row

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        texts, rows = list(finished[0].measured["on"]), []
        for trial in finished:
            on, off = ([rise(trial.measured[state][name]) for name in texts] for state in ("on", "off"))
            place = trial.settings["method"], trial.settings["remedy"], trial.measured["accuracy"]
            shown = (f"{nats:+.4f} ± {error:.4f}" for nats, error in on)
            rows.append([*place, *shown, f"{max(abs(nats) for nats, _ in off):g}"])
        columns = ("method", "remedy", "accuracy", *texts, "adapter off")
        lost = {
            trial.settings["method"]: rise(trial.measured["on"][texts[0]]) for trial in chosen(finished, remedy="-")
        }
        forgot = [f"{method} {nats:+.3f}" for method, (nats, error) in lost.items() if nats > 2 * error]
        line = f"loses more than two standard errors of its {texts[0]}: {', '.join(forgot) or 'no method'}"
        return [Table("rise of the loss, in nats per token", columns, rows)], [line]

    def picture(self, pyplot: Any, finished: Sequence[Trial]) -> Any:
        figure, axes = pyplot.subplots()
        for trial in chosen(finished, remedy="-"):
            measured, method = trial.measured["chosen"].get("forgetting", {}), trial.settings["method"]
            axes.plot([*map(int, measured)], [*measured.values()], label=method, **look(method)._asdict())
        axes.set(xlabel="training step", ylabel="rise of the loss on own text, nats per token")
        axes.legend()
        return figure


def rises(
    rows: Sequence[EncodedConversation], before: Sequence[float], after: Sequence[float]
) -> list[tuple[float, int]]:
    """The rise of the loss of each text, in nats, and its number of tokens."""
    return [(new - old, len(row.targets)) for row, old, new in zip(rows, before, after, strict=True)]


def rise(rows: Sequence[Sequence[float | int]]) -> tuple[float, float]:
    """The rise of the loss per token, and its standard error over the texts."""
    nats, tokens = np.array(rows, float).T
    mean = nats.sum() / tokens.sum()
    error = math.sqrt(len(rows) / (len(rows) - 1) * ((nats - mean * tokens) ** 2).sum()) / tokens.sum()
    return float(mean), error


def known_texts(experiment: Experiment, tiny: bool) -> dict[str, list[EncodedConversation]]:
    """What a base knows, by name."""
    tokenizer, seed = experiment.tokenizer, experiment.seed
    solved = exchanges(islice(problems(seed, forms=PRETRAINED_FORMS, steps=PRETRAINED_STEPS), ROWS), seed)
    asked = {"word problems": [(tokenizer.prompt(question), answer) for question, answer in solved]}
    if not tiny:
        rows = [row.messages for row in lecture().test[:ROWS]]
        asked["lecture"] = [(tokenizer.chat(messages[:-1]), messages[-1]["content"]) for messages in rows]
    found = {name: [answered(ids, tokenizer.encode(text)) for ids, text in rows] for name, rows in asked.items()}
    return {"own text": own_text(experiment.decoder, tokenizer, experiment.precision, seed), **found}
