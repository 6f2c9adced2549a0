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
both_splits = pytest.mark.parametrize("digits", [False, True], ids=["GPT-2", "SmolLM2"])
# Surrogates and characters that this Python's Unicode does not define have no category to compare.
characters = st.characters(exclude_categories=("Cs", "Cn", "Co"))
texts = st.text(st.one_of(st.sampled_from(" \n\t'sdt1２Ⅷ½a東é!\u00a0\u3000"), characters), max_size=30)


@cache
def _trained_by_the_library(digits):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        split = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Digits(individual_digits=True), split])
    tokenizer.pre_tokenizer = split
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


@pytest.mark.slow
@both_splits
def test_training_finds_the_same_merges_and_ids(digits):
    trained, loaded = _trained(digits), _loaded(digits)
    assert len(trained.ids) == 500
    assert list(trained.ranks) == list(loaded.ranks)
    assert trained.ids == loaded.ids


@pytest.mark.slow
@both_splits
@pytest.mark.parametrize("tokenizer", [_trained, _loaded])
def test_real_text_has_the_librarys_tokens(digits, tokenizer):
    ids = bpe.encode(tokenizer(digits), TEXT)
    assert ids == _trained_by_the_library(digits).encode(TEXT).ids
    assert len(ids) < 0.6 * len(TEXT.encode())
    assert bpe.decode(tokenizer(digits), ids) == TEXT


@both_splits
@given(text=texts)
def test_any_text_has_the_librarys_tokens_and_is_restored(digits, text):
    ids = bpe.encode(_loaded(digits), text)
    assert ids == _trained_by_the_library(digits).encode(text).ids
    assert bpe.decode(_loaded(digits), ids) == text


@given(st.lists(st.integers(0, 499), max_size=20))
def test_any_tokens_have_the_librarys_text_even_if_they_are_not_valid_utf8(ids):
    assert bpe.decode(_loaded(False), ids) == _trained_by_the_library(False).decode(ids)


@given(texts, st.booleans())
def test_words_joined_are_the_text(text, digits):
    assert "".join(words(text, digits)) == text
    assert all(words(text, digits))


def test_words_as_gpt2_and_smollm2_split_them():
    assert words("I'll  say 2049\n\nx's !?'s") == ["I", "'ll", " ", " say", " 2049", "\n", "\n", "x", "'s", " !?'", "s"]
    assert words("a  12", digits=True) == ["a", "  ", "1", "2"]
    assert words("x\n\n3", digits=True) == ["x", "\n\n", "3"]
