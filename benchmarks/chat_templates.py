"""Rendering a chat template: in the worker process with its limits, next to jinja2's sandbox in this process."""

from functools import partial
from json import dumps
from pathlib import Path
from statistics import median
from timeit import repeat

from jinja2.sandbox import ImmutableSandboxedEnvironment

from benchmarks.sides import run
from minillm.chat_template import render
from minillm.runtime.files import write_text

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
GIVEN = {"messages": [{"role": role, "content": "How do I adapt a model? " * 10} for role in ("user", "assistant") * 3]}


def main(rounds: int = 5, times: int = 1000, json: Path | None = None) -> None:
    """Six messages in ChatML.

    Args:
        rounds: Turns of each side; the median counts.
        times: Renderings per turn.
        json: Write the seconds here.
    """
    alone = partial(ImmutableSandboxedEnvironment().from_string(CHATML).render, **GIVEN)
    sides = {"worker": partial(render, CHATML, GIVEN), "jinja2": alone}
    found = {name: median(repeat(side, repeat=rounds, number=times)) for name, side in sides.items()}
    for name, seconds in found.items():
        print(f"{name:10}{seconds:8.3f} s for {times:,} renderings")
    if json is not None:
        write_text(json, dumps(found) + "\n")


if __name__ == "__main__":
    run(main, __doc__)
