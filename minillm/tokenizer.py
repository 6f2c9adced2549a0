"""Text to token ids and back, and conversations to token ids.

The `tokenizers` library does the byte-pair encoding. This file adds a guarantee: text never becomes special tokens.
Only a chat template writes those; it is untrusted code and runs in a process of its own (`chat_template.py`).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import accumulate, islice
from typing import Any

import tokenizers

from minillm.chat_template import render
from minillm.errors import InputError

# The tokens that end a turn or a document in the models that we know.
ENDS = (
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>", "<|end|>", "<end_of_turn>",
)  # fmt: skip
ROLES = ("bos", "eos", "unk", "pad")
# The settings with which a part of a pipeline neither adds a space at the start of a text nor removes one.
SPACE: dict[str, dict[str, Any]] = {
    "normalizer": {},
    "pre_tokenizer": {"prepend_scheme": "never", "add_prefix_space": False},
    "decoder": {"prepend_scheme": "never", "start": 0},
}

BOS = "{{ bos_token }}"
PLAIN = (
    BOS + "{% for message in messages %}{{ message.role | capitalize }}:{{ '\\n' }}{{ message.content | trim }}"
    "{{ eos_token if message.role == 'assistant' else '' }}{{ '\\n\\n' }}{% endfor %}"
    "{{ 'Assistant:\\n' if add_generation_prompt else '' }}"
)
"""The format of conversations for a base without a chat template; bos where the base was trained with it."""

Edges = tuple[Set[str], Set[str], range]
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


class Tokenizer:
    """A `tokenizers` pipeline with the names of its special tokens and its chat template.

    `names` maps bos, eos, pad and unk to tokens, as far as the model has them; `ends` are further tokens at which
    generation ends. `prompt` encodes a text at the start of a sequence, and `encode` text that follows other tokens.
    """

    def __init__(
        self, pipeline: tokenizers.Tokenizer, names: Mapping[str, str], chat_template: str | None = None,
        ends: Iterable[str] = (),
    ):  # fmt: skip
        self.pipeline, self.names, self.chat_template = pipeline, dict(names), chat_template
        self.ends = tuple(ends)
        self.rows: int | None = None
        for role, token in [*names.items(), *(("end", token) for token in self.ends)]:
            if role not in (*ROLES, "end") or pipeline.token_to_id(token) is None:
                raise InputError(f"the {role} token {token!r} is not in the tokenizer's vocabulary")
        # A token with a role is special, whether or not its file declares it.
        known = {token.content for token in pipeline.get_added_tokens_decoder().values() if token.special}
        pipeline.add_special_tokens(sorted({*names.values(), *self.ends} - known))
        pipeline.encode_special_tokens = True
        pipeline.no_truncation()
        pipeline.no_padding()
        self.bos, self.eos, self.unk, self.pad = (
            pipeline.token_to_id(names[role]) if role in names else None for role in ROLES
        )

    def limit(self, rows: int) -> None:
        """Refuse ids that a decoder with this many embeddings does not have; a token beyond them has no role."""
        self.rows = rows
        for role in ROLES:
            if (getattr(self, role) or 0) >= rows:
                setattr(self, role, None)

    def prompt(self, text: str) -> list[int]:
        """The ids of a text at the start of a sequence: every prompt, in training and inference.

        `bos` and SentencePiece's leading space come first where the model was trained with them. An empty text is one
        token: bos, else eos. Raises InputError if there is neither.
        """
        start = [self.bos] if self.starts_with_bos and self.bos is not None else []
        if ids := start + self._encoded(self.pipeline, text):
            return ids
        if (token := self.bos if self.bos is not None else self.eos) is None:
            raise InputError("this tokenizer has neither bos nor eos, so the prompt must not be empty")
        return [token]

    def encode(self, text: str) -> list[int]:
        """The ids of text within a sequence, without added tokens; special tokens in it are treated as ordinary text.

        Bytes that are not in the vocabulary are skipped (SmolLM2 lacks a few control characters).
        """
        return self._encoded(self._within, text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """The text of the ids; bytes that are not a complete character become U+FFFD.

        The leading space that `prompt` adds is not part of the text: after bos it is removed.
        """
        ids = list(ids)
        if ids and ids[0] == self.bos and self._within is not self.pipeline:
            first = "" if skip_special else self.names["bos"]
            return first + self.pipeline.decode(ids[1:], skip_special_tokens=skip_special)
        return self._within.decode(ids, skip_special_tokens=skip_special)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids that arrive one by one, in pieces that together are `decode` of all.

        A character that is not complete yet waits for its next token.
        """
        so_far, given = [], ""
        for token in ids:
            so_far.append(token)
            text = self.decode(so_far)
            if not text.endswith("\ufffd"):
                yield text[len(given) :]
                given = text
        yield self.decode(so_far)[len(given) :]

    def _encoded(self, pipeline: tokenizers.Tokenizer, text: str) -> list[int]:
        """The ids of a text, which are not special."""
        ids = self._ids(pipeline, text)
        if not self._forbidden.isdisjoint(ids):
            raise InputError("the merges of this tokenizer turn ordinary text into a special token")
        return self._checked(ids)

    def _ids(self, pipeline: tokenizers.Tokenizer, text: str) -> list[int]:
        """What the library encodes a text as. Raises InputError where it fails."""
        try:
            return pipeline.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise InputError(f"cannot encode {text!r:.60}: it must be a string without unpaired surrogates") from None
        except BaseException as problem:
            if type(problem).__name__ != "PanicException":  # of the library in Rust, and not an Exception
                raise
            raise InputError(f"this tokenizer fails on {text!r:.60}: {problem}") from None

    def _checked(self, ids: list[int]) -> list[int]:
        """The ids. Raises InputError for one that the decoder has no embedding for."""
        if self.rows is not None and ids and (largest := max(ids)) >= self.rows:
            raise InputError(
                f"the token {self.pipeline.id_to_token(largest)!r} has the id {largest}, but the decoder has only "
                f"{self.rows} embeddings: use a text without it, or the tokenizer of this model"
            )
        return ids

    def chat(self, messages: Messages, *, tools: Tools = None, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation: the template's special tokens are special, the messages' are ordinary text.

        (A token that a template builds around a field, like `'<|' + role + '|>'`, is special.)
        Without a chat template, the format is `PLAIN`. Raises InputError if the template fails or exceeds a limit.
        """
        sentinel, _ = _unused_characters([messages, tools], self.chat_template)
        return self._chat_ids(self._rendered(messages, tools, add_generation_prompt, sentinel), sentinel)

    def chat_spans(self, messages: Messages, *, tools: Tools = None) -> tuple[list[int], list[range]]:
        """The ids of a whole conversation, and the places of those that the template writes in {% generation %}.

        Raises InputError as `chat`, and for a token that is partly in {% generation %}.
        """
        sentinel, edge = _unused_characters([messages, tools], self.chat_template)
        pieces = self._rendered(messages, tools, False, sentinel, edge).split(edge)
        ids, places = self._chat_ids("".join(pieces), sentinel), []
        for start in accumulate(pieces[:-1]):
            before = self._chat_ids(start, sentinel)
            if ids[: len(before)] != before:
                raise InputError("the chat template has an edge of {% generation %} within a token: move it")
            places.append(len(before))
        return ids, list(map(range, places[::2], places[1::2]))

    def _chat_ids(self, rendered: str, sentinel: str) -> list[int]:
        if sentinel not in rendered:
            return self._checked(self._ids(self._recognising, rendered))
        ids: list[int] = []
        for piece in re.split(f"((?:{self._pattern})(?!{sentinel}{sentinel}))", rendered):
            # The pipeline adds SentencePiece's space to every piece between special tokens, or to the first alone.
            pipeline = self._within if ids and self._spaces_first_piece else self.pipeline
            text = piece.replace(sentinel, "")
            ids += [self.special[piece]] if piece in self.special else self._encoded(pipeline, text)
        return self._checked(ids)

    def check_template(self) -> None:
        """Raises InputError without a chat template: a base like this was not trained on conversations."""
        if self.chat_template is None:
            raise InputError("this tokenizer has no chat template; use plain text, in commands without --chat")

    def render_chat(self, messages: Messages, *, tools: Tools = None, add_generation_prompt: bool = True) -> str:
        """The conversation as the chat template writes it, for display; `chat` returns the ids."""
        sentinel, _ = _unused_characters([messages, tools], self.chat_template)
        return self._rendered(messages, tools, add_generation_prompt, sentinel).replace(sentinel, "")

    def _rendered(
        self, messages: Messages, tools: Tools, add_generation_prompt: bool, sentinel: str, edge: str = ""
    ) -> str:
        """The output of the template, with sentinels that split special tokens within messages and at their edges.

        `edge` is written at the start and at the end of {% generation %}.
        """
        given: dict[str, Any] = {f"{role}_token": token for role, token in self.names.items()}
        for name, value in (("messages", messages), ("tools", tools)):
            given[name] = _with_sentinels(value, self._edges, self._pattern, sentinel)
        given |= {"add_generation_prompt": add_generation_prompt, "generation_edge": edge}
        plain = PLAIN if self.starts_with_bos else PLAIN.removeprefix(BOS)
        return render(plain if self.chat_template is None else self.chat_template, given)

    @property
    def vocabulary(self) -> int:
        """The number of ids; the embedding of a decoder may have more rows."""
        return self.pipeline.get_vocab_size()

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """The ids at which generation ends: eos, `ends`, and special tokens that are known to end a turn or a text."""
        ends = {self.special[token] for token in (*ENDS, *self.ends) if token in self.special}
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
    def _parts(self) -> dict[str, Any]:
        """The parts of the pipeline that may add or remove a space at the start of a text."""
        parts = {name: getattr(self.pipeline, name) for name in SPACE}
        return {name: json.loads(part.__getstate__()) for name, part in parts.items() if part is not None}

    @property
    def _spaces_first_piece(self) -> bool:
        return '"prepend_scheme": "first"' in json.dumps(self._parts.get("pre_tokenizer"))

    @cached_property
    def _within(self) -> tokenizers.Tokenizer:
        """The pipeline for text within a sequence: SentencePiece's leading space is neither added nor removed."""
        parts = {name: _without(part, SPACE[name]) for name, part in self._parts.items()}
        if parts == self._parts:
            return self.pipeline
        within = tokenizers.Tokenizer.from_str(json.dumps(json.loads(self.pipeline.to_str()) | parts))
        within.encode_special_tokens = True
        return within

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
    def _edges(self) -> Edges:
        """The proper starts and ends of all special tokens, in lower case, and their lengths."""
        starts = {token[:cut].lower() for token in self.special for cut in range(1, len(token))}
        ends = {token[cut:].lower() for token in self.special for cut in range(1, len(token))}
        return starts, ends, range(1, 1 + max(map(len, starts | ends), default=0))

    @cached_property
    def _pattern(self) -> str:
        """A regular expression for any special token, the longest first."""
        longest_first = sorted(self.special, key=len, reverse=True)
        return "|".join(re.escape(token) for token in longest_first) or "(?!)"


def _without(part: Any, settings: Mapping[str, Any]) -> Any:
    """A part of a pipeline with these settings wherever it has them, and without a text to prepend."""
    if isinstance(part, list):
        return [_without(each, settings) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    return {name: settings.get(name, _without(value, settings)) for name, value in part.items()}


def chosen_template(where: object, templates: Any) -> str | None:
    """The chat template; of a list, the one named "default". Raises InputError if it is not a string."""
    if isinstance(templates, list):
        named = [entry for entry in templates if isinstance(entry, dict) and entry.get("name") == "default"]
        templates = named[0].get("template") if named else None
    if not isinstance(templates, str | None):
        raise InputError(f"the chat template of {where} must be a string, got {type(templates).__name__}")
    return templates


def _unused_characters(messages: Any, template: str | None) -> tuple[str, str]:
    """Two sentinels: private-use characters that occur in neither the messages nor the template."""
    try:
        used = set(json.dumps(messages, ensure_ascii=False)) | set(template or "")
    except (TypeError, ValueError):
        raise InputError(
            "a conversation must be a list of messages: objects with string fields such as role and content"
        ) from None
    unused = [*islice((character for code in range(0xF0000, 0xFFFFE) if (character := chr(code)) not in used), 2)]
    if len(unused) < 2:
        raise InputError("the messages use every private-use character of Unicode")
    return unused[0], unused[1]


def _with_sentinels(value: Any, edges: Edges, pattern: str, sentinel: str) -> Any:
    """The messages with two sentinels inside every special token, and one at an edge that could complete one.

    Matching ignores case, because a template may change it. (A token of a single character cannot be split: the two
    sentinels after it distinguish it from a token that the template wrote.)
    """
    if isinstance(value, Mapping):
        items = ((key, _with_sentinels(item, edges, pattern, sentinel)) for key, item in value.items())
        return {_with_sentinels(key, edges, pattern, sentinel): item for key, item in items}
    if isinstance(value, (list, tuple)):
        return [_with_sentinels(item, edges, pattern, sentinel) for item in value]
    if not isinstance(value, str):
        return value
    lower, (starts, ends, lengths) = value.lower(), edges
    before = sentinel if any(lower[:length] in ends for length in lengths) else ""
    after = sentinel if any(lower[-length:] in starts for length in lengths) else ""
    broken = re.sub(f"(?={pattern})(.)", lambda found: found[1] + sentinel + sentinel, value, flags=re.I | re.S)
    return before + broken + after
