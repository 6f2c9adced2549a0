"""Encoding and decoding are inverse, and text never becomes special tokens."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers import models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from minillm import InputError, Tokenizer
from minillm.hub.gguf_tokenizer import read_tokenizer
from tests.training.tokenizer_training import (
    HOSTILE,
    NAMES,
    SPECIAL,
    TEMPLATE,
    metadata,
    sentencepiece,
    smollm,
    trained,
    user,
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(trained(smollm()), NAMES, TEMPLATE)


@given(st.text())
def test_decoding_undoes_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(HOSTILE)
def test_text_never_becomes_a_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == text


def test_encoding_adds_no_tokens_and_refuses_unpaired_surrogates(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.encode("the") + tokenizer.encode(" film") == tokenizer.encode("the film")
    with pytest.raises(InputError, match="surrogate"):
        tokenizer.encode("half \ud800 of a pair")


def test_decoding_can_skip_special_tokens(tokenizer):
    ids = [1, *tokenizer.encode("the film"), 2]
    assert tokenizer.decode(ids) == "<|im_start|>the film<|im_end|>"
    assert tokenizer.decode(ids, skip_special=True) == "the film"


def test_special_tokens_have_roles(tokenizer):
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.stop) == (1, 2, 2, (0, 2))
    bare = Tokenizer(trained(smollm()), {})
    assert (bare.bos, bare.eos, bare.pad, bare.chat_template) == (None, None, None, None)
    assert bare.stop == (0, 2)
    with pytest.raises(InputError, match="'<s>' is not in the tokenizer's vocabulary"):
        Tokenizer(trained(smollm()), {"bos": "<s>"})


def test_different_tokenizers_have_different_fingerprints(tokenizer):
    assert len(tokenizer.fingerprint) == 64
    others = [
        Tokenizer(trained(ByteLevel(add_prefix_space=False)), NAMES, TEMPLATE),
        Tokenizer(trained(smollm()), NAMES, TEMPLATE + " "),
        Tokenizer(trained(smollm()), {}, TEMPLATE),
    ]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 4
    reordered = dict(reversed(NAMES.items()))
    assert Tokenizer(trained(smollm()), reordered, TEMPLATE).fingerprint == tokenizer.fingerprint


def word_level():
    pipeline = Pipeline(models.WordLevel({"<s>": 0, "hello": 1, "[UNK]": 2}, unk_token="[UNK]"))
    pipeline.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return pipeline


def test_a_vocabulary_that_would_encode_text_as_special_tokens_is_refused():
    pipeline = word_level()
    pipeline.add_special_tokens(["<s>", "[UNK]"])
    hostile = Tokenizer(pipeline, {"bos": "<s>", "unk": "[UNK]"})
    assert hostile.encode("hello stranger") == [1, 2]
    with pytest.raises(InputError, match="special token"):
        hostile.encode("hello <s>")


def test_a_token_with_a_role_is_special_even_if_its_file_does_not_declare_it():
    pipeline = word_level()
    pipeline.add_tokens(["<s>"])
    assert Tokenizer(pipeline, {"bos": "<s>"}).special == {"<s>": 0}
    described = {**metadata(trained(smollm())), "tokenizer.ggml.token_type": None}
    assert read_tokenizer(described).special == dict(zip(SPECIAL, range(3), strict=True))


SENTENCEPIECE = {
    style: Tokenizer(sentencepiece(style), {"bos": "<s>", "eos": "</s>", "unk": "<unk>"})
    for style in ("normalizer", "first", "always")
}


@pytest.mark.parametrize("style", SENTENCEPIECE)
@given(st.text(min_size=1).filter(lambda text: text[0] != " "), st.text())
@example("the theme", " is")
@example("the theme\n", "the end")
@example("a ", "  ")
def test_sentencepieces_space_is_added_at_the_start_of_a_prompt_alone(style, prompt, answer):
    tokenizer = SENTENCEPIECE[style]
    assert tokenizer.decode(tokenizer.encode(answer)) == answer
    assert tokenizer.decode(tokenizer.prompt(prompt)) == "<s>" + prompt
    assert tokenizer.decode(tokenizer.prompt(prompt), skip_special=True) == prompt
    assert tokenizer.decode(tokenizer.prompt(prompt) + tokenizer.encode(answer)) == "<s>" + prompt + answer


@pytest.mark.parametrize("style", SENTENCEPIECE)
def test_a_prompt_and_its_answer_have_the_ids_of_the_whole_text(style):
    tokenizer = SENTENCEPIECE[style]
    for prompt, answer in (("the theme", " is thin"), ("the film\n", "is"), ("it's", " 12")):
        whole = tokenizer.pipeline.encode(prompt + answer).ids
        assert tokenizer.prompt(prompt) + tokenizer.encode(answer) == whole
    assert tokenizer.prompt("") == [1]


@pytest.mark.parametrize("tokenizer", [Tokenizer(trained(smollm()), NAMES), *SENTENCEPIECE.values()])
@given(st.lists(st.text(max_size=4), max_size=6).map("".join))
@example("a 😀 ok")
@example("\ufffd")
def test_streamed_pieces_are_whole_characters_and_together_the_text(tokenizer, text):
    ids = tokenizer.encode(text)
    *pieces, rest = tokenizer.decode_stream(iter(ids))
    assert "".join([*pieces, rest]) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_is_cut_off_is_streamed_as_a_replacement_character():
    tokenizer = Tokenizer(trained(smollm()), NAMES)
    assert "".join(tokenizer.decode_stream(tokenizer.encode("a😀")[:-1])) == "a\ufffd"


def test_ids_without_an_embedding_are_refused_when_they_are_used():
    pipeline = trained(smollm())
    rows = pipeline.get_vocab_size()
    pipeline.add_tokens(["[NEW]", "[PAD]"])
    tokenizer = Tokenizer(pipeline, NAMES | {"pad": "[PAD]"}, "{{ messages[0].content }}[NEW]")
    tokenizer.limit(rows)
    assert (tokenizer.eos, tokenizer.pad) == (2, None)
    assert max(tokenizer.prompt("the film [PAD]")) < rows
    for use in (tokenizer.encode, tokenizer.prompt, lambda text: tokenizer.chat(user(text))):
        with pytest.raises(InputError, match=rf"'\[NEW\]' has the id {rows}, but the decoder has only {rows} emb"):
            use("a [NEW]")
