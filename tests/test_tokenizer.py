"""Encoding and decoding are inverse, text never becomes special tokens, and files of transformers are loaded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers import models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from minillm import InputError, Tokenizer
from minillm.hub.gguf_tokenizer import read_tokenizer
from tests.training.tokenizer_training import HOSTILE, NAMES, SPECIAL, TEMPLATE, metadata, smollm, trained, user


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


def test_minillm_and_transformers_load_a_saved_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.names, again.special, again.stop) == (tokenizer.names, tokenizer.special, tokenizer.stop)
    assert again.chat(user("a <|im_end|> b")) == tokenizer.chat(user("a <|im_end|> b"))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("a  12 film\n\n3")["input_ids"] == tokenizer.encode("a  12 film\n\n3")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)
    conversation = [
        {"role": "system", "content": " x > y"},
        *user("the film, 12?"),
        {"role": "assistant", "content": ""},
    ]
    for prompted in (True, False):
        expected = theirs.apply_chat_template(conversation, add_generation_prompt=prompted, return_dict=False)
        assert tokenizer.chat(conversation, add_generation_prompt=prompted) == expected
    theirs.save_pretrained(tmp_path / "theirs")
    again = Tokenizer.from_directory(tmp_path / "theirs")
    assert (again.names, again.chat_template) == (tokenizer.names, TEMPLATE)
    assert again.chat(user("film")) == tokenizer.chat(user("film"))


def test_a_separate_template_file_takes_precedence_and_saving_removes_it(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert Tokenizer.from_directory(tmp_path).render_chat(user("hello")) == "hello"
    tokenizer.save(tmp_path)
    assert Tokenizer.from_directory(tmp_path).chat_template == TEMPLATE


def test_older_formats_of_the_settings_are_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    settings = {"bos_token": {"content": "<|im_start|>", "special": True}, "eos_token": None, "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = Tokenizer.from_directory(tmp_path)
    assert (read.names, read.chat_template) == ({"bos": "<|im_start|>"}, TEMPLATE)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_directory(tmp_path).names == {}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"bos_token": 7}', '{"bos_token": "<nowhere>"}'])
def test_damaged_tokenizer_files_are_refused(tokenizer, tmp_path, file, text):
    tokenizer.save(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError):
        Tokenizer.from_directory(tmp_path)


def test_truncation_and_padding_in_a_file_are_disabled(tmp_path):
    pipeline = trained(smollm())
    pipeline.enable_truncation(2)
    pipeline.enable_padding(length=99)
    Tokenizer(trained(smollm()), {}).save(tmp_path)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    read = Tokenizer.from_directory(tmp_path)
    assert read.encode("the film is the end") == Tokenizer(trained(smollm()), {}).encode("the film is the end")


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
