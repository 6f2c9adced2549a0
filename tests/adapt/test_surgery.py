"""Operating on a decoder leaves it as it was."""

import pytest
import torch

from minillm import Decoder, DecoderConfig, InputError
from minillm.adapt import LoRA
from minillm.adapt.surgery import frozen, linears, matching, train_copies
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


def test_a_pattern_that_matches_nothing_is_refused_with_the_roles_and_the_nearest():
    paths = linears(random_decoder(STYLES["Llama"]))
    with pytest.raises(InputError) as refusal:
        matching(paths, ["query", "q_proj"], "LoRA target")
    assert str(refusal.value).startswith("LoRA target 'q_proj' matches nothing in this decoder; it has: query, key,")
    with pytest.raises(InputError, match="nearest: query"):
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


def test_a_summary_counts_every_parameter_once_and_names_the_trained_share():
    method = LoRA(Decoder(DecoderConfig.tiny()), r=2)
    lines = method.summary().splitlines()
    assert lines[0].split() == ["layer", "shape", "dtype", "layers", "parameters", "trainable", "bytes"]
    assert "blocks.*.attention.query.a 2 x 24 float32 2 96 100.00% 384" in [" ".join(line.split()) for line in lines]
    count, trained = (sum(p.numel() for p in some) for some in (method.parameters(), method.trainable().values()))
    assert lines[-1].split() == ["total", f"{count:,}", f"{trained / count:.2%}", f"{4 * count:,}"]
