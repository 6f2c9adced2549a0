"""The tokenizer that a GGUF file's metadata describes, built as llama.cpp builds it (src/llama-vocab.cpp).

transformers' conversion of the same metadata leaves SmolLM2's single digits out, and so encodes "12" wrongly.
"""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from minillm.errors import InputError
from minillm.tokenizer import Tokenizer, chosen_template

# llama.cpp's token types: special tokens, and whole words that its user added.
CONTROL, USER_DEFINED = 3, 4
PRETOKENISERS = ("smollm", "gpt-2", "llama-bpe")

# How Llama 3 cuts text: contractions, words, up to three digits, signs, line ends, spaces.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of the metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`).

    Raises InputError for another model than byte-level BPE, and for a pre-tokeniser that is not known here.
    """
    template = chosen_template("the GGUF file", metadata.get("tokenizer.chat_template"))
    return Tokenizer(_pipeline(metadata), _special_names(metadata), template)


def _pipeline(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE with the file's vocabulary, merges, special tokens and pre-tokeniser."""
    model, kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model != "gpt2":
        raise InputError(f"this GGUF file's tokenizer is a {model!r}; minillm reads 'gpt2', which is byte-level BPE")
    tokens, types = _texts(metadata, "tokens"), metadata.get("tokenizer.ggml.token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise InputError("this GGUF file's vocabulary has a token twice")
    if types is not None and (not isinstance(types, list) or len(types) != len(tokens)):
        raise InputError("this GGUF file has another number of token types than of tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _texts(metadata, "merges")]
    try:
        bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind == "llama-bpe")  # pyright: ignore
    except Exception as problem:  # the library raises bare Exceptions
        raise InputError(
            f"this GGUF file's merges do not fit its vocabulary: {' '.join(str(problem).split())}"
        ) from None
    built = tokenizers.Tokenizer(bpe)
    built.pre_tokenizer = pretokeniser(kind)
    built.decoder = decoders.ByteLevel()
    for type_, add in ((CONTROL, built.add_special_tokens), (USER_DEFINED, built.add_tokens)):
        chosen = [token for token, its_type in zip(tokens, types or [], strict=False) if its_type == type_]
        add([AddedToken(token, special=type_ == CONTROL, normalized=False) for token in chosen])
    bos = _special_names(metadata).get("bos")
    if metadata.get("tokenizer.ggml.add_bos_token") is True and bos is not None:
        built.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, vocabulary[bos])])
    return built


def _special_names(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that are bos, eos, pad and unk, as far as the file says."""
    tokens, names = _texts(metadata, "tokens"), {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise InputError(f"this GGUF file's {key} token is {index!r}, and its ids end at {len(tokens) - 1}")
        names[role] = tokens[index]
    return names


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    texts = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"this GGUF file's tokenizer lacks its {key} (tokenizer.ggml.{key}, a list of texts)")
    return texts


def pretokeniser(kind: Any) -> PreTokenizer:
    if kind == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])
    if kind == "gpt-2":
        return ByteLevel(add_prefix_space=False, use_regex=True)
    if kind == "llama-bpe":
        return Sequence([Split(Regex(LLAMA_3), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    raise InputError(f"this GGUF file's pre-tokeniser is {kind!r}; minillm knows {', '.join(PRETOKENISERS)}")
