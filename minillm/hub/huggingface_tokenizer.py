"""The tokenizer of a Hugging Face directory, and where its model starts and ends.

A role (bos, eos, pad, unk) is declared in tokenizer_config.json, else in special_tokens_map.json, else by an id in
generation_config.json or config.json, else by the post-processor in tokenizer.json. Every end that one of them declares
ends generation.
"""

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from minillm.errors import InputError
from minillm.hub.family import Settings
from minillm.runtime.files import commit
from minillm.runtime.reading import read_json, read_text, reading
from minillm.tokenizer import ROLES, Tokenizer, chosen_template

PIPELINE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
GPT2_FILES = ("vocab.json", "merges.txt")
OTHERS = ("special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template.jinja")
READ = {PIPELINE, SETTINGS, *GPT2_FILES, *OTHERS}
"""The files, besides config.json, that a tokenizer is read from."""
GPT2_END = "<|endoftext|>"
GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")

MOST_IDS, MOST_GROWTH = 2**22, 1000
"""Four times the largest vocabularies: the library needs memory for every number up to the largest id. And how many
times longer the replacements of a pipeline may make a text."""


def read_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of tokenizer.json, or of GPT-2's vocab.json and merges.txt; None if the directory has neither.

    Raises InputError for damaged files.
    """
    settings, template = _optional(directory / SETTINGS), directory / "chat_template.jinja"
    if (directory / PIPELINE).exists():
        pipeline = _pipeline(directory / PIPELINE)
    elif all((directory / name).exists() for name in GPT2_FILES):
        with reading(directory, "GPT-2's tokenizer"):
            pipeline = _gpt2(directory, settings)
    else:
        return None
    chosen = read_text(template) if template.exists() else settings.get("chat_template")
    with reading(directory, "a tokenizer"):
        return _with_roles(directory, settings, pipeline, chosen_template(directory / SETTINGS, chosen))


def _with_roles(
    directory: Path, settings: Settings, pipeline: tokenizers.Tokenizer, template: str | None
) -> Tokenizer:  # fmt: skip
    names = _names(directory, settings)
    # As in transformers; the ids may be ones that the decoder has no embedding for.
    named = [names[role] for role in ROLES if role in names]
    pipeline.add_special_tokens([token for token in named if pipeline.token_to_id(token) is None])
    declared = list(_declared(directory, pipeline))
    for role, token in [*declared, *_surrounding(pipeline)]:
        names.setdefault(role, token)
    ends = dict.fromkeys(token for role, token in declared if role == "eos" and token != names.get("eos"))
    return Tokenizer(pipeline, names, template, ends)


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which `read_tokenizer` and transformers read."""
    settings: dict[str, Any] = {f"{role}_token": token for role, token in tokenizer.names.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    with commit(directory) as new:
        new.removed |= READ  # files of an earlier tokenizer would be read as well
        new.text(PIPELINE, tokenizer.pipeline.to_str(pretty=True))
        new.text(SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False))


def written_ids(tokenizer: Tokenizer | None) -> dict[str, int | list[int] | None]:
    """The ids in config.json. Null without a tokenizer: the defaults of transformers belong to another vocabulary."""
    roles: dict[str, int | list[int] | None] = {role: getattr(tokenizer, role, None) for role in ("bos", "eos", "pad")}
    if tokenizer is not None and tokenizer.ends:
        ends = (tokenizer.names.get("eos"), *tokenizer.ends)
        roles["eos"] = [tokenizer.special[token] for token in ends if token is not None]
    return {f"{role}_token_id": value for role, value in roles.items()}


def _pipeline(path: Path) -> tokenizers.Tokenizer:
    """The pipeline in tokenizer.json, which is checked before the library reads it: it aborts without memory."""
    found = read_json(path)
    with reading(path, "a tokenizer"):
        vocabulary = found["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram
            vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
        added = {token["content"]: token["id"] for token in found["added_tokens"]}
        _check_ids(path, {**vocabulary, **added})
        for name in ("normalizer", "decoder"):
            if _growth(found.get(name)) > MOST_GROWTH:
                raise InputError(f"{path}: the {name} must lengthen a text at most {MOST_GROWTH} times")
        # minillm cuts and pads itself, and a length in the file may fill the memory.
        padding = found.get("padding") and {**found["padding"], "strategy": "BatchLongest", "pad_to_multiple_of": None}
        pipeline = tokenizers.Tokenizer.from_str(json.dumps(found | {"truncation": None, "padding": padding}))
        _check_added(path, added, pipeline)
    return pipeline


def _check_ids(path: Path, ids: Mapping[str, Any]) -> None:
    """Raises InputError for ids that cannot be numbers of embeddings, and for two tokens with the same id."""
    for token, index in ids.items():
        if type(index) is not int or not 0 <= index < MOST_IDS:
            raise InputError(f"{path}: the id of {token!r:.40} must be an integer below {MOST_IDS}, got {index!r:.40}")
    by_id = {index: token for token, index in ids.items()}
    if len(by_id) < len(ids):
        token = next(token for token, index in ids.items() if by_id[index] != token)
        raise InputError(f"{path}: {token!r:.60} and {by_id[ids[token]]!r:.60} have the same id, {ids[token]}")


def _growth(part: Any) -> int:
    """The largest factor by which the replacements in a part of a pipeline, one after another, lengthen a text."""
    if isinstance(part, list):
        return prod(map(_growth, part))
    if not isinstance(part, dict):
        return 1
    if part.get("type") != "Replace":
        return _growth(list(part.values()))
    old, new = part["pattern"].get("String"), part["content"]
    return 1 if old and len(new) <= len(old) else 1 + len(new)


def _check_added(path: Path, added: Mapping[str, int], pipeline: tokenizers.Tokenizer) -> None:
    """Raises InputError for an added token to which the library gives another id."""
    for token, index in added.items():
        if (given := pipeline.token_to_id(token)) != index:
            raise InputError(f"{path}: the added token {token!r:.60} must have the next free id, {given}, got {index}")


def _gpt2(directory: Path, settings: Settings) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer from the files of its first release: byte-level BPE, and tokens that were added later."""
    if (kind := settings.get("tokenizer_class")) not in GPT2_CLASSES:
        raise InputError(f"{directory} has no {PIPELINE}, and minillm builds GPT-2's tokenizer alone, not a {kind!r}")
    vocabulary, merges = (directory / name for name in GPT2_FILES)
    _check_ids(vocabulary, read_json(vocabulary))
    pipeline = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    space = settings.get("add_prefix_space") is True
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    pipeline.decoder = decoders.ByteLevel()
    added = _optional(directory / "added_tokens.json")
    pipeline.add_tokens([AddedToken(token, normalized=False) for token in sorted(added, key=lambda name: added[name])])
    _check_added(directory / "added_tokens.json", added, pipeline)
    if pipeline.token_to_id(GPT2_END) is not None:
        pipeline.add_special_tokens([GPT2_END])
    return pipeline


def _names(directory: Path, settings: Settings) -> dict[str, str]:
    """The tokens that the tokenizer's own files name for a role."""
    names: dict[str, str] = {}
    mapped = _optional(directory / "special_tokens_map.json")
    for path, found in ((directory / SETTINGS, settings), (directory / "special_tokens_map.json", mapped)):
        for role in ROLES:
            stored = found.get(f"{role}_token")
            # Older files wrap a token in an object.
            name = stored.get("content") if isinstance(stored, dict) else stored
            if not isinstance(name, str | None):
                raise InputError(f"a special token in {path} must be a string, got {name!r}")
            if name:
                names.setdefault(role, name)
    return names


def _declared(directory: Path, pipeline: tokenizers.Tokenizer) -> Iterator[tuple[str, str]]:
    """The roles and tokens of the model's ids, in the order of precedence.

    Only tokens that were added to the vocabulary: transformers writes the default ids of another one too.
    """
    added = pipeline.get_added_tokens_decoder()
    for path in (directory / "generation_config.json", directory / "config.json"):
        settings = _optional(path)
        for role in ("bos", "eos", "pad"):
            found = settings.get(f"{role}_token_id")
            ids = found if isinstance(found, list) else [] if found is None else [found]
            if not all(type(index) is int for index in ids):
                raise InputError(f"{path}: {role}_token_id must be an id or a list of ids, got {found!r}")
            yield from ((role, added[index].content) for index in ids if index in added)


def _surrounding(pipeline: tokenizers.Tokenizer) -> Iterator[tuple[str, str]]:
    """The tokens that tokenizer.json puts before a text (bos), after it (eos), in padding, and for unknown words."""
    plain, whole = (pipeline.encode("a", add_special_tokens=special).tokens for special in (False, True))
    starts = [n for n in range(len(whole)) if plain and whole[n : n + len(plain)] == plain]
    if starts:
        before, after = whole[: starts[0]], whole[starts[0] + len(plain) :]
        yield from ((role, tokens[0]) for role, tokens in (("bos", before), ("eos", after)) if len(tokens) == 1)
    unknown, padding = getattr(pipeline.model, "unk_token", None), pipeline.padding or {}
    for role, token in (("unk", unknown), ("pad", padding.get("pad_token"))):
        if token is not None and pipeline.token_to_id(token) is not None:
            yield role, token


def _optional(path: Path) -> Settings:
    """The object in a JSON file; empty if there is no such file."""
    return read_json(path) if path.exists() else {}
