"""`minillm plan`: what an adaptation takes before it is run, measured by short ones of one batch.

The longest rows give the peak memory. Rows of all lengths give the time of the first epoch, and that of two epochs the
time of the others, in which the states of frozen layers are known.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm.data.conversations import Conversations
from minillm.data.tasks import Task
from minillm.lab.adapt import Adapt, Output, to_answers, to_labels
from minillm.runtime.device import keep_freed_memory, peak_memory, pick_device, use_threads
from minillm.runtime.options import Directory
from minillm.runtime.progress import duration
from minillm.training.methods import METHODS

Data = TypeVar("Data", bound=Task | Conversations)
MOMENTS = 2
"""AdamW keeps two numbers per trained weight, besides its gradient."""
aten = torch.ops.aten
KNOWN = {
    aten.addmm_: aten.addmm,
    aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
}
"""Operations that torch's counter leaves out, and those with the same FLOPs that it knows."""


@dataclass(kw_only=True)
class Plan(Adapt):
    """Estimate parameters, memory, FLOPs and time of an adaptation, with the options of adapt; nothing is saved.

    Example: minillm plan --method full --epochs 3
    """

    out: Directory = Path("plan")
    """The directory that adapt would write."""

    def run(self) -> None:
        keep_freed_memory()
        found = plan(self)
        lines = [
            f"{name.replace('_', ' ').removesuffix(' seconds')}: {_shown(name, value)}" for name, value in found.items()
        ]
        self.show("\n".join(lines), found)


def plan(options: Adapt) -> dict[str, Any]:
    """The sizes and the estimates. Raises InputError for data or options that adapt would refuse."""
    use_threads(options.threads)
    task, trains = options.load_data(), options.method in METHODS
    epochs = (options.epochs or METHODS[options.method].epochs) if trains else 1
    batch = min(options.batch_size, len(task.train))
    long, usual = part(task, batch, longest=True), part(task, batch)
    with flop_counter() as counter:
        measure(options, long, 1)
    peak = peak_memory(pick_device(options.device))
    flops = counter.get_total_flops() * _size(usual.train) / _size(long.train)
    first, later = measure(options, usual, 1), 0.0
    if epochs > 1:
        later = max(measure(options, usual, 2)["train_seconds"] - first["train_seconds"], 0.0)
    scored = first["eval_seconds"] / min(batch, len(task.test))
    train = len(task.train) / batch * (first["train_seconds"] + (epochs - 1) * later)
    if not trains:  # the time of a linear probe on stored features hardly depends on the rows
        train = first["train_seconds"] + scored * (len(task.train) - batch)
    validation = scored * len(task.validation) * (epochs if epochs > 1 else not trains)
    trained = first["trainable_parameters"]
    return {
        "method": options.method, "base": options.base,
        **{f"{part}_rows": len(getattr(task, part)) for part in ("train", "validation", "test")},
        "epochs": epochs, "trainable_parameters": trained, "adapter_bytes": first["stored_bytes"],
        "gradient_and_optimizer_bytes": 4 * trained * (1 + MOMENTS) * trains, "peak_memory_bytes": peak,
        "training_flops": round(flops * epochs * len(task.train) / batch),
        "train_seconds": train, "validation_seconds": validation, "test_seconds": scored * len(task.test),
    }  # fmt: skip


def flop_counter() -> FlopCounterMode:
    """torch's counter, which also counts the products of our training. Attention counts its masked scores too."""
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= {packet: counter.flop_registry[known] for packet, known in KNOWN.items()}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        packet = torch.ops.mkldnn._linear_pointwise
        counter.flop_registry[packet] = lambda x, weight, *_, **__: 2 * x.numel() * len(weight)
    return counter


class Unsaved(Output):
    """An output that writes nothing."""

    def __init__(self, options: Adapt, checkpoints: Any):
        self.options, self.checkpoints = options, checkpoints and replace(checkpoints, directory=options.out)

    def save(self, write: Callable[[Path], None]) -> None:
        pass


def part(task: Data, count: int, longest: bool = False) -> Data:
    """A task with so many training and test rows: the longest, or rows of all lengths; labels have two classes."""

    def rows(all_rows: list[Any], count: int) -> list[Any]:
        ordered = sorted(all_rows, key=lambda row: len(str(row)))
        step = 1 if longest else len(ordered) / max(1, min(count, len(ordered)))
        found = [ordered[-1 - int(n * step)] for n in range(min(count, len(ordered)))]
        two = list({getattr(row, "label", 0): row for row in ordered}.values())[:2]
        return [*two, *found[len(two) :]]

    parts = {"train": rows(task.train, count), "validation": rows(task.validation, 2), "test": rows(task.test, count)}
    return replace(task, **parts)


def measure(options: Adapt, task: Task | Conversations, epochs: int, checkpoints: Any = None) -> dict[str, Any]:
    """The measurements of an adaptation to a part of a task; its training hands itself to the checkpoints."""
    given = {"epochs": epochs, "patience": None} if options.method in METHODS else {}
    with TemporaryDirectory() as out:  # for features, which another measurement must not find
        output = Unsaved(replace(options, out=Path(out), **given), checkpoints)
        return to_answers(output, task) if isinstance(task, Conversations) else to_labels(output, task)


def _size(rows: list[Any]) -> int:
    return sum(len(str(row)) for row in rows)


def _shown(name: str, value: Any) -> str:
    if name.endswith("_seconds"):
        return f"about {duration(value)}"
    return f"{value:.3g}" if name == "training_flops" else f"{value:,}" if isinstance(value, int) else str(value)
