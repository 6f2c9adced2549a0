"""Teaching SmolLM2 what LoRA is: the set `lecture`, prompted and trained, by the perplexity of held-out answers.

The training rows are 120 questions and answers; the test rows ask for half of the answers in other words. Zero-shot
and few-shot train nothing: the examples of few-shot are the first training rows, as earlier turns of the conversation.
The other methods are runs of `minillm adapt --task lecture`. Perplexity is that of the answers' tokens; keyword match
is the share of greedy answers of up to 64 tokens that have all keywords; forgetting is the rise of the loss on the
base's own text, in nats per token. Finished methods are saved under `--out` and not repeated.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from benchmarks.comparison import cores
from benchmarks.reviews import BASE
from benchmarks.sides import run

COLUMNS = {"perplexity": "{:.2f}", "keyword_match": "{:.0%}", "forgetting": "{:+.2f}", "train_seconds": "{:.0f} s"}


def prompted(name: str, shots: int, threads: int, seed: int) -> dict[str, Any]:
    """The measurements of the base, after no examples or some."""
    from minillm.data.conversation_tables import lecture
    from minillm.data.conversations import answered
    from minillm.lab.experiment import DataOptions
    from minillm.lab.free_answers import matches
    from minillm.prompting.fitting import encode_conversations
    from minillm.prompting.forgetting import held_out
    from minillm.prompting.lengths import room
    from minillm.runtime.device import use_threads

    use_threads(threads)
    experiment, task = DataOptions(base=BASE, device="cpu", seed=seed).load(), lecture()
    examples = [message for row in task.train[: shots if name == "few-shot" else 0] for message in row.messages]
    rows = [row._replace(messages=[*examples, *row.messages]) for row in task.test]
    encoded = encode_conversations(experiment.tokenizer, rows, room(experiment.decoder, 0))
    asked = [answered(row.ids[: row.answer], row.ids[row.answer :]) for (row,) in encoded]
    start = time.perf_counter()
    nats = held_out(experiment.decoder, asked, experiment.precision)
    found = matches(experiment, experiment.decoder, task.test, asked, exact=False)
    return {"perplexity": math.exp(nats), **found, "eval_seconds": time.perf_counter() - start}


def trained(name: str, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The measurements of `minillm adapt`."""
    from minillm.lab.adapt import Adapt, adapt

    return adapt(Adapt(base=BASE, task="lecture", method=name, out=out, device="cpu", **options))


def table(found: dict[str, dict[str, Any]]) -> str:
    """A line per method, in the form of a table of Markdown."""
    lines = [["method", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for name, measured in found.items():
        lines.append([name, *(form.format(measured[key]) if key in measured else "-" for key, form in COLUMNS.items())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace("_", " ")


def main(
    methods: str = "zero-shot,few-shot,prefix,lora,full",
    shots: int = 8,
    epochs: int = 3,
    batch_size: int = 8,
    seed: int = 0,
    threads: int = cores(),
    out: Path = Path("lecture_set"),
) -> None:
    """Prompt and train on the set `lecture`, and measure each method once.

    Args:
        methods: zero-shot, few-shot, and methods of `minillm adapt`, comma-separated.
        shots: The examples of few-shot.
        epochs: Epochs of training. The learning rates are the defaults of the methods.
        batch_size: Rows per optimizer step.
        seed: The random seed.
        threads: CPU threads.
        out: Output directory. Finished methods in it are not repeated.
    """
    from minillm.runtime.files import write_text

    found, options = {}, {"threads": threads, "seed": seed}
    for name in methods.split(","):
        path = out / f"{name}.json"
        if not path.exists():
            if name in ("zero-shot", "few-shot"):
                measured = prompted(name, shots, **options)
            else:
                measured = trained(name, out / name, options | {"epochs": epochs, "batch_size": batch_size})
            write_text(path, json.dumps(measured, indent=2) + "\n")
        found[name] = json.loads(path.read_text("utf-8"))
    print(table(found))


if __name__ == "__main__":
    run(main, __doc__)
