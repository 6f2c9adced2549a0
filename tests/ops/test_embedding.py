"""Embedding in torch equals numpy's."""

from hypothesis import given

from minillm.ops import embedding as ops
from minillm.reference import embedding as reference
from tests.rungs import check_against_torch
from tests.strategies import randoms, sizes


@given(sizes, sizes, sizes, sizes, randoms)
def test_embedding_equals_numpys(batch, tokens, width, vocabulary, random):
    inputs = {"ids": random.integers(0, vocabulary, (batch, tokens)), "weight": random.normal(size=(vocabulary, width))}
    check_against_torch(ops.embedding, reference.embedding_forward, reference.embedding_backward, inputs, random)
