"""`minillm prompt`: a prompt, looked at and measured."""

from pathlib import Path
from typing import TYPE_CHECKING

from minillm.errors import InputError

if TYPE_CHECKING:
    from minillm.lab.prompting import PromptSettings


def prompt(
    text: str | None = None,
    example: str | None = None,
    base: str = "smollm2-135m-instruct",
    task: str = "reviews",
    shots: int = 0,
    choose: str = "balanced",
    pooling: str = "mean",
    orders: int = 1,
    chain: bool = False,
    chat: bool = False,
    free: bool = False,
    samples: int = 1,
    temperature: float = 0.7,
    max_new_tokens: int = 96,
    show_tokens: bool = False,
    instruction: str = "",
    prompt: str | None = None,
    labels: str | None = None,
    data: Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    train: int = 500,
    test: int = 400,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Ask a base by a prompt, with examples or a chain of thought or both, and see what it answers and how sure it is.

    Over a task: accuracy by four measures, before and after contextual calibration. For one --text: each label's
    probability. What all prompts have in common is read once.

    Args:
        text: One text to ask about, in place of the task's test rows.
        example: The lecture's own: funny, juggler, colour or cans.
        base: A pulled name, a directory in Hugging Face's layout, a .gguf file, or tiny (trained here, no download).
        task: The labelled text: reviews, or word_problems (generated).
        shots: Solved examples in the prompt.
        choose: How they are chosen from the training rows: balanced, seed, nearest (to each text) or ordered.
        pooling: What nearest compares: the mean of a text's features, or the last token's.
        orders: Put the same examples in this many orders, and compare.
        chain: Ask for a chain of thought before the answer.
        chat: As a conversation, in the base's chat template.
        free: Have the base answer freely too, and read its answers.
        samples: Sampled free answers whose majority counts.
        temperature: Of those samples.
        max_new_tokens: Of a chain of thought.
        show_tokens: Print the prompt's tokens and the answers', and what a blank at its end would change.
        instruction: What stands before everything.
        prompt: The prompt around the text, with {text} in it (default: the task's own).
        labels: The answers for the label column's values in sorted order, comma-separated.
        data: Your own labelled text, a .csv or .jsonl file, in the task's place.
        text_column: The column of the text in it.
        label_column: The column of the label in it.
        train: Training rows, to choose examples from.
        test: Test rows.
        seed: The seed of all that is random.
        device: auto, cpu, cuda or mps.
        threads: CPU threads (default: one a core).
        out: The directory for prompt.json (default: nothing is written).
    """
    import torch

    from minillm.data.reviews import PROMPT
    from minillm.lab.asking import Manner
    from minillm.lab.ladder import LadderSettings
    from minillm.lab.prompting import PromptSettings
    from minillm.runtime.device import keep_freed_memory

    keep_freed_memory()
    words = None if prompt is None else prompt.replace("\\n", "\n")
    answers = None if labels is None else tuple(label.strip() for label in labels.split(","))
    ladder = LadderSettings(
        base=base, task=task, train=train, test=test, seed=seed, device=device,
        threads=torch.get_num_threads() if threads is None else threads, data=None if data is None else str(data),
        text_column=text_column, label_column=label_column, prompt=PROMPT if words is None else words, labels=answers,
    )  # fmt: skip
    settings = PromptSettings(
        ladder, Manner(free, samples, temperature, max_new_tokens, seed), words, answers,
        instruction.replace("\\n", "\n"), shots, choose, pooling, orders, chain, chat,
    )  # fmt: skip
    given = (text, shots, chain, free, samples > 1, instruction, prompt, labels, data, orders > 1)
    if example is not None and any(given):
        raise InputError("an example has its own text, words and ways; of the rest only --base and --chat change it")
    if text is not None and orders > 1:
        raise InputError("several orders are compared over a task's rows and not over one --text")
    path = None if out is None else out / "prompt.json"
    if example is not None:
        _example(example, settings, show_tokens, path)
    elif text is not None:
        _text(text.replace("\\n", "\n"), settings, show_tokens, path)
    else:
        _task(settings, show_tokens, path)
    if path is not None:
        print(f"\nwritten: {path}")


def _example(name: str, settings: "PromptSettings", show_tokens: bool, path: Path | None) -> None:
    from minillm.lab.ladder import bench
    from minillm.lab.lecture import example, shown
    from minillm.lab.prompt_report import probabilities, shown_prompt, shown_tokens
    from minillm.lab.prompting import write

    one = example(name)
    print(one.about)
    here, found = bench(settings.ladder, Path()), []
    for said in shown(here, one, settings.manner, chat=settings.chat):
        found.append(said.described())
        print(f"\n{shown_prompt(here, said.question)}")
        if show_tokens:
            print(shown_tokens(here, said.question, one.labels or (f" {one.expected}",)))
        print(probabilities(said.asked) if said.asked else f"it says: {said.text.strip()}")
        print(f"answer: {said.answer or 'none that could be read'} ({one.expected} is expected)")
    if path is not None:
        write(path, settings, found, example=name)


def _text(text: str, settings: "PromptSettings", show_tokens: bool, path: Path | None) -> None:
    from minillm.lab.prompt_report import probabilities, shown_prompt, shown_tokens
    from minillm.lab.prompting import described, over_text, write

    here, asked = over_text(settings, text)
    print(shown_prompt(here, asked.questions[0]))
    if show_tokens:
        print(shown_tokens(here, asked.questions[0], asked.preferences.answers))
    print(probabilities(asked))
    for title, texts in (("it says", asked.said), ("the majority says", asked.voted)):
        if texts is not None:
            print(f"{title}: {texts[0].strip()}")
    if path is not None:
        write(path, settings, [described(asked)], text=text)


def _task(settings: "PromptSettings", show_tokens: bool, path: Path | None) -> None:
    from minillm.lab.prompt_report import accuracies, by_order, probabilities, shown_prompt, shown_tokens
    from minillm.lab.prompting import described, over_task, spread, write

    measured, written = [], []
    for here, asked, found in over_task(settings):
        measured.append(found)
        written.append({**found, **described(asked)})
        print(f"{shown_prompt(here, asked.questions[0])}")
        if show_tokens:
            print(shown_tokens(here, asked.questions[0], asked.preferences.answers))
        print(f"{probabilities(asked)}\n\nover {len(asked.questions)} rows:\n{accuracies(found)}\n")
    more = {}
    if len(measured) > 1:
        more["spread"] = spread(measured)
        print(f"{len(measured)} orders of the same {settings.shots} examples:\n{by_order(measured, more['spread'])}")
    if path is not None:
        write(path, settings, written, **more)
