"""A tokenizer as the metadata of a GGUF file, the inverse of `gguf_tokenizer.py`.

llama.cpp encodes every text as the pipeline does, or the pipeline is refused. (One exception: llama.cpp has no NFC
normalisation, so text that is not in NFC gets other tokens where the pipeline normalises it.)
"""

import json
from typing import Any

from minillm.errors import InputError
from minillm.hub.gguf_sentencepiece import BYTES, adds_space, piece_scores
from minillm.hub.gguf_tokenizer import BYTE, CONTROL, NORMAL, PRETOKENISERS, UNUSED, USER_DEFINED, placeholder
from minillm.tokenizer import ENDS, Tokenizer

ADVICE = "; save the model in Hugging Face's layout instead"


def describe_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    """Write `tokenizer.ggml.*` for a decoder with this number of embeddings.

    An embedding without a token gets a placeholder, as llama.cpp needs one token per row. Raises InputError for a
    tokenizer that llama.cpp would apply otherwise.
    """
    pipeline = json.loads(tokenizer.pipeline.to_str())
    names = {index: token for token, index in tokenizer.pipeline.get_vocab(with_added_tokens=True).items()}
    if max(names) >= rows:
        raise InputError(f"the tokenizer has the id {max(names)}, but the decoder only {rows} embeddings{ADVICE}")
    added = {token["content"] for token in pipeline["added_tokens"]}
    _check_added(pipeline)
    tokens = [names.get(index, placeholder(index)) for index in range(rows)]
    types = [NORMAL if index in names else UNUSED for index in range(rows)]
    for index, token in names.items():
        if token in added:
            types[index] = CONTROL if token in tokenizer.special else USER_DEFINED
    if pipeline["model"].get("byte_fallback"):
        types = [BYTE if token in BYTES else type_ for token, type_ in zip(tokens, types, strict=True)]
        _describe_sentencepiece(writer, pipeline, tokens)
    else:
        _describe_byte_pairs(writer, pipeline)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _describe_roles(writer, tokenizer)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _check_added(pipeline: dict[str, Any]) -> None:
    """llama.cpp finds added tokens in the text as it is, and nothing around them."""
    for token in pipeline["added_tokens"]:
        flags = [flag for flag in ("lstrip", "rstrip", "single_word") if token[flag]]
        if token["normalized"] and not token["special"] and pipeline["normalizer"] is not None:
            flags.append("normalized")
        if flags:
            raise InputError(f"llama.cpp has no {flags[0]} for the added token {token['content']!r}{ADVICE}")


def _describe_byte_pairs(writer: Any, pipeline: dict[str, Any]) -> None:
    """Byte-level BPE with one of llama.cpp's pre-tokenizers."""
    model = pipeline["model"]
    plain = model["type"] == "BPE" and pipeline["normalizer"] in (None, {"type": "NFC"}) and model["merges"]
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    kinds = [
        kind
        for kind, built in PRETOKENISERS.items()
        if _without_offsets(pipeline["pre_tokenizer"]) == _without_offsets(json.loads(built.__getstate__()))
        and bool(model.get("ignore_merges")) == (kind == "llama-bpe")
    ]
    if not plain or affixes or not kinds:
        raise InputError(
            "GGUF has no tokenizer type for this tokenizer: it must be byte-level BPE without a normalizer and "
            f"with the pre-tokenizer {', '.join(PRETOKENISERS)}, or SentencePiece's BPE with byte fallback{ADVICE}"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kinds[0])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])


def _describe_sentencepiece(writer: Any, pipeline: dict[str, Any], tokens: list[str]) -> None:
    """SentencePiece's BPE. A token that no merge forms has the lowest score."""
    if pipeline["model"]["type"] != "BPE":
        raise InputError(f"GGUF has no byte fallback for {pipeline['model']['type']}, only for BPE{ADVICE}")
    scores = piece_scores(pipeline)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([scores.get(token, -float(len(scores))) for token in tokens])
    writer.add_add_space_prefix(adds_space(pipeline))


def _without_offsets(part: Any) -> Any:
    """A part of a pipeline without `trim_offsets`, which does not change the ids."""
    if isinstance(part, dict):
        return {name: _without_offsets(value) for name, value in part.items() if name != "trim_offsets"}
    return [_without_offsets(value) for value in part] if isinstance(part, list) else part


def _describe_roles(writer: Any, tokenizer: Tokenizer) -> None:
    """bos, eos, pad, unk, and up to two more ends. llama.cpp knows those of `ENDS` by name."""
    if tokenizer.eos is None:
        raise InputError("GGUF needs an eos token, else llama.cpp ends at token 11: name one in tokenizer_config.json")
    writer.add_eos_token_id(tokenizer.eos)
    for token, add in (
        (tokenizer.bos, writer.add_bos_token_id),
        (tokenizer.pad, writer.add_pad_token_id),
        (tokenizer.unk, writer.add_unk_token_id),
    ):
        if token is not None:
            add(token)
    names = {index: token for token, index in tokenizer.special.items()}
    ends = sorted(set(tokenizer.stop) - {tokenizer.eos}, key=lambda end: names.get(end) in ENDS)
    if any(names.get(end) not in ENDS for end in ends[2:]):
        raise InputError(f"GGUF has three ends of generation, got {len(ends) + 1}: {tokenizer.stop}{ADVICE}")
    for end, add in zip(ends, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(end)
    writer.add_add_bos_token(tokenizer.starts_with_bos)
    writer.add_add_eos_token(False)
