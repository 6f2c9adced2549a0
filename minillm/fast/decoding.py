"""Decoding: a decoder for steps of few tokens, whose time is that of reading the matrices, and of each call.

The matrices that multiply one input are one product. For one row they are copied to float16, half the bytes; norms,
rotations, attention, cache and residual stream stay in float32. For more rows they are multiplied in float32 as W xᵀ.
On two shared cores with AVX2 (torch 2.13), one row and 3072 x 576 take 0.69 ms (MKL uses one core), in float16 and in
bfloat16 0.24 ms; float16 rounds an eighth as much. Four rows take 4.1 ms, and as W xᵀ 1.0 ms.
"""

import copy
import time
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.fast.attention import attention

FEW = 32
"""The most rows of a step: more, as of a prompt, run through the decoder's own blocks."""
LARGE = 1 << 26
"""Bytes of weights from which they are copied to float16: smaller ones fit into the cache of a CPU."""


def prepare(decoder: Any) -> Any:
    """A decoder of the same weights, for decoding without gradients; the decoder itself where that is not supported.

    Its hidden states are not finite where a number exceeds float16 (65,504). It is kept while the decoder exists, and
    made again after a change of weights or modules.
    """
    modules, parameters = list(decoder.modules())[1:], list(decoder.parameters())
    if not _supported(decoder, modules, parameters):
        return decoder
    large = sum(parameter.nbytes for parameter in parameters) >= LARGE
    # Fused optimizers and `.data` change weights without a new version, but hardly without a new sum of a copied one.
    sums = [float(parameter.detach().sum()) for parameter in parameters] if large else []
    state = modules, [(parameter.data_ptr(), parameter._version) for parameter in parameters], sums
    if decoder not in _prepared or _prepared[decoder][0] != state:
        _prepared[decoder] = state, _prepare(decoder, large)
    return _prepared[decoder][1]


_prepared = WeakKeyDictionary[nn.Module, tuple[Any, nn.Module]]()


def _supported(decoder: Any, modules: Sequence[nn.Module], parameters: Sequence[Tensor]) -> bool:
    """Weights in float32 (or float64) on a CPU, whose changes torch counts; no hooks; evaluation mode."""
    wide = {parameter.dtype for parameter in parameters} in ({torch.float32}, {torch.float64})
    counted = all(parameter.device.type == "cpu" and not parameter.is_inference() for parameter in parameters)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (decoder, *modules))
    training = any(module.training for module in (decoder, *modules))
    return wide and counted and not hooked and not training and not torch.is_autocast_enabled("cpu")


def _prepare(decoder: Any, large: bool) -> nn.Module:
    narrow = large and decoder.embed.weight.dtype == torch.float32 and not half_is_slow()
    prepared = copy.copy(decoder)
    blocks = nn.ModuleList(DecodingBlock(block, narrow) for block in decoder.blocks)
    prepared._modules = {**decoder._modules, "blocks": blocks, "head": Products((decoder.head,), narrow)}
    return prepared.eval()


@cache
def half_is_slow() -> bool:
    """Whether this torch has no fast product of a row and a float16 matrix for this CPU: it is then 5 times as slow.

    One thread is timed: two would wait for each other on a busy machine.
    """
    times, threads = dict[torch.dtype, list[float]](), torch.get_num_threads()
    torch.set_num_threads(1)
    for dtype in (torch.float16, torch.float32):
        row, matrix = torch.ones(1, 1024, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        for _ in range(10):
            start = time.perf_counter()
            F.linear(row, matrix)
            times.setdefault(dtype, []).append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return min(times[torch.float16]) > 3 * min(times[torch.float32])


class Products(nn.Module):
    """The products of some Linears with one input, side by side."""

    def __init__(self, linears: Sequence[nn.Module], narrow: bool):
        super().__init__()
        self.linears = nn.ModuleList(linears)
        self.narrow = narrow and all(isinstance(one, nn.Linear) or hasattr(one, "merged") for one in linears)

    @cached_property
    def matrices(self) -> tuple[Tensor, Tensor | None]:
        """The matrices in float16, with the updates of adapted ones, and their biases."""
        linears: Any = self.linears
        plain = [one.merged() if hasattr(one, "merged") else one for one in linears]
        bias = None if plain[0].bias is None else torch.cat([one.bias.detach() for one in plain])
        return torch.cat([one.weight.detach().half() for one in plain]), bias

    def forward(self, x: Tensor) -> Tensor:
        if not self.narrow or x.shape[:-1].numel() > 1:
            return torch.cat([_product(one, x) for one in self.linears], -1)
        weight, bias = self.matrices
        out = F.linear(x.half(), weight).to(x.dtype)
        return out if bias is None else out + bias


def _product(linear: Any, x: Tensor) -> Tensor:
    if not isinstance(linear, nn.Linear):
        return linear(x)
    out = (linear.weight @ x.reshape(-1, x.shape[-1]).T).T.view(*x.shape[:-1], -1)
    return out if linear.bias is None else out + linear.bias


class DecodingBlock(nn.Module):
    """A block for few tokens; more run through the block itself."""

    def __init__(self, block: Any, narrow: bool):
        super().__init__()
        self.block, attention, feed_forward = block, block.attention, block.feed_forward
        self.query_key_value = Products((attention.query, attention.key, attention.value), narrow)
        self.out = Products((attention.out,), narrow)
        gate = (feed_forward.gate,) if feed_forward.kind == "swiglu" else ()
        self.gate_up, self.down = Products((*gate, feed_forward.up), narrow), Products((feed_forward.down,), narrow)

    def forward(self, hidden: Tensor, inputs: Any) -> Tensor:
        block = self.block
        if hidden.shape[:2].numel() > FEW:
            return block(hidden, inputs)
        if block.norm_first:
            hidden = hidden + self.attention(_normed(block.attention_norm, hidden), inputs)
            return hidden + self.feed_forward(_normed(block.feed_forward_norm, hidden))
        hidden = _normed(block.attention_norm, hidden + self.attention(hidden, inputs))
        return _normed(block.feed_forward_norm, hidden + self.feed_forward(hidden))

    def attention(self, hidden: Tensor, inputs: Any) -> Tensor:
        plain = self.block.attention
        by_head = self.query_key_value(hidden).unflatten(-1, (-1, plain.head_width)).transpose(1, 2)
        groups = len(plain.key.weight) // plain.head_width
        turned, value = by_head.split((by_head.shape[1] - groups, groups), 1)
        if not isinstance(plain.query_norm, nn.Identity):
            query, key = turned.split((turned.shape[1] - groups, groups), 1)
            turned = torch.cat((_normed(plain.query_norm, query), _normed(plain.key_norm, key)), 1)
        if inputs.rotation is not None:
            turned = _rotated(turned, *inputs.rotation)
        query, key = turned.split((turned.shape[1] - groups, groups), 1)
        if inputs.cache is not None:
            key, value = inputs.cache.extend(key, value)
        heads = attention(query, key, value, mask=inputs.mask, prefix=inputs.prefix, window=plain.window)
        return self.out(heads.transpose(1, 2).flatten(2))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        kind, inner = self.block.feed_forward.kind, self.gate_up(hidden)
        if kind == "swiglu":
            gate, up = inner.chunk(2, -1)
            return self.down(F.silu(gate) * up)
        return self.down(F.relu(inner) if kind == "relu" else F.gelu(inner, approximate="tanh"))


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    if norm.bias is not None:
        return F.layer_norm(hidden, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    if hidden.numel() > len(norm.weight):
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.eps)
    # One row's factor as a Python number takes a third of the time.
    row = hidden.flatten()
    return hidden * (float(row.dot(row)) / len(row) + norm.eps) ** -0.5 * norm.weight


def _rotated(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary` of `ops/positions.py` in fewer calls."""
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
    first, second = vectors.chunk(2, -1)
    halves = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(halves, -1)
