"""Text to token ids and back, and conversations to token ids.

The `tokenizers` library does the byte-pair encoding. This file adds two guarantees: text never becomes special tokens
(only a chat template writes those), and a template, which is untrusted code, runs in jinja2's sandbox.
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
from minillm.runtime.files import write_text

# The tokens that end a turn or a document in the models that we know.
ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>")
# Limits: characters of a template, characters of its output, and the total length of its ranges.
LONGEST_TEMPLATE, LONGEST_CHAT, MOST_ITEMS = 200_000, 10_000_000, 1_000_000
ROLES = ("bos", "eos", "pad", "unk")


class Tokenizer:
    """A `tokenizers` pipeline with the names of its special tokens and its chat template.

    `names` maps bos, eos, pad and unk to tokens, as far as the model has them. `encode` adds no tokens: the caller
    prepends `bos` to the prompt where `starts_with_bos` is true.
    """

    def __init__(self, pipeline: tokenizers.Tokenizer, names: Mapping[str, str], chat_template: str | None = None):
        for role, token in names.items():
            if role not in ROLES or pipeline.token_to_id(token) is None:
                raise InputError(f"the {role} token {token!r} is not in the tokenizer's vocabulary")
        self.pipeline, self.names, self.chat_template = pipeline, dict(names), chat_template
        # A token with a role is special, whether or not its file declares it.
        known = {token.content for token in pipeline.get_added_tokens_decoder().values() if token.special}
        pipeline.add_special_tokens(sorted(set(names.values()) - known))
        pipeline.encode_special_tokens = True
        pipeline.no_truncation()
        pipeline.no_padding()
        self.bos, self.eos, self.pad, self.unk = (
            pipeline.token_to_id(names[role]) if role in names else None for role in ROLES
        )

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face directory: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
        files, path = Path(directory), Path(directory) / "tokenizer_config.json"
        try:
            pipeline = tokenizers.Tokenizer.from_file(str(files / "tokenizer.json"))
            settings = json.loads(path.read_text("utf-8")) if path.exists() else {}
            template = files / "chat_template.jinja"
            chosen = template.read_text("utf-8") if template.exists() else settings.get("chat_template")
            stored = {role: settings.get(f"{role}_token") for role in ROLES}
        except Exception as problem:  # the library raises bare Exceptions
            raise InputError(f"cannot load the tokenizer files of {files}: {' '.join(str(problem).split())}") from None
        names = {role: _token(path, token) for role, token in stored.items()}
        return cls(pipeline, {role: name for role, name in names.items() if name}, chosen_template(path, chosen))

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `from_directory` and transformers read."""
        settings: dict[str, Any] = {f"{role}_token": token for role, token in self.names.items()}
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        directory = Path(directory)
        write_text(directory / "tokenizer.json", self.pipeline.to_str(pretty=True))
        write_text(directory / "tokenizer_config.json", json.dumps(settings, indent=2, ensure_ascii=False))
        # A file from an earlier save would take precedence over the template just written.
        (directory / "chat_template.jinja").unlink(missing_ok=True)

    def encode(self, text: str) -> list[int]:
        """The ids of the text, without added tokens; special tokens in it are treated as ordinary text.

        Bytes that are not in the vocabulary are skipped (SmolLM2 lacks a few control characters).
        """
        try:
            ids = self.pipeline.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise InputError(f"cannot encode {text!r:.60}: it must be a string without unpaired surrogates") from None
        if not self._forbidden.isdisjoint(ids):
            raise InputError("the merges of this tokenizer turn ordinary text into a special token")
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of the ids; bytes that are not a complete character become U+FFFD."""
        return self.pipeline.decode(list(ids), skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation: the template's special tokens are special, the messages' are ordinary text.

        (A token that a template builds around a field, like `'<|' + role + '|>'`, is special.)
        Raises InputError if there is no template, or if it fails or exceeds a limit.
        """
        sentinel = _unused_character(messages, self.chat_template)
        rendered = self._rendered(messages, add_generation_prompt, sentinel)
        if sentinel not in rendered:
            return self._recognising.encode(rendered, add_special_tokens=False).ids
        ids: list[int] = []
        for piece in re.split(f"((?:{self._pattern})(?!{sentinel}{sentinel}))", rendered):
            ids += [self.special[piece]] if piece in self.special else self.encode(piece.replace(sentinel, ""))
        return ids

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the chat template writes it, for display; `chat` returns the ids."""
        sentinel = _unused_character(messages, self.chat_template)
        return self._rendered(messages, add_generation_prompt, sentinel).replace(sentinel, "")

    def _rendered(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, sentinel: str) -> str:
        """The output of the template, with sentinels that split special tokens within messages and at their edges."""
        if self.chat_template is None:
            raise InputError("this tokenizer has no chat template; use plain text, in commands without --chat")
        given = {f"{role}_token": token for role, token in self.names.items()}
        given |= {"messages": _with_sentinels(messages, self.special, self._pattern, sentinel)}
        return _render(self.chat_template, given | {"add_generation_prompt": add_generation_prompt})

    @property
    def vocabulary(self) -> int:
        """The number of ids; the embedding of a decoder may have more rows."""
        return self.pipeline.get_vocab_size()

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
        """Whether texts began with `bos` in training."""
        return self.bos is not None and self.pipeline.encode("", add_special_tokens=True).ids[:1] == [self.bos]

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 of everything that determines the ids."""
        parts = {"pipeline": json.loads(self.pipeline.to_str()), "names": self.names, "chat": self.chat_template}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _recognising(self) -> tokenizers.Tokenizer:
        """A copy of the pipeline that recognises special tokens, for text that a template wrote."""
        recognising = tokenizers.Tokenizer.from_str(self.pipeline.to_str())
        recognising.encode_special_tokens = False
        return recognising

    @cached_property
    def _forbidden(self) -> frozenset[int]:
        # `unk` is allowed: it encodes text that is not in the vocabulary.
        return frozenset(self.special.values()) - {self.unk}

    @cached_property
    def _pattern(self) -> str:
        """A regular expression for any special token, the longest first."""
        longest_first = sorted(self.special, key=len, reverse=True)
        return "|".join(re.escape(token) for token in longest_first) or "(?!)"


def _token(path: Path, stored: Any) -> str | None:
    """The string of a special token, which older files wrap in an object."""
    name = stored.get("content") if isinstance(stored, dict) else stored
    if not isinstance(name, str | None):
        raise InputError(f"a special token in {path} must be a string, got {name!r}")
    return name


def chosen_template(where: str | Path, templates: Any) -> str | None:
    """The chat template; of a list, the one named "default". Raises InputError if it is not a string."""
    if isinstance(templates, list):
        named = [entry for entry in templates if isinstance(entry, dict) and entry.get("name") == "default"]
        templates = named[0].get("template") if named else None
    if not isinstance(templates, str | None):
        raise InputError(f"the chat template of {where} must be a string, got {type(templates).__name__}")
    return templates


def _unused_character(messages: Any, template: str | None) -> str:
    """A sentinel: a private-use character that occurs in neither the messages nor the template."""
    try:
        used = set(json.dumps(messages, ensure_ascii=False)) | set(template or "")
    except (TypeError, ValueError):
        raise InputError(
            "a conversation must be a list of messages: objects with string fields such as role and content"
        ) from None
    for code in range(0xF0000, 0xFFFFE):
        if chr(code) not in used:
            return chr(code)
    raise InputError("the messages use every private-use character of Unicode")


def _with_sentinels(value: Any, special: Mapping[str, int], pattern: str, sentinel: str) -> Any:
    """The messages with two sentinels inside every special token, and one at an edge that could complete one.

    Matching ignores case, because a template may change it. (A token of a single character cannot be split: the two
    sentinels after it distinguish it from a token that the template wrote.)
    """
    if isinstance(value, Mapping):
        items = ((key, _with_sentinels(item, special, pattern, sentinel)) for key, item in value.items())
        return {_with_sentinels(key, special, pattern, sentinel): item for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_with_sentinels(item, special, pattern, sentinel) for item in value]
    if not isinstance(value, str):
        return value
    lower = value.lower()
    edges = [(token[cut:].lower(), token[:cut].lower()) for token in special for cut in range(1, len(token))]
    before = sentinel if any(lower.startswith(rest) for rest, _ in edges) else ""
    after = sentinel if any(lower.endswith(start) for _, start in edges) else ""
    broken = re.sub(f"(?={pattern})(.)", lambda found: found[1] + sentinel + sentinel, value, flags=re.I | re.S)
    return before + broken + after


def _render(template: str, given: Mapping[str, Any]) -> str:
    """The output of the template, which is untrusted code: it runs in the sandbox and within limits."""
    if len(template) > LONGEST_TEMPLATE:
        raise InputError(f"a chat template may have {LONGEST_TEMPLATE} characters, got {len(template)}")
    pieces, length = [], 0
    try:
        for piece in _sandbox().from_string(template).generate(given):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_CHAT:
                raise InputError(f"the chat template writes more than {LONGEST_CHAT} characters")
    except InputError:
        raise
    except Exception as problem:  # untrusted code may raise anything
        raise InputError(f"the chat template fails on this conversation: {' '.join(str(problem).split())}") from None
    return "".join(pieces)


def _sandbox() -> Any:
    """jinja2's immutable sandbox with the functions that chat templates expect (as in transformers)."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    remaining = MOST_ITEMS

    def bounded_range(*bounds: int) -> range:
        nonlocal remaining
        items = range(*bounds)
        remaining -= len(items)
        if remaining < 0:
            raise TemplateError(f"its ranges have more than {MOST_ITEMS} items")
        return items

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context, operator, left, right):
            if operator == "**" or not all(isinstance(side, (int, float)) for side in (left, right)):
                raise TemplateError(f"{operator} is allowed for two numbers only")
            return left * right

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals |= {"range": bounded_range, "raise_exception": raise_exception}
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(value: Any, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    """Plain JSON: jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
