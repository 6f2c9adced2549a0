"""Text to token ids and back, and conversations to token ids.

Byte pair encoding itself is the `tokenizers` library's. What is decided here: text never turns into special tokens
(only a chat template writes those), a template is a stranger's program and runs in jinja2's sandbox, and a GGUF
file's pre-tokeniser is built as llama.cpp builds it or not at all.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from minillm.errors import InputError

# What ends a turn or a document, under the names that models give it.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>")
# Characters of a template, of what it writes, and items that it may count through, all ranges together.
LONGEST_TEMPLATE, LONGEST_CHAT, MOST_ITEMS = 200_000, 10_000_000, 1_000_000
ROLES = ("bos", "eos", "pad", "unk")


class Tokenizer:
    """A `tokenizers` pipeline with the names of its special tokens and its chat template.

    `names` maps bos, eos, pad and unk to tokens, as far as the model has them. `encode` adds nothing; whoever
    prompts a model for which `starts_with_bos` is true puts `bos` in front.
    """

    def __init__(self, pipeline: tokenizers.Tokenizer, names: Mapping[str, str], chat_template: str | None = None):
        for role, token in names.items():
            if role not in ROLES or pipeline.token_to_id(token) is None:
                raise InputError(f"the {role} token {token!r} is not in the tokenizer's vocabulary")
        self.pipeline, self.names, self.chat_template = pipeline, dict(names), chat_template
        self.pipeline.encode_special_tokens = True
        self.pipeline.no_truncation()
        self.pipeline.no_padding()

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer that a GGUF file's metadata describes (`tokenizer.ggml.*`, `tokenizer.chat_template`).

        Raises InputError for another model than byte-level BPE, and for a pre-tokeniser that is not known here.
        """
        from minillm.hub.gguf_tokenizer import pipeline, special_names

        return cls(pipeline(metadata), special_names(metadata), metadata.get("tokenizer.chat_template"))

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
        directory = Path(directory)
        try:
            pipeline = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as problem:  # the library raises bare Exceptions
            raise InputError(f"{directory / 'tokenizer.json'} cannot be read as a tokenizer: {problem}") from None
        settings = _settings(directory / "tokenizer_config.json")
        names = {role: _token(directory / "tokenizer_config.json", settings.get(f"{role}_token")) for role in ROLES}
        template = directory / "chat_template.jinja"
        chat_template = template.read_text("utf-8") if template.exists() else settings.get("chat_template")
        return cls(pipeline, {role: name for role, name in names.items() if name}, _default(chat_template))

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `from_directory` and transformers read."""
        from minillm.hub.files import write_text

        settings: dict[str, Any] = {f"{role}_token": token for role, token in self.names.items()}
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        directory = Path(directory)
        write_text(directory / "tokenizer.json", self.pipeline.to_str(pretty=True))
        write_text(directory / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False))
        # One left from before would go before the template just written.
        (directory / "chat_template.jinja").unlink(missing_ok=True)

    def encode(self, text: str) -> list[int]:
        """The ids of the text, nothing added; what looks like a special token in it is ordinary text."""
        try:
            ids = self.pipeline.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise InputError(
                f"{text!r:.60} cannot be encoded: it is no text, or has half of a surrogate pair"
            ) from None
        if not self._forbidden.isdisjoint(ids):
            raise InputError("this tokenizer's own merges make a special token out of ordinary text")
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of the ids; bytes that are no whole character come out as U+FFFD."""
        return self.pipeline.decode(list(ids), skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation: the template's special tokens are special, the messages' are ordinary text.

        Raises InputError where there is no template, or where it fails or runs away.
        """
        mark = _unused_character(messages, self.chat_template)
        rendered = self._rendered(messages, add_generation_prompt, mark)
        if mark not in rendered:
            return self._recognising.encode(rendered, add_special_tokens=False).ids
        ids: list[int] = []
        names = "|".join(re.escape(token) for token in self._longest_first)
        for piece in re.split(f"((?:{names})(?!{mark}{mark}))", rendered):
            ids += [self.special[piece]] if piece in self.special else self.encode(piece.replace(mark, ""))
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the chat template writes it, for people to look at: `chat` makes the ids."""
        mark = _unused_character(messages, self.chat_template)
        return self._rendered(messages, add_generation_prompt, mark).replace(mark, "")

    def _rendered(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, mark: str) -> str:
        """The template's text, with a mark in whatever the messages have of special tokens, or at their edges."""
        if self.chat_template is None:
            raise InputError("this tokenizer has no chat template; encode the text itself instead")
        given = {f"{role}_token": token for role, token in self.names.items()}
        given |= {"messages": _marked(messages, self._longest_first, mark)}
        return _render(self.chat_template, given | {"add_generation_prompt": add_generation_prompt})

    @property
    def vocabulary(self) -> int:
        """How many ids there are; a decoder may have rows for more."""
        return self.pipeline.get_vocab_size()

    @property
    def bos(self) -> int | None:
        return self._id("bos")

    @property
    def eos(self) -> int | None:
        return self._id("eos")

    @property
    def pad(self) -> int | None:
        return self._id("pad")

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """The ids at which generation ends: eos, and every special token that ends a turn or a document."""
        ends = {self.special[token] for token in ENDS if token in self.special}
        return tuple(sorted(ends | ({self.eos} if self.eos is not None else set())))

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens by name."""
        added = self.pipeline.get_added_tokens_decoder()
        return {token.content: id_ for id_, token in added.items() if token.special}

    @cached_property
    def starts_with_bos(self) -> bool:
        """Whether the model has always seen `bos` at the start of a text."""
        return self.bos is not None and self.pipeline.encode("", add_special_tokens=True).ids[:1] == [self.bos]

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over everything that decides which ids come out."""
        parts = {"pipeline": json.loads(self.pipeline.to_str()), "names": self.names, "chat": self.chat_template}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _recognising(self) -> tokenizers.Tokenizer:
        """The same pipeline for text that a template wrote; a second one, for the setting is the pipeline's."""
        recognising = tokenizers.Tokenizer.from_str(self.pipeline.to_str())
        recognising.encode_special_tokens = False
        return recognising

    @cached_property
    def _forbidden(self) -> frozenset[int]:
        # What a vocabulary has no token for is `unk`, rightly.
        return frozenset(self.special.values()) - {self._id("unk")}

    @cached_property
    def _longest_first(self) -> list[str]:
        return sorted(self.special, key=len, reverse=True)

    def _id(self, role: str) -> int | None:
        return self.pipeline.token_to_id(self.names[role]) if role in self.names else None


def _settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except ValueError as problem:
        raise InputError(f"{path} is no JSON: {problem}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds a {type(settings).__name__}; the settings of a tokenizer are an object")
    return settings


def _token(path: Path, stored: Any) -> str | None:
    """A special token's name, which older files wrap in an object."""
    name = stored.get("content") if isinstance(stored, dict) else stored
    if not isinstance(name, str | None):
        raise InputError(f"{path} has {name!r} for the name of a special token, which is a text")
    return name


def _default(templates: Any) -> str | None:
    """The chat template; where there is a list of named ones, that named default."""
    if isinstance(templates, list):
        return next((t.get("template") for t in templates if t.get("name") == "default"), None)
    return templates


def _unused_character(messages: Any, template: str | None) -> str:
    """A private character that occurs nowhere, to mark places with."""
    try:
        used = set(json.dumps(messages, ensure_ascii=False)) | set(template or "")
    except (TypeError, ValueError):
        raise InputError("a conversation is a list of messages: objects of texts, like role and content") from None
    for code in range(0xF0000, 0xFFFFE):
        if chr(code) not in used:
            return chr(code)
    raise InputError("the messages use every private character of Unicode")


def _marked(value: Any, tokens: Sequence[str], mark: str) -> Any:
    """The messages with two marks in every special token, and one at an edge that could complete one with a neighbour.

    (A token of a single character cannot be broken up: the two marks after it tell it from a template's.)
    """
    if isinstance(value, Mapping):
        return {key: _marked(item, tokens, mark) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_marked(item, tokens, mark) for item in value]
    if not isinstance(value, str):
        return value
    starts = any(value.startswith(token[cut:]) for token in tokens for cut in range(1, len(token)))
    ends = any(value.endswith(token[:cut]) for token in tokens for cut in range(1, len(token)))
    for token in tokens:
        value = value.replace(token, token[0] + mark + mark + token[1:])
    return (mark if starts else "") + value + (mark if ends else "")


def _render(template: str, given: Mapping[str, Any]) -> str:
    """The template's text. A template is a stranger's program: it runs in the sandbox, and not without end."""
    from jinja2 import TemplateError

    if len(template) > LONGEST_TEMPLATE:
        raise InputError(f"the chat template has {len(template)} characters; up to {LONGEST_TEMPLATE} are run")
    pieces, length = [], 0
    try:
        for piece in _sandbox().from_string(template).generate(given):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_CHAT:
                raise InputError(f"the chat template writes more than {LONGEST_CHAT} characters")
    except InputError:
        raise
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
            MemoryError) as problem:  # fmt: skip
        raise InputError(f"the chat template fails on this conversation: {problem}") from None
    return "".join(pieces)


def _sandbox() -> Any:
    """jinja2's immutable sandbox with what chat templates expect to find (as in transformers)."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    left = MOST_ITEMS

    def bounded_range(*bounds: int) -> range:
        nonlocal left
        items = range(*bounds)
        left -= len(items)
        if left < 0:
            raise TemplateError(f"it counts through more than {MOST_ITEMS} items")
        return items

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context, operator, left, right):
            if operator == "**" or not all(isinstance(side, (int, float)) for side in (left, right)):
                raise TemplateError(f"it computes {operator} with more than two plain numbers")
            return left * right

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals |= {"range": bounded_range, "raise_exception": raise_exception, "strftime_now": _now}
    environment.filters["tojson"] = _tojson
    return environment


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(value: Any, indent: int | None = None) -> str:
    """JSON as it is: jinja2's own filter escapes it for web pages."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
