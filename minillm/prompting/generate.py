"""`minillm generate`: continue a text, or answer a message."""

from dataclasses import dataclass

import torch

from minillm import hub
from minillm.adapt import Method, load
from minillm.adapt.description import Usage
from minillm.data.templates import Template
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.generation import stream
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.options import Directory, Model, Positional, RunOptions, Text
from minillm.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Generate(RunOptions):
    """Continue a text, or answer a message with --chat. Tokens are printed as they are generated.

    An adapter's own prompt template is applied to the text, as in its training.

    Example: minillm generate "What is a prefix?" --chat --max-new-tokens 50
    """

    prompt: Positional[Text]
    r"""The text to continue; \n is a newline."""
    base: Model = "smollm2-135m-instruct"
    """A pulled model, tiny, hf:NAME, a directory in Hugging Face's layout, or a .gguf file."""
    adapter: Directory | None = None
    """An adapter of this base."""
    chat: bool = False
    """Apply the chat template of the base, and not the adapter's prompt template."""
    raw: bool = False
    """Continue the text as it is, without the adapter's prompt template."""
    max_new_tokens: int = 100
    """The maximum number of tokens to generate."""
    temperature: float = 0.0
    """The sampling temperature; 0 always takes the most likely token."""
    top_k: int | None = None
    """Sample from the k most likely tokens."""
    top_p: float | None = None
    """Sample from the most likely tokens whose probabilities sum to p."""

    def __post_init__(self):
        super().__post_init__()
        if not self.prompt:
            raise InputError("the prompt has no tokens; give a text to continue")
        if self.chat and self.raw:
            raise InputError("give either --chat or --raw, not both")

    def run(self) -> None:
        keep_freed_memory()
        use_threads(self.threads)
        model, tokenizer = self._load()
        device = pick_device(self.device)
        usage = self._usage(model)
        template = Template(usage.prompt or "{text}", chat=self.chat or usage.chat)
        # The text of a row has no surrounding whitespace.
        text = self.prompt if usage.prompt is None else self.prompt.strip()
        end, answers = (list(map(tokenizer.encode, texts)) for texts in ([usage.end], usage.labels or ()))
        stop = {*tokenizer.stop, *(ids[0] for ids in end if len(ids) == 1)}
        tokens = stream(
            model.to(device), torch.tensor([template.encode(tokenizer, text)], dtype=torch.long, device=device),
            max_new_tokens=min(self.max_new_tokens, max(map(len, answers), default=self.max_new_tokens)),
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed, stop=stop,
        )  # fmt: skip
        print("" if template.chat else template.render(text), end="", flush=True)
        for piece in tokenizer.decode_stream(int(token) for token in tokens if int(token) not in stop):
            print(piece, end="", flush=True)
        print()

    def _usage(self, model: Decoder | Method) -> Usage:
        """The adapter's usage; --raw, and --chat for an adapter that was not trained with it, leave it aside."""
        usage = model.usage if isinstance(model, Method) else Usage()
        return Usage() if self.raw or (self.chat and not usage.chat) else usage

    def _load(self) -> tuple[Decoder | Method, Tokenizer]:
        decoder, tokenizer = hub.load(self.base)
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, which text generation needs")
        if self.adapter is None:
            return decoder, tokenizer
        method = load(decoder, self.adapter, tokenizer=tokenizer)
        if not isinstance(method, Method) or getattr(method, "classes", None) is not None:
            raise InputError(
                f"{self.adapter} is a {type(method).__name__}, a classifier; generate needs a language model"
            )
        return method, tokenizer
