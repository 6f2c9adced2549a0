"""Pictures of measurements for a slide: SVG, PNG or PDF, with one colour and one marker per method in all of them."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import one_sentence, unknown
from minillm.runtime.files import replacing
from minillm.runtime.options import Names, RunOptions
from minillm.runtime.progress import duration, note


class Look(NamedTuple):
    """The colour and the marker of a method, in matplotlib's notation."""

    color: str
    marker: str


METHOD_LOOK = {
    "zero-shot": Look("#88CCEE", "o"), "few-shot": Look("#332288", "s"), "soft-prompt": Look("#44AA99", "^"),
    "prefix": Look("#117733", "v"), "features": Look("#999933", "D"), "output": Look("#DDCC77", "P"),
    "last-blocks": Look("#CC6677", "X"), "lora": Look("#882255", "*"), "full": Look("#AA4499", "p"),
    "dora": Look("#000000", "h"), "pissa": Look("#777777", "<"),
}  # fmt: skip
"""Colours that colour-blind people tell apart (Paul Tol's scheme "muted")."""
OTHER = Look("#BBBBBB", "d")
FORMATS = "svg", "png", "pdf"
FIXED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
WIDTH = 7.0
"""Inches: half a slide of 16:9, on which the text below then has 12 points."""
STYLE: dict[Any, Any] = {
    "font.size": 12, "axes.titlesize": 12, "figure.titlesize": 12, "svg.hashsalt": "minillm", "pdf.fonttype": 42,
    "figure.constrained_layout.use": True, "grid.alpha": 0.3, "axes.axisbelow": True, "errorbar.capsize": 3,
    "lines.markersize": 9, "savefig.dpi": 150,
}  # fmt: skip
Picture = Callable[[Any, Mapping[str, Any]], Any]
"""Makes a figure from matplotlib's pyplot and measurements."""


@dataclass(kw_only=True)
class PictureOptions(RunOptions):
    """Options of the picture."""

    format: Names = ("svg", "png")
    """The formats of the picture, separated by commas: svg, png, pdf."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.format:
            if name not in FORMATS:
                raise unknown("format of a picture", name, FORMATS)


def look(method: str) -> Look:
    """The colour and the marker of a method in every picture."""
    return METHOD_LOOK.get(method, OTHER)


def draw(
    picture: Picture, measured: Mapping[str, Any], path: Path, formats: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Save a picture as `path` with the suffix of each format, and return these files.

    Without matplotlib, and where they cannot be written, there are none, with a hint on stderr.
    """
    try:
        import matplotlib
    except ImportError:
        note("no picture: matplotlib is not installed (pip install 'minillm[lab]')")
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = [path.with_name(f"{path.name}.{name}") for name in formats]
    with matplotlib.rc_context(STYLE):
        figure = picture(pyplot, measured)
        try:
            for name, file in zip(formats, files, strict=True):
                with replacing(file) as temporary:
                    figure.savefig(temporary, format=name, metadata=FIXED[name])
        except OSError as problem:
            note(f"no picture: {one_sentence(problem)}")
            return []
        finally:
            pyplot.close(figure)
    return files


def ladder_picture(pyplot: Any, ladder: Mapping[str, Any]) -> Any:
    """A line per method, the best one on top: accuracy, trainable parameters and time."""
    rungs = sorted(ladder["rungs"], key=lambda rung: rung["accuracy"])
    figure, axes = pyplot.subplots(figsize=(WIDTH, 1.9 + 0.36 * len(rungs)))
    columns = {88: "trainable", 160: "time"}
    for line, rung in enumerate(rungs):
        edge = {"markeredgecolor": "black", "markeredgewidth": 0.6, "linestyle": "none"}
        axes.errorbar(rung["accuracy"], line, xerr=rung["standard_error"], **look(rung["name"])._asdict(), **edge)
        trainable = f"{rung['trainable_parameters']:,}" if rung["trainable_parameters"] else "none"
        cells = trainable, duration(rung["train_seconds"] + rung["eval_seconds"])
        for place, cell in zip(columns, cells, strict=True):
            _cell(axes, place, line, cell)
    for place, title in columns.items():
        _cell(axes, place, len(rungs), title)
    axes.set_yticks(range(len(rungs)), [rung["name"] for rung in rungs])
    axes.set_ylim(-0.6, len(rungs) - 0.4)
    axes.grid(axis="x")
    baseline = rungs[0]["majority_baseline"]
    axes.axvline(baseline, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(
        f"accuracy on {ladder['test']} test rows (± standard error)\ndashed: the majority baseline, {baseline:.3f}"
    )
    figure.suptitle(title_of(ladder))
    return figure


def title_of(ladder: Mapping[str, Any]) -> str:
    """The base, the data and the number of training rows, in lines that fit the picture."""
    data = ladder["task"] if ladder["data"] is None else Path(ladder["data"]).name
    return textwrap.fill(f"{ladder['base']} on {data}, {ladder['train']} training rows", 60)


def _cell(axes: Any, place: float, line: float, text: str) -> None:
    """A text that ends `place` points to the right of the axes."""
    axes.annotate(
        text, (1, line), (place, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        va="center", annotation_clip=False,
    )  # fmt: skip


def curve_picture(pyplot: Any, curve: Mapping[str, Any]) -> Any:
    """A plot of the training and the validation loss."""
    figure, axes = pyplot.subplots(figsize=(WIDTH, 4.4))
    axes.plot(range(1, len(curve["losses"]) + 1), curve["losses"], linewidth=0.8, alpha=0.6, label="training")
    axes.plot([m["step"] for m in curve["held_out"]], [m["nats"] for m in curve["held_out"]], "o-", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    axes.set_title(f"{curve['data'] or curve['task']}, depth {curve['depth']}, {curve['parameters']:,} parameters")
    axes.grid()
    axes.legend()
    return figure
