"""Figure 1: the decoder of Vaswani et al. 2017, from the embeddings at the bottom to the logits at the top.

Read upwards as the figure is drawn: Embeddings, Positional Encoding, N x [Masked Multi-Head Attention, Add & Norm,
Feed Forward, Add & Norm], Linear. (Softmax belongs to whoever reads the logits.) Four choices of the `DecoderConfig`
make it GPT-2 or a Llama. Where an adaptation can enter is an argument or an attribute: token ids, embeddings,
`prefix`, every Linear, `features` and `head`. No adaptation is known here.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minillm.config import DecoderConfig
from minillm.errors import InputError
from minillm.key_values import BlockInputs, KeyValues, LayerCache, Recorder, Rotation
from minillm.ops.attention import attention
from minillm.ops.dropout import dropout
from minillm.ops.embedding import embedding
from minillm.ops.feed_forward import gelu, relu, swiglu
from minillm.ops.linear import linear
from minillm.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from minillm.ops.positions import rotary, rotary_tables, sinusoidal, token_positions
from minillm.runtime.source import Source
from minillm.shapes import Bool, Float, Int


class Embedding(nn.Module):
    """A table of trained vectors: of tokens, or of learned positions."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, ids: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T D"]:
        return embedding(ids, self.weight)


class Linear(nn.Linear):
    """PyTorch's Linear, by the quickest product there is."""

    def forward(self, hidden: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        return linear(hidden, self.weight, self.bias)


class Norm(nn.Module):
    """Layer or rms norm; only the layer norm has a bias."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.width))
        self.bias = nn.Parameter(torch.zeros(config.width)) if config.norm == "layer" else None

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if self.bias is None:
            return rms_norm(hidden, self.weight, self.eps)
        return layer_norm(hidden, self.weight, self.bias, self.eps)

    def add(
        self, hidden: Float[Tensor, "B T D"], update: Float[Tensor, "B T D"]
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
        """Add & norm: the residual stream with what is added to it, and the norm of that."""
        if self.bias is None:
            return add_rms_norm(hidden, update, self.weight, self.eps)
        return add_layer_norm(hidden, update, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Masked multi-head attention between its four Linears."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        narrow = config.kv_heads * config.head_width
        self.head_width, self.dropout = config.head_width, config.dropout
        self.query = Linear(config.width, config.width, bias=config.bias)
        self.key = Linear(config.width, narrow, bias=config.bias)
        self.value = Linear(config.width, narrow, bias=config.bias)
        self.out = Linear(config.width, config.width, bias=config.bias)

    def project(
        self, hidden: Float[Tensor, "B T D"], rotation: Rotation | None
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B G T K"], Float[Tensor, "B G T K"]]:
        """Queries, keys and values by head, turned to their positions where those are rotary."""
        query, key, value = (
            rearrange(side(hidden), "B T (heads K) -> B heads T K", K=self.head_width)
            for side in (self.query, self.key, self.value)
        )
        if rotation is not None:
            query, key = rotary(query, *rotation), rotary(key, *rotation)
        return query, key, value

    def forward(self, hidden: Float[Tensor, "B T D"], around: BlockInputs) -> Float[Tensor, "B T D"]:
        query, key, value = self.project(hidden, around.rotation)
        if around.cache is not None:
            key, value = around.cache.extend(key, value)
        probability = self.dropout if self.training else 0.0
        read = attention(query, key, value, mask=around.mask, prefix=around.prefix, dropout_probability=probability)
        return self.out(rearrange(read, "B H T K -> B T (H K)"))


class FeedForward(nn.Module):
    """The same two (swiglu: three) Linears at every position, with a non-linearity between them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.up = Linear(config.width, config.feed_forward_width, bias=config.bias)
        self.down = Linear(config.feed_forward_width, config.width, bias=config.bias)
        self.activation = {"relu": relu, "gelu": gelu, "swiglu": None}[config.feed_forward]
        if self.activation is None:
            self.gate = Linear(config.width, config.feed_forward_width, bias=config.bias)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if self.activation is None:
            return self.down(swiglu(self.gate(hidden), self.up(hidden)))
        return self.down(self.activation(self.up(hidden)))


class Block(nn.Module):
    """Attention and feed-forward, each with its add & norm."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.norm_first, self.dropout = config.norm_first, config.dropout
        self.attention_norm, self.attention = Norm(config), Attention(config)
        self.feed_forward_norm, self.feed_forward = Norm(config), FeedForward(config)

    def _drop(self, hidden: Tensor) -> Tensor:
        return dropout(hidden, self.dropout if self.training else 0.0)

    def forward(self, hidden: Float[Tensor, "B T D"], around: BlockInputs) -> Float[Tensor, "B T D"]:
        if self.norm_first:
            read = self._drop(self.attention(self.attention_norm(hidden), around))
            hidden, normed = self.feed_forward_norm.add(hidden, read)
            return hidden + self._drop(self.feed_forward(normed))
        _, hidden = self.attention_norm.add(hidden, self._drop(self.attention(hidden, around)))
        _, hidden = self.feed_forward_norm.add(hidden, self._drop(self.feed_forward(hidden)))
        return hidden


class Decoder(nn.Module):
    """Token ids to logits. Weights start normal with a spread of 0.02 (GPT-2), or as `minillm.load` finds them."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        # In training, run each block again for its gradient in place of keeping its activations (Chen et al. 2016).
        self.recompute = False
        self.source = Source()
        self.embed = Embedding(config.vocabulary, config.width)
        if config.positions == "learned":
            self.positions = Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        # Add-then-norm blocks end with a norm of their own.
        self.norm = Norm(config) if config.norm_first else nn.Identity()
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
                # What adds to the residual stream is scaled down with depth (Radford et al. 2019, section 2.3).
                adds = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.layers) if adds else 0.02)

    def forward(
        self, ids: Int[Tensor, "B T"], *, prefix: KeyValues | None = None, mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Next-token logits at every position. `mask` is true for a token, false for padding on either side."""
        return self.head(self.features(ids, prefix=prefix, mask=mask))

    @property
    def decoder(self) -> "Decoder":
        """Itself: a decoder is a language model like a method that adapts one."""
        return self

    def prefix(self) -> KeyValues | None:
        """What stands before every text of this model: nothing, as long as no method adapts it."""
        return None

    def features(
        self,
        ids: Int[Tensor, "B T"],
        *,
        prefix: KeyValues | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What the head reads: the hidden states after the last norm. With a cache, `mask` covers its tokens too."""
        return self.run_blocks(self.embed(ids), prefix=prefix, mask=mask, cache=cache)

    def keys_values(self, prompt: Int[Tensor, "B P"] | Float[Tensor, "B P D"]) -> KeyValues:
        """What a prompt, of token ids or of embeddings, leaves behind in every layer."""
        recorders = [Recorder() for _ in self.blocks]
        self.run_blocks(prompt if prompt.is_floating_point() else self.embed(prompt), cache=recorders)
        keys, values = zip(*(recorder.seen for recorder in recorders), strict=True)
        return KeyValues(torch.stack(keys), torch.stack(values))

    def run_blocks(
        self,
        hidden: Float[Tensor, "B T D"],
        *,
        start: int = 0,
        stop: int | None = None,
        prefix: KeyValues | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """From what enters stage `start` to what enters stage `stop`. The blocks are stages 0 to L - 1, which 0
        begins with embeddings; the last norm is stage L. By default it is the whole way."""
        layers = len(self.blocks)
        stop = layers + 1 if stop is None else stop
        positions = self._positions(hidden, prefix, cache[0].length if cache is not None else 0, mask)
        entering, rotation = self.encode_positions(hidden, positions)
        if start == 0:
            hidden = dropout(entering, self.config.dropout if self.training else 0.0)
        for index in range(start, min(stop, layers)):
            layer_prefix = prefix.layer(index) if prefix is not None else None
            layer_cache = cache[index] if cache is not None else None
            around = BlockInputs(rotation, mask, layer_prefix, layer_cache)
            if self.recompute and self.training:
                hidden = checkpoint(self.blocks[index], hidden, around, use_reentrant=False)
            else:
                hidden = self.blocks[index](hidden, around)
        return self.norm(hidden) if start <= layers < stop else hidden

    def _positions(
        self, hidden: Float[Tensor, "B T D"], prefix: KeyValues | None, cached: int, mask: Bool[Tensor, "B S"] | None
    ) -> Int[Tensor, "*B T"]:
        """The T new tokens' places in their rows: after the prompt and the cached tokens, padding not counted."""
        rows, tokens, most = hidden.shape[0], cached + hidden.shape[1], self.config.context_length
        length = len(prefix) if prefix is not None else 0
        if length + tokens > most:
            raise InputError(f"{length} prompt positions and {tokens} tokens exceed this decoder's context of {most}")
        start = length if prefix is not None and prefix.takes_positions else 0
        if mask is None:
            return torch.arange(start + cached, start + tokens, device=hidden.device)
        if mask.shape != (rows, tokens):
            raise InputError(f"the mask is {tuple(mask.shape)}; the tokens, with cached ones, are {(rows, tokens)}")
        return token_positions(mask, start)[:, cached:]

    def encode_positions(
        self, embeddings: Float[Tensor, "B T D"], positions: Int[Tensor, "*B T"]
    ) -> tuple[Float[Tensor, "B T D"], Rotation | None]:
        """What enters the first block, and the rotation that every block applies (rotary positions only)."""
        config, dtype = self.config, embeddings.dtype
        if config.positions == "rotary":
            return embeddings, rotary_tables(positions, config.head_width, config.rope_theta, dtype)
        if config.positions == "learned":
            return embeddings + self.positions(positions), None
        # Section 3.4 scales embeddings by √D, to the size of the sinusoids.
        return embeddings * math.sqrt(config.width) + sinusoidal(positions, config.width, dtype), None
