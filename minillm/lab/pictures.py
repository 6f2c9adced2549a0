"""Pictures of measurements for a slide: SVG, PNG or PDF, with one colour and one marker per method in all of them."""

import textwrap
import warnings
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
    "zero-shot chain of thought": Look("#0072B2", ">"), "few-shot chain of thought": Look("#D55E00", "H"),
    "self-consistency": Look("#E69F00", "8"),
}  # fmt: skip
"""Colours that colour-blind people tell apart (Paul Tol's scheme "muted"; black, grey; Okabe and Ito's for chains)."""
OTHER = Look("#BBBBBB", "d")
FORMATS = "svg", "png", "pdf"
UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
WIDTH = 7.0
"""Inches: half a slide of 16:9, on which the text below then has 12 points."""
STYLE: dict[Any, Any] = {
    "font.size": 12, "axes.titlesize": 12, "figure.titlesize": 12, "figure.labelsize": 12, "svg.hashsalt": "minillm",
    "figure.constrained_layout.use": True, "grid.alpha": 0.3, "axes.axisbelow": True, "errorbar.capsize": 3,
    "lines.markersize": 9, "savefig.dpi": 150, "pdf.fonttype": 42,
}  # fmt: skip


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
    picture: Callable[[Any, Mapping[str, Any]], Any], measured: Mapping[str, Any], path: Path,
    formats: Sequence[str] = ("svg", "png"),
) -> list[Path]:  # fmt: skip
    """Save the figure that `picture(pyplot, measured)` returns as `path` with the suffix of each format; the files.

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
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a character that the font does not have is drawn as a box
        figure = picture(pyplot, measured)
        try:
            for name, file in zip(formats, files, strict=True):
                with replacing(file) as temporary:
                    figure.savefig(temporary, format=name, metadata=UNDATED.get(name))
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
    baseline, cells = rungs[0]["majority_baseline"], list[tuple[str, str]]()
    dots(axes, [(rung["name"], rung["accuracy"], rung["standard_error"]) for rung in rungs], baseline)
    for rung in rungs:
        trainable = f"{rung['trainable_parameters']:,}" if rung["trainable_parameters"] else "none"
        cells.append((trainable, duration(rung["train_seconds"] + rung["eval_seconds"])))
    right = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "va": "center"}
    for line, row in enumerate([*cells, ("trainable", "time")]):
        for points, cell in zip((88, 160), row, strict=True):
            axes.annotate(cell, (1, line), (points, 0), annotation_clip=False, **right)
    axes.set_xlabel(
        f"accuracy on {ladder['test']} test rows (± standard error)\ndashed: the majority baseline, {baseline:.3f}"
    )
    data = ladder["task"] if ladder["data"] is None else Path(ladder["data"]).name
    title = f"{ladder['base']} on {data}, {ladder['train']} training rows"
    figure.suptitle(textwrap.fill(title, 60), parse_math=False)
    return figure


def dots(axes: Any, points: Sequence[tuple[str, float, float]], baseline: float) -> None:
    """Accuracies with their standard errors, a line per name from the bottom up; the majority baseline is dashed."""
    for line, (name, accuracy, error) in enumerate(points):
        axes.errorbar(accuracy, line, xerr=error, mec="black", mew=0.6, linestyle="none", **look(name)._asdict())
    axes.axvline(baseline, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(points)), [name for name, _, _ in points])
    axes.set_ylim(-0.6, len(points) - 0.4)
    axes.grid(axis="x")


def curve_picture(pyplot: Any, curve: Mapping[str, Any]) -> Any:
    """A plot of the training and the validation loss."""
    figure, axes = pyplot.subplots(figsize=(WIDTH, 4.4))
    axes.plot(range(1, len(curve["losses"]) + 1), curve["losses"], linewidth=0.8, alpha=0.6, label="training")
    axes.plot([m["step"] for m in curve["held_out"]], [m["nats"] for m in curve["held_out"]], "o-", label="validation")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    title = f"{curve['data'] or curve['task']}, depth {curve['depth']}, {curve['parameters']:,} parameters"
    axes.set_title(title, parse_math=False)
    axes.grid()
    axes.legend()
    return figure
