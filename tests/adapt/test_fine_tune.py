"""Fine-tuning trains copies of what it names, and only those."""

import pytest
import torch

from minillm import Decoder, DecoderConfig, InputError
from minillm.adapt import FineTune
from minillm.data.batches import pad_left, pad_right
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.mark.parametrize("layers", ["all", "output", 1, ["blocks.0.*.query.weight"]])
def test_it_starts_as_the_base_and_a_step_leaves_the_base_as_it_was(layers):
    decoder = random_decoder(STYLES["Llama"])
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    method = FineTune(decoder, layers=layers)
    assert torch.equal(method(IDS), decoder(IDS))
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    method(IDS).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())
    assert not torch.equal(method(IDS), decoder(IDS))


@pytest.mark.parametrize("style", ["Llama", "GPT-2"])
def test_the_last_k_blocks_come_with_the_final_norm(style):
    decoder = random_decoder(STYLES[style])
    trained = set(FineTune(decoder, layers=1).trainable())
    assert trained == {name for name, _ in decoder.named_parameters() if name.startswith(("blocks.1.", "norm."))}


def test_the_output_layer_is_the_head_alone_which_is_untied_from_the_embedding():
    decoder = random_decoder(STYLES["Llama"])
    method = FineTune(decoder, layers="output")
    assert set(method.trainable()) == {"head.weight"}
    assert method.decoder.embed.weight.data_ptr() == decoder.embed.weight.data_ptr()
    assert method.decoder.head.weight.data_ptr() != decoder.head.weight.data_ptr()


def test_all_is_every_parameter_and_the_tied_head_stays_tied():
    decoder = random_decoder(STYLES["Llama"])
    method = FineTune(decoder)
    assert set(method.trainable()) == {name for name, _ in decoder.named_parameters()}
    assert method.decoder.head.weight is method.decoder.embed.weight


def test_the_last_two_blocks_of_smollm2_are_the_parameters_that_the_peers_count():
    with torch.device("meta"):
        base = Decoder(DecoderConfig.llama("smollm2-135m"))
        counts = [
            sum(parameter.numel() for parameter in FineTune(base, **options).trainable().values())
            for options in ({"layers": 2}, {"layers": "output", "classes": 2}, {"layers": "output", "classes": [5, 7]})
        ]
    assert counts == [7_080_768, 2 * 576 + 2, 2 * 576]


@pytest.mark.parametrize("layers", ["all", "output", 1, "blocks.0.*"])
def test_a_classifier_reads_the_last_token_and_is_trained_with_the_layers(layers):
    decoder = random_decoder(STYLES["Llama"])
    method = FineTune(decoder, layers=layers, classes=3)
    plain = set() if layers == "output" else set(FineTune(decoder, layers=layers).trainable())
    assert set(method.trainable()) == (plain - {"head.weight"}) | {"head.weight", "head.bias"}
    assert torch.equal(method(IDS), torch.zeros(1, 3, dtype=torch.float64)), "it starts without an opinion"
    with torch.no_grad():
        method.decoder.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    rows = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    (left, left_mask), (right, last) = pad_left(rows), pad_right(rows)
    alone = torch.cat([method.decoder.head(decoder.features(torch.tensor([row]))[:, -1]) for row in rows])
    assert_close(method(left, mask=left_mask), alone, "law")
    assert_close(method(right, mask=torch.arange(right.shape[1]) <= last[:, None]), alone, "law")
    assert decoder.head.weight is decoder.embed.weight, "the base keeps its own head"


def test_a_classifier_of_tokens_starts_from_what_the_lm_head_says_of_them():
    decoder = random_decoder(STYLES["Llama"])
    method = FineTune(decoder, layers="output", classes=[7, 2])
    assert_close(method(IDS), decoder(IDS)[:, -1, [7, 2]], "law")
    method(IDS).square().sum().backward()
    assert set(method.trainable()) == {"head.weight"}


def test_the_rows_of_other_tokens_would_get_no_gradient_from_the_answers():
    """Why an output layer of two answers is all of the LM head that they can train."""
    decoder = random_decoder(STYLES["Llama"])
    whole, rows = FineTune(decoder, layers="output"), FineTune(decoder, layers="output", classes=[7, 2])
    whole(IDS)[:, -1].log_softmax(-1)[:, [7, 2]].log_softmax(-1)[:, 0].sum().backward()
    rows(IDS).log_softmax(-1)[:, 0].sum().backward()
    gradient = whole.trainable()["head.weight"].grad
    assert_close(gradient[[7, 2]], rows.trainable()["head.weight"].grad, "law")
    others = [token for token in range(13) if token not in (2, 7)]
    assert gradient[others].abs().max() < 1e-12


@pytest.mark.parametrize(
    "options", [{"layers": 1}, {"layers": "output", "classes": 3}, {"layers": 1, "classes": [7, 2]}]
)
def test_options_and_state_rebuild_it(options):
    decoder = random_decoder(STYLES["GPT-2"])
    method = FineTune(decoder, **options)
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.add_(0.5)
    again = FineTune.from_state(decoder, method.options(), method.state())
    assert torch.equal(again(IDS), method(IDS))
    assert again.options() == method.options()


def test_what_is_not_there_cannot_be_trained():
    decoder = random_decoder(STYLES["Llama"])
    with pytest.raises(InputError, match="this decoder has 2 blocks"):
        FineTune(decoder, layers=3)
    with pytest.raises(InputError, match="for the head alone, layers is 'output'"):
        FineTune(decoder, layers=0)
    with pytest.raises(InputError, match=r"layer 'blocks\.7\.\*' matches nothing"):
        FineTune(decoder, layers=["blocks.7.*"])
    for classes in (1, [4], []):
        with pytest.raises(InputError, match="two classes at least"):
            FineTune(decoder, classes=classes)
    for tokens in ([3, 3], [0, 13], [-1, 2]):
        with pytest.raises(InputError, match="different ids from 0 to 12"):
            FineTune(decoder, classes=tokens)
