"""`minillm generate`: continue a text, or answer it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from minillm import hub
from minillm.adapt import Method, load
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.generation import stream
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.options import Positional
from minillm.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a text, or answer it with --chat, printing the tokens as they come."""

    prompt: Positional[str]
    """The text to continue."""
    model: str = "smollm2-135m-instruct"
    """A pulled name, tiny, a directory in Hugging Face's layout, or a .gguf file."""
    adapter: Path | None = None
    """The directory of an adapter of that model."""
    chat: bool = False
    """Wrap the prompt in the model's chat template."""
    max_new_tokens: int = 100
    """Stop after this many tokens."""
    temperature: float = 0.0
    """0 takes the most likely token; above 0 samples."""
    top_k: int | None = None
    """Sample among this many most likely tokens only."""
    top_p: float | None = None
    """Sample among the fewest tokens that hold this probability."""
    seed: int = 0
    """The seed of the sampling."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    threads: int | None = None
    """CPU threads (default: one a core)."""

    def run(self) -> None:
        keep_freed_memory()
        use_threads(self.threads)
        model, tokenizer = self._load()
        device = pick_device(self.device)
        message = [{"role": "user", "content": self.prompt}]
        ids = tokenizer.chat(message) if self.chat else tokenizer.encode(self.prompt)
        tokens = stream(
            model.to(device), torch.tensor([ids], dtype=torch.long, device=device),
            max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
            seed=self.seed, stop=tokenizer.stop,
        )  # fmt: skip
        print("" if self.chat else self.prompt, end="", flush=True)
        _print_tokens(tokenizer, (int(token) for token in tokens))

    def _load(self) -> tuple[Decoder | Method, Tokenizer]:
        decoder, tokenizer = hub.load(self.model)
        if tokenizer is None:
            raise InputError(f"{self.model} has no tokenizer, and text needs one")
        if self.adapter is None:
            return decoder, tokenizer
        method = load(decoder, self.adapter, tokenizer=tokenizer)
        if not isinstance(method, Method):
            raise InputError(f"{self.adapter} is a {type(method).__name__}: a classifier, not a language model")
        return method, tokenizer


def _print_tokens(tokenizer: Tokenizer, tokens: Iterable[int]) -> None:
    new, printed = [], ""
    for token in tokens:
        new.append(token)
        text = tokenizer.decode([token for token in new if token not in tokenizer.stop])
        # A character may need more than one token: until it is complete it decodes to U+FFFD.
        if not text.endswith("\ufffd"):
            print(text[len(printed) :], end="", flush=True)
            printed = text
    print()
