"""`minillm report`: the results of a run as one HTML page, which loads nothing.

`report.html` is the template. Texts and pictures are untrusted: the former are escaped, the latter are images, in which
no script runs, and the Content-Security-Policy allows the page's own script only, by its sha256.
"""

import hashlib
import math
import statistics
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from minillm.errors import InputError
from minillm.lab.experiment import ROWS
from minillm.lab.pictures import look
from minillm.lab.report import in_bytes
from minillm.lab.statistics import confusion
from minillm.runtime.files import write_text
from minillm.runtime.options import RUN, Positional, PrintOptions
from minillm.runtime.reading import read_bytes, read_json, reading

PAGE, HERE = "report.html", Path(__file__).parent
OTHER_FILES = (RUN, ROWS, "adapter.json", "classifier.json", "config.json", "tokenizer.json")
PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
LARGEST, LONGEST = 4 * 2**20, 1000
"""Bytes of a picture, and characters of a text: limits of what a page shows, so that a browser can open it."""
MOST_METHODS, MOST_CURVES, MOST_MISTAKES, MOST_LINES, MOST_COLUMNS, MOST_POINTS = 24, 48, 100, 1000, 60, 300
Rows = Sequence[Mapping[str, Any]]
TITLES = {
    "rungs": "Results by method", "trials": "Trials", "pairs": "Differences between methods", "ways": "Strategies",
    "chain_less_direct": "Effect of the chain of thought", "samples": "Answers before and after",
}  # fmt: skip


@dataclass(kw_only=True)
class Report(PrintOptions):
    """Write DIR/report.html, one page of a run of ladder, adapt or lab: figure 1, plots, tables and wrong answers.

    It loads nothing from elsewhere, and can be sent and printed. An earlier report in the directory is replaced.

    Example: minillm report ladder
    """

    directory: Positional[Path]
    """The directory of the run."""

    def run(self) -> None:
        path = self.directory / PAGE
        write_text(path, page(self.directory))
        self.show(f"saved: {path}", {"report": str(path)})


def page(directory: Path) -> str:
    """The page of all runs in a directory. Raises InputError if there is none, or for a damaged file."""
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give the directory of a run of ladder, adapt or lab")
    found = {path: read_json(path) for path in sorted(directory.glob("*.json")) if path.name not in OTHER_FILES}
    found = {path: run for path, run in found.items() if run.keys() & {"rungs", "trials", "ways", "method"}}
    if not found:
        raise InputError(f"{directory} has no results of ladder, adapt or lab; give the directory of such a run")
    rows, runs = read_json(directory / ROWS) if (directory / ROWS).exists() else {}, []
    for path, run in found.items():
        with reading(path, "the results of a run"):
            runs.append(_shown(path.stem, run, rows))
    environment = ImmutableSandboxedEnvironment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["sha256"] = lambda text: b64encode(hashlib.sha256(text.encode()).digest()).decode()
    figure, template = ((HERE / name).read_text("utf-8") for name in ("figure_1.svg", PAGE))
    with reading(directory, "the results of a run"):
        given = {"runs": runs, "rows": rows, "pictures": pictures(directory), "directory": directory}
        return environment.from_string(template).render(figure=figure, plot=plot, **given)


def _shown(name: str, run: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a run."""
    measured = _measured(run)
    tables = [_records(title, run[key]) for key, title in TITLES.items() if isinstance(run.get(key), list)]
    tables += [_table(one["title"], one["columns"], one["rows"]) for one in run.get("tables", [])]
    few = measured if len(measured) <= MOST_METHODS else []
    guessed = [one for one in few if len(one.get("predicted", [])) == len(rows.get("labels", [])) > 0]
    return {
        "name": name, "run": run, "facts": {**run.get("ladder", {}), **run.get("options", {}), **run},
        "methods": list(dict.fromkeys(one["method"] for one in measured)), "tables": tables,
        "plotted": few, "curves": [curve for one in measured[:MOST_LINES] for curve in _curves(one)][:MOST_CURVES],
        "confusions": confusions(guessed, rows), "guessed": guessed, "mistakes": mistakes(guessed, rows),
    }  # fmt: skip


def _measured(run: Mapping[str, Any]) -> Rows:
    """The rungs of a ladder, the trials of an experiment, or the one method of `adapt`, with names and methods."""
    if "trials" in run:
        named = [(", ".join(f"{key} {value}" for key, value in one["settings"].items()), one) for one in run["trials"]]
        return [{"method": "", **one["settings"], **one["measured"], "name": name} for name, one in named]
    rungs = run["rungs"] if "rungs" in run else [{"name": run["method"], **run}] if "method" in run else []
    return [{"method": rung["name"], **rung} for rung in rungs]


def _records(title: str, records: Rows) -> dict[str, Any]:
    """A table of the numbers and texts in a list of records; an accuracy is shown with its standard error."""
    flat = [{**one.get("settings", {}), **one.get("measured", {}), **one} for one in records[:MOST_LINES]]
    for one in flat:
        if "accuracy" in one and "standard_error" in one:
            one["accuracy"] = one["accuracy"], one.pop("standard_error")
    names = dict.fromkeys(key for one in flat for key, value in one.items() if not isinstance(value, (list, dict)))
    columns = list(names)[:MOST_COLUMNS]
    return {**_table(title, columns, [[one.get(name) for name in columns] for one in flat]), "count": len(records)}


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    cells = [[_cell(*pair) for pair in zip(row, columns, strict=True)] for row in rows[:MOST_LINES]]
    return {"title": title, "columns": columns, "rows": cells, "count": len(rows)}


def _cell(value: Any, name: str) -> tuple[str, float | int | None]:
    """The text of a value, or of a pair with its standard error, in a column; and the number to sort by."""
    if isinstance(value, tuple):
        return f"{value[0]:.3f} ± {value[1]:.3f}", value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)[:LONGEST], None
    if name.endswith("_bytes"):
        return in_bytes(value), value
    if name.endswith("seconds"):
        return f"{value:.1f} s", value
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}", value


def plot(key: str, rows: Rows) -> dict[str, Any] | None:
    """A dot per method with its standard error (over the seeds), in percent of the width; parameters in log scale."""
    shown = [one for one in rows if isinstance(one.get(key), (int, float))]
    if len(shown) < 2:
        return None
    scale, is_accuracy = math.log1p if key == "trainable_parameters" else float, key == "accuracy"
    seeds = ([run[key] for run in one.get("runs", []) if key in run] for one in shown)
    errors = [statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0 for values in seeds]
    errors = [one.get("standard_error", 0) for one in shown] if is_accuracy else errors
    pairs = [(one[key], error) for one, error in zip(shown, errors, strict=True)]
    baseline = shown[0].get("majority_baseline", pairs[0][0]) if is_accuracy else 0
    spans = [[scale(value + sign * error) for sign in (0, -1, 1)] for value, error in [*pairs, (baseline, 0)]]
    lowest, highest = min(map(min, spans)), max(map(max, spans))
    places = [[round(4 + 92 * (one - lowest) / (highest - lowest or 1), 2) for one in span] for span in spans]
    texts = [_cell(pair if is_accuracy else pair[0], key)[0] for pair in pairs]
    looks = [(one["name"], look(one["method"]).color) for one in shown]
    dots = [(*name, *span, text) for name, span, text in zip(looks, places[:-1], texts, strict=True)]
    return {"dots": dots, "baseline": places[-1][0] if is_accuracy else None}


def _curves(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lists of numbers among measurements, such as losses and spectra, as the points of a line."""
    for key, values in {**one.get("chosen", {}), **one.get("spectra", {}), **one}.items():
        if isinstance(values, dict) and all(map(str.isdigit, values)):  # by training step
            values = list(values.values())
        numbers = isinstance(values, list) and set(map(type, values)) <= {int, float}
        if not numbers or len(values) < 3 or key in ("predicted", "confidence", "right"):
            continue
        lowest, width = min(values), max(values) - min(values) or 1
        few = range(0, len(values), -(-len(values) // MOST_POINTS))
        points = [f"{300 * n / (len(values) - 1):.1f},{100 - 100 * (values[n] - lowest) / width:.1f}" for n in few]
        ends = f"{len(values)} values: first {values[0]:.4g}, lowest {lowest:.4g}, last {values[-1]:.4g}"
        yield {"title": f"{one['name']}: {key}", "points": points, "color": look(one["method"]).color, "ends": ends}


def confusions(guessed: Rows, rows: Mapping[str, Any]) -> list[list[list[int]]]:
    """For each method the number of test rows by label and predicted answer; none for more than 20 answers."""
    classes = len(rows.get("answers", []))
    shown = guessed if classes <= 20 else []
    return [one.get("confusion") or confusion(rows["labels"], one["predicted"], classes) for one in shown]


def mistakes(guessed: Rows, rows: Mapping[str, Any]) -> list[tuple]:
    """The test rows that a method answers wrongly, those that most methods get wrong first."""
    answers, found = dict(enumerate(rows.get("answers", []))), []
    for n, (text, label) in enumerate(zip(rows.get("texts", []), rows.get("labels", []), strict=True)):
        given = [(one["predicted"][n], one["confidence"][n]) for one in guessed]
        cells = [(answers[answer], share, answer == label) for answer, share in given]
        found.append((sum(not right for *_, right in cells), str(text)[:LONGEST], answers[label], cells))
    return sorted((one for one in found if one[0]), key=lambda one: one[0], reverse=True)[:MOST_MISTAKES]


def pictures(directory: Path) -> dict[str, tuple[str, str]]:
    """The kind and the base64 of the pictures by their names; of a PNG and an SVG with one name, of the SVG."""
    paths = {path.stem: path for suffix in PICTURES for path in sorted(directory.glob(f"*{suffix}"))}
    return {name: (PICTURES[one.suffix], b64encode(read_bytes(one, LARGEST)).decode()) for name, one in paths.items()}
