"""`minillm adapt`: one way to adapt, and the adapter saved."""

from pathlib import Path


def adapt(
    out: Path,
    method: str = "lora",
    base: str = "smollm2-135m-instruct",
    task: str = "reviews",
    train: int = 500,
    test: int = 400,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    data: Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    prompt: str | None = None,
    labels: str | None = None,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    epochs: int | None = None,
    rate: float | None = None,
    batch: int = 16,
    r: int = 8,
    alpha: float = 16.0,
    targets: str = "query,value",
    length: int = 10,
    words: str | None = None,
    layers: int = 2,
) -> None:
    """Adapt a base to a task in one way, and save the adapter: to labelled text, or to free answers.

    Ctrl-C saves the adapter as far as it is trained.

    Args:
        out: The adapter's directory to write; what was measured goes into its adapt.json.
        method: lora, dora, pissa, soft-prompt, prefix, features, output, last-blocks or full.
        base: A pulled name, tiny (trained here, once), a directory in Hugging Face's layout, or a .gguf file.
        task: The labelled text: reviews, or word_problems (meant for the base tiny; nothing is downloaded).
        train: Training rows.
        test: Test rows.
        seed: The seed of all that is random.
        device: auto, cpu, cuda or mps.
        threads: CPU threads (default: one a core).
        data: Your own text, a .csv or .jsonl file, in the task's place.
        text_column: The column of the text in it.
        label_column: The column of the label in it.
        prompt: The prompt around your text, with {text} in it.
        labels: The answers for the label column's values in sorted order, comma-separated (default: the values).
        prompt_column: For free answers: the column of what is asked.
        answer_column: For free answers: the column of what should be answered.
        epochs: How often each row is seen (default: the method's own number).
        rate: The learning rate at its highest (default: the method's own).
        batch: Rows a step.
        r: The rank of a low-rank method.
        alpha: Its scale is alpha / r.
        targets: Its matrices: roles, paths with wildcards or all-linear, comma-separated.
        length: Positions of a prefix.
        words: The words that a soft prompt or a prefix starts from.
        layers: How many blocks last-blocks trains.
    """
    from minillm.data.reviews import PROMPT
    from minillm.lab.adapting import AdaptSettings, adapt_base
    from minillm.lab.ladder import LadderSettings
    from minillm.lab.rungs import Options
    from minillm.runtime.device import keep_freed_memory, use_threads

    keep_freed_memory()
    free = prompt_column is not None or answer_column is not None
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
        prompt=(("{text}\n" if free else PROMPT) if prompt is None else prompt.replace("\\n", "\n")),
        labels=None if labels is None else tuple(label.strip() for label in labels.split(",")),
    )
    options = Options(
        r=r, alpha=alpha, targets=tuple(target.strip() for target in targets.split(",")), length=length, words=words,
        layers=layers, epochs=epochs, rate=rate, batch=batch,
    )  # fmt: skip
    figures = adapt_base(AdaptSettings(settings, method, options, prompt_column, answer_column), out)
    for name, figure in figures.items():
        if not isinstance(figure, (list, dict)):
            print(f"{name}: {figure}")
    print(f"written: {out}")
