"""A soft prompt that runs through the decoder once equals the vectors prepended to every row."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minillm import DecoderConfig, InputError
from minillm.adapt.soft_prompt import SoftPrompt
from minillm.adapt.surgery import frozen
from minillm.key_values import BlockInputs
from tests.decoders import STYLES, random_decoder
from tests.tolerances import assert_close

pytestmark = pytest.mark.checked

ROWS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2], [9, 9, 1, 0, 3]])
STARTS = ["random", "vocabulary", [3, 1, 12]]


def prepended(decoder, vectors, ids):
    """The vectors before the embeddings of every row, through the blocks, without a prefix."""
    rows = torch.cat((vectors.expand(len(ids), -1, -1), decoder.embed(ids)), 1)
    hidden, rotation = decoder.encode_positions(rows, torch.arange(rows.shape[1]))
    for index, block in enumerate(decoder.blocks):
        hidden = block(hidden, BlockInputs(None if index in decoder.config.unrotated_layers else rotation))
    return decoder.head(decoder.norm(hidden))[:, len(vectors) :]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("length", [1, 3, 7])
def test_it_equals_the_vectors_before_every_row_and_so_does_the_gradient(style, length):
    decoder = random_decoder(STYLES[style])
    method = SoftPrompt(decoder, length)
    vectors = method.prompt.detach().clone().requires_grad_()
    logits, expected = method(ROWS), prepended(decoder, vectors, ROWS)
    assert_close(logits, expected, "law")
    dout = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.backward(dout)
    expected.backward(dout)
    assert_close(method.prompt.grad, vectors.grad, "law", "the gradient")


def test_tokens_are_repeated_and_cut_to_the_length():
    decoder = random_decoder(STYLES["Llama"])
    table = decoder.embed.weight
    assert torch.equal(SoftPrompt(decoder, 5, init=[3, 1, 12]).prompt, table[[3, 1, 12, 3, 1]])
    assert torch.equal(SoftPrompt(decoder, 2, init=[3, 1, 12]).prompt, table[[3, 1]])


def test_sampled_rows_are_the_tables_and_random_ones_have_their_standard_deviation():
    decoder = random_decoder(DecoderConfig.tiny())
    torch.manual_seed(0)
    sampled, again, random = (SoftPrompt(decoder, 61, init).prompt for init in ("vocabulary", "vocabulary", "random"))
    table = decoder.embed.weight
    assert (sampled[:, None] == table).all(-1).any(-1).all()
    assert not torch.equal(sampled, again), "drawn again for every prompt"
    assert not (random[:, None] == table).all(-1).any()
    assert 0.9 < random.std() / table.std() < 1.1


def test_a_prompt_costs_one_row_per_batch():
    decoder = random_decoder(STYLES["Llama"])
    method = SoftPrompt(decoder, 3)

    def linears(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    matrices = sum(p.numel() for name, p in decoder.named_parameters() if name.startswith("blocks.") and p.dim() == 2)
    assert linears(lambda: method(ROWS)) - linears(lambda: decoder(ROWS)) == 2 * 3 * matrices


@pytest.mark.parametrize("start", STARTS)
def test_from_its_state_it_is_the_same_bit_for_bit(start):
    decoder = random_decoder(STYLES["Llama"])
    method = SoftPrompt(decoder, 3, start)
    with torch.no_grad():
        method.prompt += 1
    drawn = torch.get_rng_state()
    again = SoftPrompt.from_state(decoder, method.options(), method.state())
    assert torch.equal(torch.get_rng_state(), drawn), "loading draws no random numbers"
    assert torch.equal(again(ROWS), method(ROWS))
    assert again.options() == method.options()
    with torch.no_grad():
        method.prompt += 1
    assert not torch.equal(again(ROWS), method(ROWS)), "the two share no memory"
    with pytest.raises(InputError, match=r"prompt must be \(3, 30\) for this decoder, .* got \(1, 30\)"):
        SoftPrompt.from_state(decoder, method.options(), {"prompt": method.prompt[:1]})


def test_half_precision_weights_leave_the_vectors_in_float32():
    decoder = random_decoder(STYLES["Llama"]).float()
    whole = SoftPrompt(random_decoder(STYLES["Llama"]).bfloat16(), 3)
    assert whole.prompt.dtype == torch.float32
    assert whole(ROWS).dtype == torch.bfloat16
    method = SoftPrompt(frozen(decoder, torch.bfloat16), 3)
    with torch.autocast("cpu", torch.bfloat16):
        method(ROWS).square().sum().backward()
    assert method.prompt.grad.abs().max() > 0


def test_prompt_and_text_must_fit_the_context():
    with pytest.raises(InputError, match="13 prompt positions and 5 tokens exceed"):
        SoftPrompt(random_decoder(STYLES["Llama"]), 13)(ROWS)
