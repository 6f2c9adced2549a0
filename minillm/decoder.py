"""Figure 1: the decoder of Vaswani et al. 2017, from the embeddings at the bottom to the logits at the top.

Embeddings, Positional Encoding, N x [Masked Multi-Head Attention, Add & Norm, Feed Forward, Add & Norm], Linear, in
this order; the caller applies softmax. A `DecoderConfig` chooses between figure 1, GPT-2, Llama and the relatives of
Llama. Adaptation methods use token ids, embeddings, `prefix`, the linear layers, `features` and `head`; this file
imports no method.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minillm import operations as ops
from minillm.config import DecoderConfig
from minillm.key_values import BlockInputs, KeyValues, LayerCache, Recorder, Rotation, new_positions
from minillm.runtime.fingerprint import Source
from minillm.runtime.summary import Summarised
from minillm.shapes import Float, Int, Mask


class Embedding(nn.Module):
    """A table of one vector per token id, or per position (learned positions)."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        return ops.embedding(ids, self.weight)


class Linear(nn.Linear):
    """x Wᵀ + b."""

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        return ops.linear(hidden, self.weight, self.bias)


class Norm(nn.Module):
    """Layer norm or RMS norm; only layer norm has a bias."""

    def __init__(self, config: DecoderConfig, width: int):
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if config.norm == "layer" else None

    def forward(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        if self.bias is None:
            return ops.rms_norm(hidden, self.weight, self.eps)
        return ops.layer_norm(hidden, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Masked multi-head attention with its four linear layers."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.head_width, self.window, self.dropout = config.head_width, config.window, config.dropout
        width, kv_width = config.heads * self.head_width, config.kv_heads * self.head_width
        self.query = Linear(config.width, width, bias=config.has_bias("query"))
        self.key = Linear(config.width, kv_width, bias=config.has_bias("key"))
        self.value = Linear(config.width, kv_width, bias=config.has_bias("value"))
        self.out = Linear(width, config.width, bias=config.has_bias("out"))
        self.query_norm = Norm(config, self.head_width) if config.query_key_norm else nn.Identity()
        self.key_norm = Norm(config, self.head_width) if config.query_key_norm else nn.Identity()

    def project(
        self, hidden: Float[Tensor, "B T D"], rotation: Rotation | None
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]]:
        """Queries, keys and values by head; rotary positions rotate queries and keys."""
        query, key, value = (
            rearrange(side(hidden), "B T (heads K) -> B heads T K", K=self.head_width)
            for side in (self.query, self.key, self.value)
        )
        query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = ops.rotary(query, *rotation), ops.rotary(key, *rotation)
        return query, key, value

    def forward(self, hidden: Float[Tensor, "B T D"], inputs: BlockInputs) -> Float[Tensor, "B T D"]:
        query, key, value = self.project(hidden, inputs.rotation)
        if inputs.cache is not None:
            key, value = inputs.cache.extend(key, value)
        p = self.dropout if self.training else 0.0
        seen = {"mask": inputs.mask, "prefix": inputs.prefix, "window": self.window}
        heads = ops.attention(query, key, value, **seen, dropout_probability=p)
        return ops.dropout(self.out(rearrange(heads, "B H T K -> B T (H K)")), p)


class FeedForward(nn.Module):
    """Two linear layers with a non-linearity between them (SwiGLU: three layers), applied at every position."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.dropout, self.kind = config.dropout, config.feed_forward
        self.up = Linear(config.width, config.feed_forward_width, bias=config.has_bias("up"))
        self.down = Linear(config.feed_forward_width, config.width, bias=config.has_bias("down"))
        if self.kind == "swiglu":
            self.gate = Linear(config.width, config.feed_forward_width, bias=config.has_bias("gate"))

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if self.kind == "swiglu":
            inner = ops.swiglu(self.gate(hidden), self.up(hidden))
        else:
            inner = (ops.relu if self.kind == "relu" else ops.gelu)(self.up(hidden))
        return ops.dropout(self.down(inner), self.dropout if self.training else 0.0)


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream, with a norm before each (figure 1: after)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.norm_first = config.norm_first
        self.attention_norm, self.attention = Norm(config, config.width), Attention(config)
        self.feed_forward_norm, self.feed_forward = Norm(config, config.width), FeedForward(config)

    def forward(self, hidden: Float[Tensor, "B T D"], inputs: BlockInputs) -> Float[Tensor, "B T D"]:
        if self.norm_first:
            hidden = hidden + self.attention(self.attention_norm(hidden), inputs)
            return hidden + self.feed_forward(self.feed_forward_norm(hidden))
        hidden = self.attention_norm(hidden + self.attention(hidden, inputs))
        return self.feed_forward_norm(hidden + self.feed_forward(hidden))


class Decoder(Summarised):
    """Token ids to logits. Weights start normal with standard deviation 0.02 (GPT-2); `minillm.load` replaces them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        # If true, blocks are recomputed in training's backward pass (Chen et al. 2016), by the same backend (`bound`).
        self.recompute = False
        self.source = Source()  # of the weights
        self.embed = Embedding(config.vocabulary, config.width)
        if config.positions == "learned":
            self.positions = Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        # Post-norm blocks already end with a norm.
        self.norm = Norm(config, config.width) if config.norm_first else nn.Identity()
        self.head = Linear(config.width, config.vocabulary, bias=False)
        self._initialise()
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    @torch.no_grad()
    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() > 1:
                # The last layer of each residual branch: 0.02 / √(2 layers) (Radford et al. 2019, section 2.3).
                adds = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.layers) if adds else 0.02)

    @property
    def decoder(self) -> "Decoder":
        """Itself, so that generation treats a decoder like a method."""
        return self

    def prefix(self) -> None:
        """None: a plain decoder has no prefix."""

    def forward(
        self, ids: Int[Tensor, "B T"], *, prefix: KeyValues | None = None, mask: Mask[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Next-token logits at every position. `mask` is True for a token, False for padding on either side.

        An Int mask packs conversations: 0 is padding, and tokens of the same number attend to each other only.
        """
        return self.head(self.features(ids, prefix=prefix, mask=mask))

    def features(
        self, ids: Int[Tensor, "B T"], *, prefix: KeyValues | None = None, mask: Mask[Tensor, "B S"] | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "B T D"]:  # fmt: skip
        """The hidden states after the last norm, the input of the head. With a cache, `mask` covers its tokens too."""
        return self.run_blocks(self.embed(ids), prefix=prefix, mask=mask, cache=cache)

    def keys_values(self, prompt: Int[Tensor, "B P"] | Float[Tensor, "B P D"]) -> KeyValues:
        """The keys and values of a prompt, of token ids or of embeddings, in every layer."""
        recorders = [Recorder() for _ in self.blocks]
        self.run_blocks(prompt if prompt.is_floating_point() else self.embed(prompt), cache=recorders)
        keys, values = zip(*(recorder.seen for recorder in recorders), strict=True)
        return KeyValues(torch.stack(keys), torch.stack(values), windowed=True)

    def run_blocks(
        self, hidden: Float[Tensor, "B T D"], *, start: int = 0, stop: int | None = None,
        prefix: KeyValues | None = None, mask: Mask[Tensor, "B S"] | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "B T D"]:  # fmt: skip
        """The hidden states after stages `start` to `stop` - 1 (default all): stage i is block i, L the last norm."""
        layers = len(self.blocks)
        stop = layers + 1 if stop is None else stop
        positions = new_positions(hidden, prefix, cache, mask, self.config.context_length)
        encoded, rotation = self.encode_positions(hidden, positions)
        if start == 0:
            hidden = ops.dropout(encoded, self.config.dropout if self.training else 0.0)
        for index in range(start, min(stop, layers)):
            layer_rotation = None if index in self.config.unrotated_layers else rotation
            layer_prefix = prefix.layer(index) if prefix is not None else None
            inputs = BlockInputs(layer_rotation, mask, layer_prefix, cache[index] if cache is not None else None)
            # On MPS, torch does not restore the random numbers of a recomputed dropout.
            if self.recompute and self.training and hidden.device.type != "mps":
                hidden = checkpoint(ops.bound(self.blocks[index]), hidden, inputs, use_reentrant=False)
            else:
                hidden = self.blocks[index](hidden, inputs)
        return self.norm(hidden) if start <= layers < stop else hidden

    def encode_positions(
        self, embeddings: Float[Tensor, "B T D"], positions: Int[Tensor, "*B T"]
    ) -> tuple[Float[Tensor, "B T D"], Rotation | None]:
        """The input of the first block, and the rotation that every block applies (rotary positions only)."""
        config, dtype = self.config, embeddings.dtype
        if config.positions == "rotary":
            tables = ops.rotary_tables(positions, config.head_width, config.rope_theta, dtype, config.rope_scaling)
            return embeddings, tables
        if config.positions == "learned":
            return embeddings + self.positions(positions), None
        # Section 3.4 scales embeddings by √D, to the size of the sinusoids.
        return embeddings * math.sqrt(config.width) + ops.sinusoidal(positions, config.width, dtype), None
