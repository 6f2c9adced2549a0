"""Both sides of the benchmarks compute the same, on a tiny Llama that needs no download."""

from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("peft")
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import family, minillm_side, peer_side
from benchmarks.comparison import error
from benchmarks.reviews import Work
from minillm.lab.experiment import Experiment
from minillm.tokenizer import Tokenizer

from .hub import peft_pairs

WORK = Work(prompts=[[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]], labels=[0, 1, 1, 0], answers=[20, 21])
BATCHES = [[0, 1], [2, 3]]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    # Three layers, the last two of which are trained; keys and values wide enough for rank 8.
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
    monkeypatch.setitem(peft_pairs.BASES, "three layers", lambda: LlamaForCausalLM(config))
    model, decoder = peft_pairs.base_pair("three layers", tmp_path)
    tokenizer = Mock(Tokenizer)
    tokenizer.encode.return_value = [5, 3, 5]
    experiment = partial(Experiment, decoder, tokenizer, minillm_side.CPU, seed=0)
    monkeypatch.setattr(minillm_side, "experiment", lambda precision: experiment(precision=precision))
    monkeypatch.setattr(peer_side, "peer", lambda tuned: model)


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("method", minillm_side.METHODS)
def test_both_sides_have_the_same_logits_gradients_losses_and_trained_parameters(tiny, method, tuned):
    options = {"work": WORK, "batch": 2, "method": method, "rate": 1e-2, "epochs": 2, "precision": "float32"}
    ours, peer = minillm_side.Training(**options), peer_side.Training(**options, tuned=tuned)
    random = np.random.default_rng(0)
    start = {name: value + 0.1 * random.standard_normal(value.shape, "f4") for name, value in ours.parameters().items()}
    for side in (ours, peer):
        side.start_from(start)
    found, expected = ours.probe(BATCHES[0]), peer.probe(BATCHES[0])
    assert {what: error(found[what], expected[what]) < 1e-5 for what in expected} == dict.fromkeys(expected, True)
    for _ in range(2):
        assert np.allclose(ours.train(BATCHES), peer.train(BATCHES), atol=1e-5)
    assert error(ours.parameters(), peer.parameters()) < 1e-3


@pytest.mark.parametrize("members", [1, 4])
def test_a_batch_of_queries_equals_its_queries_one_by_one(tiny, members):
    queries = family.Queries(WORK.prompts[:members], members, "float32")
    assert error(queries.answer(1), queries.one_by_one()) < 1e-5
