"""Byte-pair encoding in plain Python equals the `tokenizers` library, token by token."""

import argparse
import json
import textwrap
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from minillm.reference import bpe
from minillm.reference.words import words

LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text()
TEXT = (
    LICENSE + argparse.__doc__ + json.__doc__ + textwrap.__doc__ + "Größe, 'tis 2049: naïve çava 東京 🙂🙂\n\n\t x  y's"
)
both_cuts = pytest.mark.parametrize("digits", [False, True], ids=["GPT-2", "SmolLM2"])
# Controls, surrogates and characters that this Python's Unicode does not know have no category to agree on.
characters = st.characters(exclude_categories=("Cs", "Cn", "Co"))
texts = st.text(st.one_of(st.sampled_from(" \n\t'sdt1２Ⅷ½a東é!\u00a0\u3000"), characters), max_size=30)


@cache
def _trained_by_the_library(digits):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        cut = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Digits(individual_digits=True), cut])
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


@cache
def _trained(digits):
    return bpe.train(TEXT, 500, digits)


@cache
def _loaded(digits):
    model = json.loads(_trained_by_the_library(digits).to_str())["model"]
    return bpe.load(model["vocab"], model["merges"], digits)


@both_cuts
def test_training_finds_the_same_merges_and_ids(digits):
    trained, loaded = _trained(digits), _loaded(digits)
    assert len(trained.ids) == 500
    assert list(trained.ranks) == list(loaded.ranks)
    assert trained.ids == loaded.ids


@both_cuts
@pytest.mark.parametrize("tokenizer", [_trained, _loaded])
def test_real_text_has_the_librarys_tokens(digits, tokenizer):
    ids = bpe.encode(tokenizer(digits), TEXT)
    assert ids == _trained_by_the_library(digits).encode(TEXT).ids
    assert len(ids) < 0.6 * len(TEXT.encode())
    assert bpe.decode(tokenizer(digits), ids) == TEXT


@both_cuts
@given(text=texts)
def test_any_text_has_the_librarys_tokens_and_comes_back(digits, text):
    ids = bpe.encode(_loaded(digits), text)
    assert ids == _trained_by_the_library(digits).encode(text).ids
    assert bpe.decode(_loaded(digits), ids) == text


@given(st.lists(st.integers(0, 499), max_size=20))
def test_any_tokens_have_the_librarys_text_even_where_they_are_no_text(ids):
    assert bpe.decode(_loaded(False), ids) == _trained_by_the_library(False).decode(ids)


@given(texts, st.booleans())
def test_words_are_the_text_cut(text, digits):
    assert "".join(words(text, digits)) == text
    assert all(words(text, digits))


def test_words_as_gpt2_and_smollm2_cut_them():
    assert words("I'll  say 2049\n\nx's !?'s") == ["I", "'ll", " ", " say", " 2049", "\n", "\n", "x", "'s", " !?'", "s"]
    assert words("a  12", digits=True) == ["a", "  ", "1", "2"]
    assert words("x\n\n3", digits=True) == ["x", "\n\n", "3"]


def test_the_library_has_a_token_for_each_byte_of_every_file():
    assert sorted(bpe.byte_characters().values()) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
