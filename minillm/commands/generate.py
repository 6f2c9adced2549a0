"""`minillm generate`: continue a text, or answer it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from minillm.errors import InputError

if TYPE_CHECKING:
    from minillm.adapt import Method
    from minillm.decoder import Decoder
    from minillm.tokenizer import Tokenizer


def generate(
    prompt: Annotated[str, tyro.conf.Positional],
    model: str = "smollm2-135m-instruct",
    adapter: Path | None = None,
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
        model: A pulled name, tiny (trained here, once), a directory in Hugging Face's layout, or a .gguf file.
        adapter: The directory of an adapter of that model.
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

    from minillm.generation import stream
    from minillm.hub import load
    from minillm.lab.embedded import base_path
    from minillm.runtime.device import keep_freed_memory, pick_device, use_threads

    keep_freed_memory()
    use_threads(threads)
    decoder, tokenizer = load(base_path(model))
    if tokenizer is None:
        raise InputError(f"{model} has no tokenizer, and text needs one")
    target = pick_device(device)
    ids = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
    speaker = decoder.to(target).eval() if adapter is None else _adapted(decoder, adapter, tokenizer).to(target)
    tokens = stream(
        speaker, torch.tensor([ids], dtype=torch.long, device=target), max_new_tokens=max_new_tokens,
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


def _adapted(decoder: "Decoder", adapter: Path, tokenizer: "Tokenizer") -> "Method":
    from minillm.adapt import Method, load

    method = load(decoder, adapter, tokenizer=tokenizer)
    if not isinstance(method, Method):
        raise InputError(f"{adapter} is a {type(method).__name__}, which says classes and not words")
    return method
