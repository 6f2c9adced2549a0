"""`minillm generate`: continue a text, or answer a message."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from minillm import hub
from minillm.adapt import Method, load
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.generation import stream
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.options import Directory, Model, Positional, RunOptions
from minillm.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Generate(RunOptions):
    """Continue a text, or answer a message with --chat. Tokens are printed as they are generated.

    Example: minillm generate "What is a prefix?" --chat --max-new-tokens 50
    """

    prompt: Positional[str]
    """The text to continue."""
    base: Model = "smollm2-135m-instruct"
    """A pulled model, tiny, hf:NAME, a directory in Hugging Face's layout, or a .gguf file."""
    adapter: Directory | None = None
    """An adapter of this base."""
    chat: bool = False
    """Apply the chat template of the base."""
    max_new_tokens: int = 100
    """The maximum number of tokens to generate."""
    temperature: float = 0.0
    """The sampling temperature; 0 always takes the most likely token."""
    top_k: int | None = None
    """Sample from the k most likely tokens."""
    top_p: float | None = None
    """Sample from the most likely tokens whose probabilities sum to p."""

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
        decoder, tokenizer = hub.load(self.base)
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, which text generation needs")
        if self.adapter is None:
            return decoder, tokenizer
        method = load(decoder, self.adapter, tokenizer=tokenizer)
        if not isinstance(method, Method):
            raise InputError(
                f"{self.adapter} is a {type(method).__name__}, a classifier; generate needs a language model"
            )
        return method, tokenizer


def _print_tokens(tokenizer: Tokenizer, tokens: Iterable[int]) -> None:
    new, printed = [], ""
    for token in tokens:
        new.append(token)
        text = tokenizer.decode([token for token in new if token not in tokenizer.stop])
        # A character may consist of several tokens; an incomplete one decodes to U+FFFD.
        if not text.endswith("\ufffd"):
            print(text[len(printed) :], end="", flush=True)
            printed = text
    print()
