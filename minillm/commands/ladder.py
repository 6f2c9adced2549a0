"""`minillm ladder`: every way to adapt, compared."""

import sys
from pathlib import Path


def ladder(
    base: str = "smollm2-135m-instruct",
    task: str = "reviews",
    rungs: str = "zero-shot,few-shot,features,lora,full",
    train: int = 500,
    test: int = 400,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    out: Path = Path("ladder"),
    data: Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    prompt: str | None = None,
    labels: str | None = None,
    fresh: bool = False,
) -> None:
    """Adapt a base to a task in every way, and compare: a table, ladder.json and ladder.png.

    LoRA trains for two epochs and full fine-tuning for one. What is chosen is chosen on validation rows.

    Args:
        base: A pulled name, a directory in Hugging Face's layout, a .gguf file, or tiny (trained here, no download).
        task: The labelled text: reviews, or word_problems (generated).
        rungs: Which techniques, comma-separated: zero-shot, few-shot, soft-prompt, prefix, features, output,
            last-blocks, lora, full; or all.
        train: Training rows.
        test: Test rows.
        seed: The seed of all that is random.
        device: auto, cpu, cuda or mps.
        threads: CPU threads (default: one a core).
        out: The directory for what is written. Finished rungs in it are not climbed again.
        data: Your own labelled text, a .csv or .jsonl file, in the task's place.
        text_column: The column of the text in it.
        label_column: The column of the label in it.
        prompt: The prompt around your text, with {text} in it.
        labels: The answers for the label column's values in sorted order, comma-separated (default: the values).
        fresh: Climb all rungs again.
    """
    from minillm.data.reviews import PROMPT
    from minillm.lab.ladder import LadderSettings, climb
    from minillm.lab.report import table
    from minillm.runtime.device import use_threads

    settings = LadderSettings(
        base=base,
        task=task,
        train=train,
        test=test,
        seed=seed,
        device=device,
        threads=use_threads(threads),
        data=None if data is None else str(data),
        text_column=text_column,
        label_column=label_column,
        prompt=PROMPT if prompt is None else prompt.replace("\\n", "\n"),
        labels=None if labels is None else tuple(label.strip() for label in labels.split(",")),
    )
    finished = []
    try:
        for rung, described in climb(rungs, settings, out, fresh):
            finished.append(described)
            _say(rung)
    finally:
        if finished:
            print(table(finished[-1]))
            _draw(finished[-1], out / "ladder.png")
            print(f"\nwritten: {out / 'ladder.json'}")


def _say(rung: dict) -> None:
    spent = rung["train_seconds"] + rung["eval_seconds"]
    print(f"{rung['name']}: {rung['accuracy']:.3f} ± {rung['standard_error']:.3f} in {spent:.0f} s", file=sys.stderr)


def _draw(described: dict, path: Path) -> None:
    from minillm.lab.report import picture

    try:
        picture(described, path)
        print(f"\npicture: {path}", end="")
    except ImportError:
        print("\nno picture: matplotlib is missing (pip install 'minillm[lab]')", end="")
