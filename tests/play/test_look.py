"""What the page shows of a forward pass is what the decoder computes."""

import pytest
import torch
from einops import rearrange

from minillm.adapt import InContext
from minillm.ops.attention import for_each_head
from minillm.play.look import attention, hidden_states, lens
from tests.decoders import STYLES, random_decoder, random_prefix

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
PREFIXES = {
    "no prefix": lambda decoder: None,
    "a prefix": lambda decoder: random_prefix(decoder.config, 5),
    "a gated prefix": lambda decoder: random_prefix(decoder.config, 5, gated=True),
    "a hard prompt": lambda decoder: InContext(decoder, torch.tensor([[7, 8, 9, 1]])).prefix(),
}
every_style = pytest.mark.parametrize("style", STYLES)
every_prefix = pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)


@every_style
@every_prefix
def test_the_last_row_of_the_lens_is_the_decoder_s_own_prediction(style, prefix):
    decoder = random_decoder(STYLES[style])
    prefix = prefix(decoder)
    states = hidden_states(decoder, IDS, prefix)
    assert len(states) == decoder.config.layers + 1
    torch.testing.assert_close(lens(decoder, states)[-1:], decoder(IDS, prefix=prefix).log_softmax(-1))
    first, _ = decoder.encode_positions(decoder.embed(IDS), torch.arange(0 if prefix is None else len(prefix), 12)[:7])
    torch.testing.assert_close(states[:1], first)


@pytest.mark.checked
@every_style
@every_prefix
def test_the_weights_times_the_values_are_the_output_of_attention(style, prefix):
    decoder, seen = random_decoder(STYLES[style]), []
    prefix = prefix(decoder)
    states = hidden_states(decoder, IDS, prefix)
    for layer, block in enumerate(decoder.blocks):
        hook = block.attention.register_forward_hook(lambda module, inputs, out: seen.append((*inputs, out)))
        hidden_states(decoder, IDS, prefix)
        hook.remove()
        hidden, inputs, out = seen.pop()
        value = block.attention.project(hidden, inputs.rotation)[2]
        value = value if prefix is None else torch.cat((prefix.values[layer], value), 2)
        weights = attention(decoder, states, layer, prefix)
        heads = weights @ for_each_head(value, decoder.config.heads)
        torch.testing.assert_close(block.attention.out(rearrange(heads, "B H T K -> B T (H K)")), out)
        length = value.shape[2] - IDS.shape[1]
        assert not weights[:, :, length:].triu(1).any(), "no token attends to later ones"
        if prefix is None or prefix.gate is None:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
