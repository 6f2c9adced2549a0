"""Inside a forward pass of one row: hidden states by layer, the logit lens, attention weights and log-probabilities."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.decoder import Block, Decoder
from minillm.key_values import KeyValues, LayerCache, new_positions
from minillm.operations import Prefix, log_softmax
from minillm.operations import attention as attend
from minillm.shapes import Float, Int


@torch.no_grad()
def hidden_states(
    decoder: Decoder, ids: Int[Tensor, "1 T"], prefix: KeyValues | None = None,
    cache: Sequence[LayerCache] | None = None,
) -> Float[Tensor, "_ T D"]:  # fmt: skip
    """The residual stream before the first block and after each, L + 1 rows, without the last norm.

    With a cache, `ids` continue the tokens that it has.
    """
    states: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])) for block in decoder.blocks]
    try:
        last = decoder.run_blocks(decoder.embed(ids), stop=len(decoder.blocks), prefix=prefix, cache=cache)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat((*states, last))


@torch.no_grad()
def lens(decoder: Decoder, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T V"]:
    """The logit lens (nostalgebraist 2020): log p of the next token, by the last norm and the head, from hidden states
    of any layer. Those after the last block give the decoder's own."""
    return log_softmax(decoder.head(decoder.run_blocks(states, start=len(decoder.blocks))))


@torch.no_grad()
def attention(
    decoder: Decoder, states: Float[Tensor, "_ T D"], layer: int, prefix: KeyValues | None = None
) -> Float[Tensor, "H T S"]:
    """The attention weights of a layer by head; the columns of a prefix come first.

    Rows sum to 1, unless the prefix is gated: its columns are tanh(gate) times a softmax of their own.
    """
    block, hidden = decoder.blocks[layer], states[layer][None]
    assert isinstance(block, Block)
    positions = new_positions(hidden, prefix, None, None, decoder.config.context_length)
    rotation = None if layer in decoder.config.unrotated_layers else decoder.encode_positions(hidden, positions)[1]
    query, key, value = block.attention.project(block.attention_norm(hidden) if block.norm_first else hidden, rotation)
    before = Prefix(key[:, :, :0], value[:, :, :0]) if prefix is None else prefix.layer(layer)
    columns, width = before.key.shape[2] + key.shape[2], key.shape[3]
    # Attention to the values 1 0 0 ..., 0 1 0 ..., ... returns its weights: so many columns at a time as values have.
    one_hot = F.pad(torch.eye(columns).to(key), (0, -columns % width)).expand(1, key.shape[1], -1, -1)
    parts = [
        attend(
            query, key, values[:, :, -key.shape[2] :], window=block.attention.window,
            prefix=None if prefix is None else before._replace(value=values[:, :, : len(prefix)]),
        )
        for values in one_hot.split(width, -1)
    ]  # fmt: skip
    return torch.cat(parts, -1)[0, :, :, :columns]
