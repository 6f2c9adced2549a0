"""The curve of a pretraining run as a picture, and a measurement as a line."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE, PICTURE = "curve.json", "curve.png"


def describe(measured: Mapping[str, Any]) -> str:
    """A measurement in a line, and the sample under it."""
    sample = " ".join(measured["sample"].split())
    return (
        f"step {measured['step']}: held out {measured['nats']:.3f} nats a token, "
        f"{measured['bits_per_byte']:.3f} bits a byte\n  {sample[:160]}"
    )


def draw(out: Path) -> None:
    """The curve's picture beside its JSON; without matplotlib, a line that says how to get it."""
    try:
        picture(json.loads((out / CURVE).read_text("utf-8")), out / PICTURE)
    except ImportError:
        print("no picture: matplotlib is missing (pip install 'minillm[lab]')", file=sys.stderr)


def picture(curve: Mapping[str, Any], path: Path) -> None:
    """The loss of every step and of the held-out text, as a PNG. Needs matplotlib (ImportError without)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    steps: Sequence[int] = range(1, len(curve["losses"]) + 1)
    axes.plot(steps, curve["losses"], linewidth=0.8, alpha=0.6, label="training")
    axes.plot([m["step"] for m in curve["held_out"]], [m["nats"] for m in curve["held_out"]], "o-", label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_title(f"{curve['data'] or curve['task']}, depth {curve['depth']}, {curve['parameters']:,} parameters")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
