"""`minillm adapt`: one method, one base, one task; what comes out is an adapter and its figures."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minillm.adapt import Adaptation
from minillm.data.exchanges import Exchanges, table_exchanges
from minillm.errors import InputError
from minillm.lab.climbing import features
from minillm.lab.generative import adapt_to_answers
from minillm.lab.ladder import LadderSettings, bench, world
from minillm.lab.rungs import TRAINED, Options, climb_by_training
from minillm.lab.statistics import standard_error
from minillm.lab.world import Bench, Keep, World, count, labels, size
from minillm.prompting.scoring import accuracy
from minillm.runtime.files import check_directory, write_text


@dataclass(frozen=True)
class AdaptSettings:
    """What is adapted to what (as a ladder says it), how, and the columns of free answers if they are free."""

    ladder: LadderSettings
    method: str
    options: Options
    prompt_column: str | None = None
    answer_column: str | None = None


FIGURES = "adapt.json"
METHODS = ("features", *TRAINED)


def adapt_to_labels(world: World, method: str, options: Options) -> dict[str, Any]:
    """Adapt to labelled text and save the adapter in `world.out`. Raises InputError for an unknown method."""
    _check(method)
    keep = _keeper(world)
    outcome = features(world, method, keep) if method == "features" else climb_by_training(world, method, options, keep)
    share = accuracy(outcome.scores, labels(world.task.test))
    return {
        "method": method,
        "accuracy": share,
        "standard_error": standard_error(share, len(world.task.test)),
        "trainable_parameters": outcome.trainable_parameters,
        "stored_bytes": outcome.stored_bytes,
        "train_seconds": outcome.train_seconds,
        "eval_seconds": outcome.eval_seconds,
        "chosen": outcome.chosen,
    }


def adapt_to_exchanges(bench: Bench, task: Exchanges, method: str, options: Options) -> dict[str, Any]:
    """Adapt to free answers and save the adapter in `bench.out`. Raises InputError for a method that cannot answer."""
    _check(method)
    if method == "features":
        raise InputError(f"a classifier has no free answers; of the methods these have: {', '.join(TRAINED)}")
    recipe = TRAINED[method]
    made = recipe.method(bench, options)(bench.working_body() if recipe.lower else bench.decoder)
    answered = adapt_to_answers(bench, task, made, recipe.settings(bench, options), method, _keeper(bench))
    return {
        "method": method,
        "trainable_parameters": count(made.trainable()),
        "stored_bytes": size(made.state()),
        **asdict(answered),
    }


def _keeper(bench: Bench) -> Keep:
    """Saves an adapter: when it is trained, and before its figures are there; or when its training is interrupted."""

    def keep(method: Adaptation) -> None:
        # Those of another adapter, which stood here before.
        (bench.out / FIGURES).unlink(missing_ok=True)
        method.save(bench.out, tokenizer=bench.tokenizer)
        print(f"the adapter is saved as far as it is trained: {bench.out}", file=sys.stderr)

    return keep


def _check(method: str) -> None:
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; there are: {', '.join(METHODS)}")


def adapt_base(settings: AdaptSettings, out: Path) -> dict[str, Any]:
    """Adapt, save the adapter and its figures in `out`. Raises InputError before anything is written or trained."""
    _check(settings.method)
    check_directory(out)
    if settings.prompt_column is None and settings.answer_column is None:
        figures = adapt_to_labels(world(settings.ladder, out), settings.method, settings.options)
    else:
        task = _exchanges(settings)
        figures = adapt_to_exchanges(bench(settings.ladder, out), task, settings.method, settings.options)
    write_text(out / FIGURES, json.dumps(json.loads(json.dumps(asdict(settings))) | figures, indent=2) + "\n")
    return figures


def _exchanges(settings: AdaptSettings) -> Exchanges:
    ladder = settings.ladder
    if ladder.data is None or settings.prompt_column is None or settings.answer_column is None:
        raise InputError("free answers need all three: data, a prompt column and an answer column")
    if "{text}" not in ladder.prompt:
        raise InputError(f"the prompt {ladder.prompt!r} has no {{text}}, where what is asked would go")
    return table_exchanges(
        Path(ladder.data), prompt_column=settings.prompt_column, answer_column=settings.answer_column,
        template=ladder.prompt, train=ladder.train, test=ladder.test,
    )  # fmt: skip
