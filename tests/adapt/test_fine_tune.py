"""Fine-tuning trains copies of the named parameters, and no others."""

import pytest
import torch

from minillm.adapt import FineTune
from minillm.data.batches import pad_left, pad_right
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

IDS = torch.tensor([[3, 1, 4, 1, 5]])


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


@pytest.mark.parametrize("layers", ["all", "output", 1, "blocks.0.*"])
def test_a_classifier_uses_the_last_token_and_is_trained_with_the_layers(layers):
    decoder = random_decoder(STYLES["Llama"])
    method = FineTune(decoder, layers=layers, classes=3)
    plain = set() if layers == "output" else set(FineTune(decoder, layers=layers).trainable())
    assert set(method.trainable()) == (plain - {"head.weight"}) | {"head.weight", "head.bias"}
    assert torch.equal(method(IDS), torch.zeros(1, 3, dtype=torch.float64)), "the logits start at 0"
    with torch.no_grad():
        method.decoder.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    rows = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    (left, left_mask), (right, last) = pad_left(rows), pad_right(rows)
    alone = torch.cat([method.decoder.head(decoder.features(torch.tensor([row]))[:, -1]) for row in rows])
    assert_close(method(left, mask=left_mask), alone, "law")
    assert_close(method(right, mask=torch.arange(right.shape[1]) <= last[:, None]), alone, "law")
    assert decoder.head.weight is decoder.embed.weight, "the base keeps its own head"


def test_a_classifier_of_tokens_starts_from_their_rows_of_the_lm_head():
    decoder = random_decoder(STYLES["Llama"])
    method = FineTune(decoder, layers="output", classes=[7, 2])
    assert_close(method(IDS), decoder(IDS)[:, -1, [7, 2]], "law")
    method(IDS).square().sum().backward()
    assert set(method.trainable()) == {"head.weight"}


def test_the_rows_of_other_tokens_get_no_gradient_from_the_answers():
    """So an output layer of two answers trains only their two rows of the LM head."""
    decoder = random_decoder(STYLES["Llama"])
    whole, rows = FineTune(decoder, layers="output"), FineTune(decoder, layers="output", classes=[7, 2])
    whole(IDS)[:, -1].log_softmax(-1)[:, [7, 2]].log_softmax(-1)[:, 0].sum().backward()
    rows(IDS).log_softmax(-1)[:, 0].sum().backward()
    gradient = whole.trainable()["head.weight"].grad
    assert_close(gradient[[7, 2]], rows.trainable()["head.weight"].grad, "law")
    others = [token for token in range(13) if token not in (2, 7)]
    assert gradient[others].abs().max() < 1e-12


def test_options_and_state_rebuild_a_classifier_of_tokens():
    decoder = random_decoder(STYLES["GPT-2"])
    method = FineTune(decoder, layers=1, classes=[7, 2])
    with torch.no_grad():
        for parameter in method.trainable().values():
            parameter.add_(0.5)
    again = FineTune.from_state(decoder, method.options(), method.state())
    assert torch.equal(again(IDS), method(IDS))
    assert again.options() == method.options()
