"""SentencePiece tokenizers: BPE with byte fallback from GGUF files, and what GGUF cannot express."""

import json
import re

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

import minillm
from minillm import InputError
from minillm.hub.gguf_export import export
from minillm.hub.gguf_tokenizer import read_tokenizer
from minillm.tokenizer import Tokenizer
from tests.hub.gguf_writing import llama_config, random_decoder, write_llama
from tests.hub.llama_cpp import TEXTS, LlamaCpp
from tests.hub.sentence_pieces import NAMES, START, TEMPLATE, metadata, scored_pieces, sentence_pieces

SPACES = {True: sentence_pieces(), False: sentence_pieces(space=False)}
READ = {space: read_tokenizer(metadata(add_space_prefix=space)) for space in SPACES}
UNIGRAM = models.Unigram([(token, -1.0) for token in [*START, *scored_pieces()]], unk_id=0, byte_fallback=True)


@pytest.mark.parametrize("space", SPACES)
@given(text=st.one_of(st.text(), st.text(alphabet="the film-▁ \n1é😀", max_size=30)))
def test_scores_give_the_ids_of_the_merges_that_transformers_makes_of_them(space, text):
    assert READ[space].prompt(text) == SPACES[space].prompt(text)


@pytest.mark.parametrize("space", SPACES)
def test_a_file_with_scores_is_encoded_like_in_llama_cpp(tmp_path, space):
    described = metadata(add_space_prefix=space)
    rows = len(described["tokenizer.ggml.tokens"])
    path = write_llama(tmp_path / "pieces.gguf", random_decoder(llama_config(vocabulary=rows)), metadata=described)
    (_, read), llama_cpp = minillm.load(path), LlamaCpp(path)
    for text in TEXTS:
        assert read.prompt(text) == llama_cpp.encode(text, start=True)
    assert (read.bos, read.eos, read.unk, read.starts_with_bos) == (1, 2, 0, True)


def test_text_does_not_become_a_control_or_a_byte_token():
    described = metadata()
    described["tokenizer.ggml.tokens"] += ["s>", "<s", "/s>", "<"]
    described["tokenizer.ggml.scores"] += [-1.0] * 4
    described["tokenizer.ggml.token_type"] += [1] * 4
    assert not {1, 2, 13} & set(read_tokenizer(described).encode("<s> </s> <0x0A>"))


@pytest.mark.parametrize("tokenizer", [SPACES[True], SPACES[False], READ[True]])
def test_decoding_gives_the_text(tokenizer):
    for text in TEXTS:
        if not re.search(r"▁|<think>|\[NAME\]", text):
            assert tokenizer.decode(tokenizer.prompt(text), skip_special=True) == text


def test_a_hugging_face_directory_keeps_pieces_and_unigrams(tmp_path):
    pipeline = tokenizers.Tokenizer(UNIGRAM)
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    pipeline.add_special_tokens(START[:3])
    for name, tokenizer in {"pieces": SPACES[True], "unigram": Tokenizer(pipeline, NAMES, TEMPLATE)}.items():
        minillm.save(random_decoder(llama_config(vocabulary=tokenizer.vocabulary)), tokenizer, tmp_path / name)
        _, again = minillm.load(tmp_path / name)
        for text in TEXTS:
            # A Unigram model finds its special tokens in text, which is refused.
            if name == "pieces" or not re.search("<s>|</s>|<unk>", text):
                assert again.prompt(text) == tokenizer.prompt(text)
        assert again.fingerprint == tokenizer.fingerprint


def described(**changes):
    return json.loads(SPACES[True].pipeline.to_str()) | changes


def without(*merge):
    model = described()["model"]
    return {"model": model | {"merges": [other for other in model["merges"] if tuple(other) != merge]}}


def alternating():
    """A merge moved to the front, before others of which one forms the same piece."""
    merges = described()["model"]["merges"]
    pieces = ["".join(merge) for merge in merges]
    last = next(rank for rank, piece in enumerate(pieces) if piece in pieces[:rank])
    return {"model": described()["model"] | {"merges": [merges[last], *merges[:last], *merges[last + 1 :]]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}},
         "it has no Metaspace that adds a space only where there is none"),
        (without("▁", "th"), "llama.cpp joins '▁' and 'th', but the merges of this tokenizer do not"),
        (alternating(), "llama.cpp has one score per token"),
        ({"model": json.loads(tokenizers.Tokenizer(UNIGRAM).to_str())["model"]}, "no byte fallback for Unigram, only"),
    ],
    ids=["Metaspace", "missing merge", "alternating merges", "Unigram"],
)  # fmt: skip
def test_pieces_that_llama_cpp_would_join_otherwise_are_refused(tmp_path, changes, message):
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(described(**changes))), NAMES)
    with pytest.raises(InputError, match=re.escape(message)):
        export(random_decoder(llama_config(vocabulary=tokenizer.vocabulary)), tokenizer, tmp_path / "mine.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pieces", [["a" * 3_000_000], ["ab" * 100 + f"{n:08}" for n in range(12_000)]])
def test_pieces_with_millions_of_pairs_are_refused(pieces):
    """Each place in a piece is a pair: the pairs of one of 3 million characters took minutes."""
    tokens = ["<unk>", "<s>", "</s>", *pieces]
    found = {"model": "llama", "tokens": tokens, "scores": [0.0] * len(tokens), "token_type": [1] * len(tokens)}
    with pytest.raises(InputError, match="pieces must have at most 512 characters, and 2097152 together"):
        read_tokenizer({f"tokenizer.ggml.{name}": value for name, value in found.items()})
