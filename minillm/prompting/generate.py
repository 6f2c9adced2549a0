"""`minillm generate`: continue a text, or answer a message."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unicodedata import normalize

import torch

from minillm.adapt import Method, load
from minillm.adapt.description import Usage
from minillm.adapt.method import is_language_model
from minillm.data.templates import Template
from minillm.decoder import Decoder
from minillm.errors import InputError
from minillm.generation import GenerationOptions, stream
from minillm.hub.options import BaseOptions
from minillm.prompting.scoring import answer_scores
from minillm.runtime.device import keep_freed_memory, pick_device, use_threads
from minillm.runtime.options import Directory, Positional, RunOptions, Text
from minillm.runtime.reading import text_or_stdin
from minillm.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Generate(RunOptions, GenerationOptions, BaseOptions):
    """Continue a text, or answer a message with --chat. Tokens are printed as they are generated.

    An adapter's own prompt template is applied to the text, as in its training; one for labels gives a label.

    Example: minillm generate "What is a prefix?" --chat --max-new-tokens 50
    """

    prompt: Positional[Text]
    r"""The text to continue; \n is a newline, and - is standard input."""
    adapter: Directory | None = None
    """An adapter of this base."""
    chat: bool = False
    """Apply the chat template of the base, and not the adapter's prompt template."""
    raw: bool = False
    """Continue the text as it is, without the adapter's prompt template and labels."""

    def __post_init__(self):
        super().__post_init__()
        self.check()
        self.prompt = text_or_stdin(self.prompt) or ""
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
        if self.chat and not usage.chat:
            tokenizer.check_template()
        template = Template(usage.prompt or "{text}", end=usage.end, chat=self.chat or usage.chat)
        # As the texts of a table; a newline at the end would stand twice.
        text = self.prompt if usage.prompt is None else normalize("NFC", self.prompt.strip())
        if usage.labels is None:
            pieces = self._pieces(model.to(device), tokenizer, template.encode(tokenizer, text), usage.end)
        else:
            pieces = [_label(model.to(device), tokenizer, template, text, usage.labels)]
        if self.json:
            self.show("", {"prompt": text, "generated": "".join(pieces)})
            return
        print("" if template.chat else template.render(text), end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()

    def _pieces(self, model: Decoder | Method, tokenizer: Tokenizer, prompt: list[int], end: str) -> Iterator[str]:
        """The generated text, up to a stop token or an end of one token. Raises InputError on the call."""
        ids = tokenizer.encode(end)
        stop = {*tokenizer.stop, *(ids if len(ids) == 1 else ())}
        tokens = stream(
            model, torch.tensor([prompt], device=model.decoder.embed.weight.device),
            max_new_tokens=100 if self.max_new_tokens is None else self.max_new_tokens, temperature=self.temperature,
            top_k=self.top_k, top_p=self.top_p, seed=self.seed, stop=stop,
        )  # fmt: skip
        return tokenizer.decode_stream(int(token) for token in tokens if int(token) not in stop)

    def _usage(self, model: Decoder | Method) -> Usage:
        """The adapter's usage; --raw, and --chat for an adapter that was not trained with it, leave it aside."""
        usage = model.usage if isinstance(model, Method) else Usage()
        return Usage() if self.raw or (self.chat and not usage.chat) else usage

    def _load(self) -> tuple[Decoder | Method, Tokenizer]:
        decoder, tokenizer = self.load_base()
        if tokenizer is None:
            raise InputError(f"{self.base} has no tokenizer, which text generation needs")
        if self.adapter is None:
            return decoder, tokenizer
        method = load(decoder, self.adapter, tokenizer=tokenizer)
        if not is_language_model(method):
            raise InputError(
                f"{self.adapter} is a {type(method).__name__}, a classifier; generate needs a language model"
            )
        return method, tokenizer


@torch.no_grad()
def _label(
    model: Decoder | Method, tokenizer: Tokenizer, template: Template, text: str, labels: Sequence[str]
) -> str:  # fmt: skip
    """The most probable label: the training compares the labels alone, and no label with other texts."""
    answers = template.answers(tokenizer, [text], labels)
    return labels[int(answer_scores(model, [template.encode(tokenizer, text)], answers).argmax())]
