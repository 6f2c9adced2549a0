"""Surgery on a body leaves the decoder unchanged."""

import pytest
import torch

from minillm import InputError
from minillm.adapt.surgery import frozen, linears, matching, matrices, train_copies
from tests.decoders import STYLES, random_decoder


def test_a_frozen_body_shares_every_weight_and_trains_none():
    decoder = random_decoder(STYLES["Llama"])
    body = frozen(decoder)
    for (name, mine), (other, theirs) in zip(body.named_parameters(), decoder.named_parameters(), strict=True):
        assert name == other
        assert mine.data_ptr() == theirs.data_ptr(), "not a byte is copied"
        assert not mine.requires_grad
        assert theirs.requires_grad, "the base stays as trainable as it was"


def test_a_body_in_half_precision_halves_the_matrices_and_leaves_the_base_alone():
    decoder = random_decoder(STYLES["Llama"]).float()
    body = frozen(decoder, torch.bfloat16)
    assert {module.weight.dtype for module in linears(body).values()} == {torch.bfloat16}
    assert body.embed.weight.dtype == body.norm.weight.dtype == torch.float32
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float32}


def test_patterns_name_matrices_by_role_by_path_or_all_of_them():
    paths = list(linears(random_decoder(STYLES["Llama"])))
    assert matching(paths, ["query"], "target") == ["blocks.0.attention.query", "blocks.1.attention.query"]
    assert matching(paths, ["feed_forward.up"], "target") == ["blocks.0.feed_forward.up", "blocks.1.feed_forward.up"]
    assert matching(paths, ["blocks.1.*"], "target") == [path for path in paths if path.startswith("blocks.1.")]
    assert matching(paths, ["all-linear"], "target") == paths


def test_pefts_module_names_are_roles():
    paths = matrices(random_decoder(STYLES["Llama"]))
    roles = {
        "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out", "gate_proj": "gate", "up_proj": "up",
        "down_proj": "down", "lm_head": "head", "embed_tokens": "embed", "blocks.0.*.q_proj": "blocks.0.*.query",
    }  # fmt: skip
    for name, role in roles.items():
        assert matching(paths, [name], "target") == matching(paths, [role], "target")


def test_a_pattern_that_matches_nothing_is_refused_with_the_roles_and_the_nearest():
    paths = linears(random_decoder(STYLES["Llama"]))
    sentence = "LoRA target 'c_attn' matches nothing in this decoder, which has query, key, value"
    with pytest.raises(InputError, match=sentence):
        matching(paths, ["query", "c_attn"], "LoRA target")
    with pytest.raises(InputError, match=r"did you mean 'query'\?"):
        matching(paths, ["qeury"], "LoRA target")


def test_training_one_side_of_a_tied_head_unties_it_and_training_both_does_not():
    decoder = random_decoder(STYLES["Llama"])
    head_only, both = frozen(decoder), frozen(decoder)
    train_copies(head_only, lambda name: name == "head.weight")
    train_copies(both, lambda name: name in ("head.weight", "embed.weight"))
    assert head_only.head.weight is not head_only.embed.weight
    assert [name for name, parameter in head_only.named_parameters() if parameter.requires_grad] == ["head.weight"]
    assert both.head.weight is both.embed.weight
    assert both.head.weight.data_ptr() != decoder.head.weight.data_ptr()
