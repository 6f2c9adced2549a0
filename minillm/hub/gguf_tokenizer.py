"""The tokenizer in the metadata of a GGUF file, built as in llama.cpp (src/llama-vocab.cpp).

transformers' conversion of the same metadata does not split SmolLM2's digits and so encodes "12" wrongly.
"""

import math
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from minillm.errors import InputError
from minillm.hub.gguf_sentencepiece import sentencepiece
from minillm.tokenizer import Tokenizer, chosen_template

# llama.cpp's token types. Unused are the rows of the embeddings without a token.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# The metadata's names of the roles, and of the tokens that end a turn or a message.
ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
ENDS = {"turn": "eot", "message": "eom"}
# llama.cpp's defaults for SentencePiece.
SENTENCEPIECE_ROLES = {"unk": 0, "bos": 1, "eos": 2}
# Llama 3 splits into contractions, words, up to three digits, punctuation, newlines and spaces.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS, BYTES = (ByteLevel(add_prefix_space=False, use_regex=use_regex) for use_regex in (True, False))
PRETOKENISERS: dict[str, PreTokenizer] = {
    "smollm": Sequence([Digits(individual_digits=True), WORDS]),
    "gpt-2": WORDS,
    "llama-bpe": Sequence([Split(Regex(LLAMA_3), "isolated"), BYTES]),
    # Qwen 2 splits like Llama 3, but into single digits.
    "qwen2": Sequence([Split(Regex(LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")), "isolated"), BYTES]),
}
# Other names of the same pre-tokenizers.
SYNONYMS = {
    "llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "phi-2": "gpt-2",
    "deepseek-r1-qwen": "qwen2",
}  # fmt: skip


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of the metadata (`tokenizer.ggml.*`, `tokenizer.chat_template`).

    Raises InputError for a model other than byte-level BPE and SentencePiece's BPE, and for an unknown pre-tokenizer.
    """
    template = chosen_template("the GGUF file", metadata.get("tokenizer.chat_template"))
    pipeline = _pipeline(metadata)
    roles, ends = (_special_tokens(metadata, keys) for keys in (ROLES, ENDS))
    return Tokenizer(pipeline, roles, template, dict.fromkeys(ends.values()))


def placeholder(index: int) -> str:
    """The name of a row of the embeddings that has no token, as in llama.cpp's converter."""
    return f"[PAD{index}]"


def _pipeline(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The vocabulary, merges or scores, special tokens and pre-tokenizer of the file."""
    model, kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model not in ("gpt2", "llama"):
        raise InputError(
            f"the tokenizer of a GGUF file must be 'gpt2' (byte-level BPE) or 'llama' (SentencePiece), got {model!r}"
        )
    kind = SYNONYMS.get(kind, kind) if isinstance(kind, str) else kind
    tokens, types = _texts(metadata, "tokens"), metadata.get("tokenizer.ggml.token_type")
    if len(set(tokens)) != len(tokens):
        raise InputError("the vocabulary of this GGUF file has a duplicate token")
    if types is not None and (not isinstance(types, list) or len(types) != len(tokens)):
        raise InputError("this GGUF file must have one token type per token")
    types = types or [NORMAL] * len(tokens)
    vocabulary = {token: index for index, token in enumerate(tokens)
                  if not (types[index] == UNUSED and token == placeholder(index))}  # fmt: skip
    pieces = model == "llama"
    built = _sentencepiece(metadata, vocabulary, types) if pieces else _byte_pairs(metadata, vocabulary, kind)
    for type_, add in ((CONTROL, built.add_special_tokens), (USER_DEFINED, built.add_tokens)):
        chosen = [token for token, its_type in zip(tokens, types, strict=True) if its_type == type_]
        add([AddedToken(token, special=type_ == CONTROL, normalized=False) for token in chosen])
    bos = _special_tokens(metadata, ROLES).get("bos")
    # llama.cpp's default, where the file does not say whether texts start with bos.
    default = pieces or kind == "llama-bpe"
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", default) is True:
        built.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, vocabulary[bos])])
    return built


def _byte_pairs(metadata: Mapping[str, Any], vocabulary: dict[str, int], kind: Any) -> tokenizers.Tokenizer:
    """Byte-level BPE with the pre-tokenizer `kind`."""
    if kind not in tuple(PRETOKENISERS):
        known = ", ".join([*PRETOKENISERS, *SYNONYMS])
        raise InputError(f"the pre-tokenizer of a GGUF file must be one of {known}, got {kind!r}")
    merges = [tuple(merge.split(" ", 1)) for merge in _texts(metadata, "merges")]
    try:
        bpe = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind == "llama-bpe")  # pyright: ignore
    except Exception as problem:  # the library raises bare Exceptions
        reason = " ".join(str(problem).split())
        raise InputError(f"the merges of this GGUF file do not fit its vocabulary: {reason}") from None
    built = tokenizers.Tokenizer(bpe)
    built.pre_tokenizer = PRETOKENISERS[kind]
    built.decoder = decoders.ByteLevel()
    return built


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: dict[str, int], types: list[int]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE. Text never becomes control, unknown or byte tokens by merges."""
    scores: Any = metadata.get("tokenizer.ggml.scores")
    if (
        not isinstance(scores, list)
        or len(scores) != len(types)
        or not all(isinstance(score, (int, float)) and math.isfinite(score) for score in scores)
    ):
        raise InputError("this GGUF file must have one score per token, a finite number: tokenizer.ggml.scores")
    merged = {token: scores[index] for token, index in vocabulary.items()
              if types[index] not in (UNKNOWN, CONTROL, BYTE)}  # fmt: skip
    space = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
    return sentencepiece(vocabulary, merged, _special_tokens(metadata, ROLES).get("unk"), space)


def _special_tokens(metadata: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, str]:
    """The tokens whose ids the file defines, by their names in `keys`."""
    tokens, names = _texts(metadata, "tokens"), {}
    defaults = SENTENCEPIECE_ROLES if metadata.get("tokenizer.ggml.model") == "llama" else {}
    for role, key in keys.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id", defaults.get(role))
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise InputError(f"the {key} token of this GGUF file must be an id below {len(tokens)}, got {index!r}")
        names[role] = tokens[index]
    return names


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    texts = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"this GGUF file has no {key}: tokenizer.ggml.{key} must be a list of strings")
    return texts
