"""A ladder as a table to read and as a picture to look at."""

from pathlib import Path
from typing import Any

COLUMNS = ("technique", "place in figure 1", "trainable", "to publish", "accuracy", "train", "eval", "tokens/s", "peak")


def table(ladder: dict[str, Any]) -> str:
    """The rungs in aligned columns: parameters, bytes, accuracy with its standard error, seconds, tokens/s, memory."""
    rows = [COLUMNS, *(_cells(rung) for rung in ladder["rungs"])]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    lines = ["  ".join(_align(cell, width, index) for index, (cell, width) in enumerate(zip(row, widths, strict=True)))
             for row in rows]  # fmt: skip
    return "\n".join([lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])])


def _cells(rung: dict[str, Any]) -> tuple[str, ...]:
    peak = rung["peak_memory_bytes"]
    return (
        rung["technique"],
        rung["place"],
        f"{rung['trainable_parameters']:,}",
        in_bytes(rung["stored_bytes"]),
        f"{rung['accuracy']:.3f} ± {rung['standard_error']:.3f}",
        f"{rung['train_seconds']:.1f} s",
        f"{rung['eval_seconds']:.1f} s",
        f"{rung['tokens_per_second']:,.0f}",
        "-" if peak is None else in_bytes(peak),
    )


def _align(cell: str, width: int, index: int) -> str:
    return cell.ljust(width) if index < 2 else cell.rjust(width)


def in_bytes(count: int | float) -> str:
    """A number of bytes in the unit that reads best: 0, 4.6 kB, 1.8 MB, 2.1 GiB."""
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB" if count < 2**29 else f"{count / 2**30:.2f} GiB"


def picture(ladder: dict[str, Any], path: Path) -> None:
    """Accuracy against trainable parameters, and against time, as a PNG. Needs matplotlib (ImportError without)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (parameters, time) = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for rung in ladder["rungs"]:
        seconds = rung["train_seconds"] + rung["eval_seconds"]
        for axes, place in ((parameters, max(rung["trainable_parameters"], 1)), (time, seconds)):
            error = rung["standard_error"]
            axes.errorbar(place, rung["accuracy"], yerr=error, fmt="o", capsize=3, markersize=7)
            axes.annotate(rung["name"], (place, rung["accuracy"]), (6, 6), textcoords="offset points")
    parameters.set_xscale("log")
    parameters.set_xlim(0.5, 10 ** (len(str(max(r["trainable_parameters"] for r in ladder["rungs"]))) + 1))
    parameters.set_xlabel("trainable parameters (nothing trained: 1)")
    time.set_xlabel("seconds to train and to score the test rows")
    parameters.set_ylabel(f"accuracy on {ladder['test']} test rows (± standard error)")
    for axes in (parameters, time):
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{ladder['base']} on {ladder['data'] or ladder['task']}, {ladder['train']} training rows")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
