"""`minillm pretrain`: a language model from nothing."""

from pathlib import Path


def pretrain(
    data: Path | None = None,
    task: str | None = None,
    preset: str = "tiny",
    tokenizer: str | None = None,
    vocabulary: int = 2048,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    backend: str = "torch",
    every: int = 100,
    out: Path = Path("pretrained"),
    fresh: bool = False,
) -> None:
    """Train a tiny language model from nothing: a model directory, its curve as JSON and PNG, and checkpoints.

    A run that was stopped, in whatever way, goes on where its last checkpoint left it. Under torchrun the processes
    share every batch.

    Args:
        data: The text to learn, a .txt file; its last tenth is held out.
        task: In place of a text: word_problems (generated) or reviews-text.
        preset: nano, tiny or small: the depth, from which sizes, rate, batch and steps follow.
        tokenizer: bpe, characters or words (default: words for word problems, else bpe).
        vocabulary: Tokens at most.
        steps: Steps in place of the preset's.
        seed: The seed of all that is random.
        device: auto, cpu, cuda or mps.
        threads: CPU threads (default: one a core).
        backend: torch, or numpy: losses, gradients and AdamW by the reference, in float64. The same curve, some
            three times slower: a few minutes for nano, most of an hour for tiny.
        every: Measure, sample and write a checkpoint every so many steps.
        out: The directory for what is written.
        fresh: Begin again, whatever stands in that directory.
    """
    from minillm.lab.curve import describe, draw
    from minillm.lab.pretrain import PretrainSettings
    from minillm.lab.pretrain import pretrain as run
    from minillm.runtime.device import keep_freed_memory, use_threads
    from minillm.runtime.distributed import is_first

    keep_freed_memory()
    use_threads(threads)
    text = None if data is None else str(data)
    settings = PretrainSettings(text, task, preset, tokenizer, vocabulary, steps, seed)
    run(
        settings, out, device=device, backend=backend, fresh=fresh, every=every,
        say=lambda measured: print(describe(measured)),
    )  # fmt: skip
    if is_first():
        draw(out)
        print(f"written: {out}; `minillm generate --model {out} ...` continues a text with it")
