"""`minillm lab inits`: where should a soft prompt or a prefix start? (Lester et al. 2021; Li & Liang 2021, section 7.4)

One that starts from solved examples is a few-shot prompt before its training (law 9).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from minillm.adapt import Method, PrefixTuning, SoftPrompt
from minillm.classifier import TextClassifier
from minillm.data.templates import task_template
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.lab.crossed import SEEDS, Crossed
from minillm.lab.experiment import judged, labels
from minillm.lab.study import Bench, Settings, Table, Trial, shots
from minillm.prompting.choosing import balanced_shots
from minillm.runtime.options import Directory, Names
from minillm.training.methods import LENGTH, Base, instruction, on_lowered_base

KINDS = {"soft-prompt": SoftPrompt, "prefix": PrefixTuning}
TEXTS = ("text", "answers", "instruction", "examples")
STARTS = {"soft-prompt": ("random", "vocabulary", *TEXTS), "prefix": ("random", "zero", "gated", *TEXTS)}


@dataclass(kw_only=True)
class Inits(Crossed):
    """Compare the starts of soft prompts and prefixes, before and after the training.

    Example: minillm lab inits --methods prefix
    """

    methods: Names = ("soft-prompt", "prefix")
    """soft-prompt, prefix or both."""
    out: Directory = Path("inits")
    """The directory of the results. Finished trials are not run again."""

    name, row = "inits", "start"

    def __post_init__(self):
        super().__post_init__()
        if other := set(self.methods) - STARTS.keys():
            raise InputError(f"the methods of inits are {' and '.join(STARTS)}, got {', '.join(sorted(other))}")

    def plan(self, finished: Sequence[Trial]) -> list[Settings]:
        starts = [(method, start) for method in self.methods for start in STARTS[method]]
        return [self.settings(method, start=start, seed=n) for n in range(SEEDS) for method, start in starts]

    def classifier(self, *arguments: Any) -> "Started":
        return Started(**super().classifier(*arguments).get_params())

    def measure(self, bench: Bench, settings: Settings) -> dict[str, Any]:
        start, ids = settings["start"], bench.experiment.tokenizer.encode(start_text(bench, settings))
        init = {"gated": True} if start == "gated" else {"init": ids if start in TEXTS else start}
        length = len(ids) if start == "examples" else LENGTH
        make = partial(KINDS[settings["method"]], length=length, **init)
        classifier, measured = self.adapted(bench, settings | {"make": make})
        classifier._prepare(bench.task)  # builds the method again, untrained
        scores = classifier.score_rows(bench.task.test).scores
        return measured | {"untrained": judged(scores, labels(bench.task.test))}

    def conclude(self, finished: Sequence[Trial]) -> tuple[list[Table], list[str]]:
        before = [trial._replace(measured=trial.measured["untrained"]) for trial in finished]
        (untrained,), _ = super().conclude(before)
        (trained,), _ = super().conclude(finished)
        return [untrained._replace(title="accuracy before the training"), trained], []


@dataclass(kw_only=True, eq=False)
class Started(TextClassifier):
    """A classifier with a soft prompt or prefix that `make` builds."""

    make: Callable[..., Method] = SoftPrompt

    def _adapted(self, decoder: Decoder) -> Method | Decoder:
        torch.manual_seed(self.seed)
        return on_lowered_base(self.method, decoder, self.precision_, self.make)


def start_text(bench: Bench, settings: Settings) -> str:
    """A text of the task, its answers, an instruction that names them, or the solved examples of few-shot."""
    (decoder, tokenizer), task = (bench.experiment.decoder, bench.experiment.tokenizer), bench.task
    answers = [tokenizer.encode(answer) for answer in task.answers]
    examples = task_template(task, balanced_shots(task, shots(task), settings["seed"])).render("")
    texts = {
        "text": task.train[0].text, "answers": "".join(task.answers),
        "instruction": instruction(Base(decoder, tokenizer, answers)),
        "examples": examples.removesuffix(task_template(task).render("")),
    }  # fmt: skip
    return texts.get(settings["start"], "")
