"""The tokenizer in the metadata of a GGUF file encodes like the pipeline that the metadata was written from."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from minillm import InputError
from minillm.hub.gguf_tokenizer import LLAMA_3, read_tokenizer
from tests.training.tokenizer_training import SPECIAL, TEMPLATE, metadata, smollm, trained

PRETOKENISERS = {
    "smollm": smollm(),
    "gpt-2": ByteLevel(add_prefix_space=False, use_regex=True),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    ),
}
PRETOKENISERS["llama3"] = PRETOKENISERS["llama-v3"] = PRETOKENISERS["llama-bpe"]


@pytest.mark.parametrize("pre", PRETOKENISERS)
@given(text=st.one_of(st.text(), st.text(alphabet="a1 \n'tTHEhe.", max_size=30)))
def test_a_gguf_tokenizer_encodes_like_its_pipeline(pre, text):
    pipeline, read = _described(pre)
    assert read.encode(text) == pipeline.encode(text, add_special_tokens=False).ids


def _described(pre, made={}):  # noqa: B006 (a cache: hypothesis calls this often)
    if pre not in made:
        pipeline = trained(PRETOKENISERS[pre])
        made[pre] = pipeline, read_tokenizer(metadata(pipeline, pre))
        pipeline.encode_special_tokens = True
    return made[pre]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a  12", ["a", "ĠĠ", "1", "2"]),
        ("smollm", "x\n\n3", ["x", "ĊĊ", "3"]),
        ("gpt-2", "a  12", ["a", "Ġ", "Ġ12"]),
        ("gpt-2", "don't 1234", ["don", "'t", "Ġ1234"]),
        ("llama-bpe", "a  1234", ["a", "Ġ", "Ġ", "123", "4"]),
        ("llama-bpe", "x!\n\n3", ["x", "!ĊĊ", "3"]),
        ("llama-bpe", "I'LL say", ["I", "'LL", "Ġsay"]),
        ("qwen2", "I'LL  say 12", ["I", "'LL", "Ġ", "Ġsay", "Ġ", "1", "2"]),
    ],
)
def test_a_pretokenizer_splits_like_llama_cpp(pre, text, pieces):
    built = read_tokenizer(metadata(trained(smollm()), pre)).pipeline.pre_tokenizer
    assert [piece for piece, _ in built.pre_tokenize_str(text)] == pieces


def test_gguf_metadata_defines_the_special_tokens():
    read = read_tokenizer(metadata(trained(smollm())))
    assert read.special == dict(zip(SPECIAL, range(3), strict=True))
    assert (read.bos, read.eos, read.pad, read.chat_template) == (1, 2, 2, TEMPLATE)
    assert not read.starts_with_bos
    assert read_tokenizer(metadata(trained(smollm()), add_bos_token=True)).starts_with_bos


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "gpt-2", "smollm", "qwen2"])
def test_without_a_setting_only_llama_3_starts_texts_with_bos(pre):
    pipeline = trained(PRETOKENISERS["llama-bpe"])
    assert read_tokenizer(metadata(pipeline, pre)).starts_with_bos == pre.startswith("llama")
    for told in (True, False):
        assert read_tokenizer(metadata(pipeline, pre, add_bos_token=told)).starts_with_bos is told


def test_the_ends_of_turns_and_messages_end_generation():
    described = metadata(trained(smollm()))
    first = len(described["tokenizer.ggml.tokens"])
    described["tokenizer.ggml.tokens"] += ["<turn>", "<message>"]
    described["tokenizer.ggml.token_type"] += [3, 1]
    described |= {"tokenizer.ggml.eot_token_id": first, "tokenizer.ggml.eom_token_id": first + 1}
    read = read_tokenizer(described)
    assert (read.eos, read.stop, read.ends) == (2, (0, 2, first, first + 1), ("<turn>", "<message>"))


def test_user_defined_tokens_are_recognised_in_text_and_are_not_special():
    described = metadata(trained(smollm()))
    described["tokenizer.ggml.tokens"].append("<tool_call>")
    described["tokenizer.ggml.token_type"].append(4)
    read = read_tokenizer(described)
    assert read.encode("<tool_call>") == [len(described["tokenizer.ggml.tokens"]) - 1]
    assert "<tool_call>" not in read.special


def test_llama_3_encodes_a_word_of_its_vocabulary_as_one_token_even_without_a_merge():
    described = metadata(trained(smollm()), "llama-bpe")
    described["tokenizer.ggml.tokens"].append("Ġunmerged")
    described["tokenizer.ggml.token_type"].append(1)
    assert read_tokenizer(described).encode(" unmerged") == [len(described["tokenizer.ggml.tokens"]) - 1]
    described["tokenizer.ggml.pre"] = "gpt-2"
    assert len(read_tokenizer(described).encode(" unmerged")) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "falcon"}, "must be one of smollm, gpt-2, llama-bpe, qwen2, "),
        ({"pre": None}, "got None"),
        ({"model": "bert"}, "must be 'gpt2' (byte-level BPE) or 'llama' (SentencePiece), got 'bert'"),
        ({"model": "llama"}, "must have one score per token, a finite number"),
        ({"tokens": None}, "has no tokens"),
        ({"merges": [1, 2]}, "has no merges"),
        ({"merges": ["nonsense"]}, "do not fit its vocabulary"),
        ({"merges": ["zzzz qqqq"]}, "do not fit its vocabulary"),
        ({"tokens": ["a", "a"]}, "a duplicate token"),
        ({"token_type": [1]}, "one token type per token"),
        ({"eos_token_id": 1_000_000}, "got 1000000"),
        ({"eos_token_id": -1}, "got -1"),
    ],
    ids=str,
)
def test_invalid_tokenizer_metadata_is_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)) as refusal:
        read_tokenizer(metadata(trained(smollm()), **changes))
    assert "\n" not in str(refusal.value)
